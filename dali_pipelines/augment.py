"""The training view as a graph: flip, RandAugment, normalise, random erasing. One definition for CPU and GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvidia.dali import fn, types

from . import geometry, operations
from .operations import Node
from .rand_augment import Operation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainAugment:
    """What a training view goes through."""

    image_size_px: int = 224
    crop_scale_min: float = 0.08
    flip_probability: float = 0.5
    policy: Literal["rand", "none"] = "rand"
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    geometry: Literal["exact", "bilinear"] = "exact"
    """Rotation, shear and translation: Pillow's bicubic, as timm has it, or bilinear, which is cheaper."""
    erase_probability: float = 0.25
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def apply_operation(images: Node, operation: Node, argument: Node, matrix: Node, augment: TrainAugment) -> Node:
    """One of the 15 operations per sample: its number (see Operation) and argument are CPU scalars, matrix [2, 3].

    Samples part at each `if` and go through as few tests as their number allows; each operation runs once, on all
    samples that drew it.
    """
    size = augment.image_size_px
    if operation != Operation.NONE:
        if operation >= Operation.SHEAR_X or operation == Operation.ROTATE:
            images = apply_geometry(images, operation, matrix, augment)
        elif operation >= Operation.COLOR:
            if operation <= Operation.CONTRAST:
                if operation == Operation.COLOR:
                    images = operations.color(images, argument)
                else:
                    images = operations.contrast(images, argument)
            elif operation == Operation.BRIGHTNESS:
                images = operations.brightness(images, argument)
            else:
                images = operations.sharpness(images, argument, size)
        elif operation >= Operation.POSTERIZE:
            if operation == Operation.POSTERIZE:
                images = operations.posterize(images, argument)
            elif operation == Operation.SOLARIZE:
                images = operations.solarize(images, argument)
            else:
                images = operations.solarize_add(images, argument)
        elif operation == Operation.AUTO_CONTRAST:
            images = operations.auto_contrast(images)
        elif operation == Operation.EQUALIZE:
            images = operations.equalize(images, augment.image_size_px)
        else:
            images = operations.invert(images)
    return images


def apply_geometry(images: Node, operation: Node, matrix: Node, augment: TrainAugment) -> Node:
    """Rotate, shear or translate."""
    size = augment.image_size_px
    if augment.geometry == "bilinear":
        return geometry.warp_bilinear(images, matrix, size)
    if operation == Operation.ROTATE:
        images = geometry.warp_bicubic(images, matrix, size)
    elif (operation == Operation.SHEAR_X) | (operation == Operation.TRANSLATE_X):
        images = geometry.warp_bicubic_x(images, matrix, size)
    else:
        images = geometry.warp_bicubic_y(images, matrix, size)
    return images


def normalize(images: Node, mean: tuple[float, ...], std: tuple[float, ...], dtype: types.DALIDataType) -> Node:
    """uint8 HWC -> (x / 255 - mean) / std, HWC in `dtype`."""
    return fn.crop_mirror_normalize(
        images, mean=[255 * m for m in mean], std=[255 * s for s in std], dtype=dtype, output_layout="HWC"
    )


def normalize_and_erase(
    images: Node, erased: Node, anchor: Node, shape: Node, noise: Node, augment: TrainAugment, dtype: types.DALIDataType
) -> Node:
    """Normalises, and replaces a rectangle by noise in the samples that drew it.

    anchor, shape: CPU int32 [2], top and left, height and width; noise: float32 [h, w, 3]. It is emptied, and
    the noise, padded with zeros to the whole image, is added: in float32, since DALI does not add in float16.
    """
    size = augment.image_size_px
    if erased != 0:
        images = normalize(images, augment.mean, augment.std, types.FLOAT)
        place = {"anchor": fn.cast(anchor, dtype=types.FLOAT), "shape": fn.cast(shape, dtype=types.FLOAT)}
        emptied = fn.erase(images, axes=[0, 1], normalized=False, **place)
        padded = fn.slice(noise, start=-anchor, shape=[size, size], axes=[0, 1], out_of_bounds_policy="pad")
        images = fn.cast(emptied + padded, dtype=dtype)
    else:
        images = normalize(images, augment.mean, augment.std, dtype)
    return images
