"""The training view as a graph: places of a policy, normalisation, random erasing. One definition for CPU and GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nvidia.dali import fn, types

from . import geometry, operations
from .operation import GEOMETRIC_OPERATIONS, Operation
from .operations import Node
from .policy import Place
from .train_augment import TrainAugment

Apply = Callable[[Node, Node, Node], Node]
"""(images, argument, table) -> images."""


def place_branches(place: Place, augment: TrainAugment) -> list[tuple[int, Apply]]:
    """The branches of a place, each with its lowest operation, ascending; operations of one kind share a branch."""
    size = augment.image_size_px
    branches: dict[tuple[int, ...], Apply] = {
        (Operation.AUTO_CONTRAST,): lambda images, _argument, _table: operations.auto_contrast(images),
        (Operation.EQUALIZE,): lambda images, _argument, _table: operations.equalize(images, size),
        (Operation.INVERT,): lambda images, _argument, _table: operations.invert(images),
        (Operation.POSTERIZE,): lambda images, argument, _table: operations.posterize(images, argument),
        (Operation.SOLARIZE,): lambda images, argument, _table: operations.solarize(images, argument),
        (Operation.SOLARIZE_ADD,): lambda images, argument, _table: operations.solarize_add(images, argument),
        (Operation.COLOR,): lambda images, argument, _table: operations.color(images, argument),
        (Operation.CONTRAST,): lambda images, argument, _table: operations.contrast(images, argument),
        (Operation.BRIGHTNESS,): lambda images, argument, _table: operations.brightness(images, argument),
        (Operation.SHARPNESS,): lambda images, argument, _table: operations.sharpness(images, argument, size),
        (Operation.GRAYSCALE,): lambda images, _argument, _table: operations.grayscale(images),
        (Operation.GAUSSIAN_BLUR,): lambda images, _argument, table: operations.gaussian_blur(images, table),
    }
    warps: dict[tuple[int, ...], Callable[[Node, Node, int], Node]] = {
        (Operation.ROTATE,): geometry.warp_bicubic,
        (Operation.SHEAR_X, Operation.TRANSLATE_X): geometry.warp_bicubic_x,
        (Operation.SHEAR_Y, Operation.TRANSLATE_Y): geometry.warp_bicubic_y,
    }
    if augment.geometry == "bilinear":
        warps = {GEOMETRIC_OPERATIONS: geometry.warp_bilinear}
    for kinds, warp in warps.items():
        branches[kinds] = partial(_warped, warp, size)
    return sorted((kinds[0], apply) for kinds, apply in branches.items() if set(kinds) & set(place.operations))


def _warped(warp: Callable[[Node, Node, int], Node], size: int, images: Node, _argument: Node, table: Node) -> Node:
    return warp(images, table, size)


def apply_place(
    images: Node, place: Place, operation: Node, argument: Node, table: Node, augment: TrainAugment
) -> Node:
    """One of the place's operations per sample.

    operation and argument are CPU scalars; table is the affine map float32 [2, 3], or the filter [BLUR_TAPS]. Samples
    part at each `if` and go through as few tests as the number of branches asks for; each operation runs once, on all
    samples that drew it.
    """
    branches = place_branches(place, augment)
    if Operation.NONE not in place.operations:
        return choose(images, branches, operation, argument, table)
    if operation != Operation.NONE:
        images = choose(images, branches, operation, argument, table)
    return images


def choose(images: Node, branches: list[tuple[int, Apply]], operation: Node, argument: Node, table: Node) -> Node:
    """Halves the branches until one is left."""
    if len(branches) == 1:
        return branches[0][1](images, argument, table)
    middle = len(branches) // 2
    if operation < branches[middle][0]:
        images = choose(images, branches[:middle], operation, argument, table)
    else:
        images = choose(images, branches[middle:], operation, argument, table)
    return images


def normalize(images: Node, mean: tuple[float, ...], std: tuple[float, ...], dtype: types.DALIDataType) -> Node:
    """uint8 HWC -> (x / 255 - mean) / std, HWC in `dtype`."""
    return fn.crop_mirror_normalize(
        images, mean=[255 * m for m in mean], std=[255 * s for s in std], dtype=dtype, output_layout="HWC"
    )


def erase(images: Node, erased: Node, anchor: Node, shape: Node, content: Node, image_size_px: int) -> Node:
    """Puts a rectangle into the samples that drew one; images float32 HWC.

    anchor, shape: CPU int32 [2], top and left, height and width; content: float32 [h, w, 3]. The rectangle is emptied,
    and the content, padded with zeros to the whole image, is added.
    """
    if erased != 0:
        place = {"anchor": fn.cast(anchor, dtype=types.FLOAT), "shape": fn.cast(shape, dtype=types.FLOAT)}
        emptied = fn.erase(images, axes=[0, 1], normalized=False, **place)
        size = [image_size_px, image_size_px]
        images = emptied + fn.slice(content, start=-anchor, shape=size, axes=[0, 1], out_of_bounds_policy="pad")
    return images


def erase_bytes(images: Node, erased: Node, anchor: Node, shape: Node, mean: tuple[float, ...]) -> Node:
    """Fills the rectangle of uint8 images with the mean colour, which normalisation turns into about zero."""
    if erased != 0:
        place = {"anchor": fn.cast(anchor, dtype=types.FLOAT), "shape": fn.cast(shape, dtype=types.FLOAT)}
        color = [round(255 * value) for value in mean]
        images = fn.erase(images, axes=[0, 1], normalized=False, fill_value=color, **place)
    return images


def reflect_padded(images: Node, width_px: int) -> Node:
    """HWC, with borders of this width mirrored about the edge pixels (numpy's `reflect`)."""
    top, bottom = images[1 : width_px + 1], images[-width_px - 1 : -1]
    images = fn.cat(fn.flip(top, horizontal=0, vertical=1), images, fn.flip(bottom, horizontal=0, vertical=1), axis=0)
    left, right = images[:, 1 : width_px + 1], images[:, -width_px - 1 : -1]
    return fn.cat(fn.flip(left, horizontal=1), images, fn.flip(right, horizontal=1), axis=1)
