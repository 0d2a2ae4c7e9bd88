"""Everything random about a view before mixing, drawn on the host as pure functions of (seed, epoch, view).

The graphs hold no random operators: what they do to an image follows from these arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .operation import Operation, OperationDraws
from .philox import Stream, generator, uniforms
from .train_augment import TrainAugment

ATTEMPTS = 10
"""Draws of a rectangle before giving up, in torchvision's RandomResizedCrop and timm's RandomErasing alike."""
CROP_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class CropDraws:
    """Random resized crops of images whose size is not known yet."""

    widths: np.ndarray
    """float32 [B, 10]: candidates in units of sqrt(height * width) of the image."""
    heights: np.ndarray
    """float32 [B, 10]."""
    position: np.ndarray
    """float32 [B, 2]: where in the free rows and columns, in [0, 1)."""


def draw_crops(seed: int, epoch: int, views: np.ndarray, scale_min: float) -> CropDraws:
    """torchvision's RandomResizedCrop: area uniform in [scale_min, 1], aspect log-uniform in [3/4, 4/3], 10 tries."""
    draws = uniforms(seed, Stream.CROP, epoch, views, 2 * ATTEMPTS + 2)
    area = scale_min + (1 - scale_min) * draws[:, :ATTEMPTS]
    low, high = np.log(CROP_RATIO)
    aspect = np.exp(low + (high - low) * draws[:, ATTEMPTS : 2 * ATTEMPTS])
    return CropDraws(
        np.sqrt(area * aspect).astype(np.float32),
        np.sqrt(area / aspect).astype(np.float32),
        draws[:, 2 * ATTEMPTS :].astype(np.float32),
    )


def choose_crop(draws: CropDraws, index: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of view `index` in an image of this size: what the graph computes, in numpy.

    The first candidate that fits; if none does, the largest central crop with an aspect in [3/4, 4/3].
    """
    side = np.float32(np.sqrt(np.float32(height * width)))
    row, column = draws.position[index]
    for w, h in zip(np.rint(side * draws.widths[index]), np.rint(side * draws.heights[index]), strict=True):
        if 0 < w <= width and 0 < h <= height:
            top, left = math.floor(row * (height - h + 1)), math.floor(column * (width - w + 1))
            return top, left, int(h), int(w)
    w, h = min(width, round(height * CROP_RATIO[1])), min(height, round(width * CROP_RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_flips(seed: int, epoch: int, views: np.ndarray, probability: float) -> np.ndarray:
    """Whether each view is mirrored; int32 [B]."""
    return (uniforms(seed, Stream.FLIP, epoch, views, 1)[:, 0] < probability).astype(np.int32)


@dataclass(frozen=True)
class EraseDraws:
    """One rectangle of random erasing in some of the views."""

    erased: np.ndarray
    """int32 [B]."""
    anchors: np.ndarray
    """int32 [B, 2]: top and left in pixels."""
    shapes: np.ndarray
    """int32 [B, 2]: height and width in pixels."""
    content: list[np.ndarray]
    """float32 [h, w, 3] each, in normalised units; 1 x 1 where nothing is erased."""


def draw_erasing(seed: int, epoch: int, views: np.ndarray, augment: TrainAugment) -> list[EraseDraws]:
    """timm's RandomErasing: `augment.erase_count` rectangles at most, one after another.

    Area uniform in `erase_area` and shared among the image's rectangles, aspect log-uniform; a rectangle that fits in
    none of 10 tries is left out.
    """
    chosen = uniforms(seed, Stream.ERASE, epoch, views, 2)
    count = np.where(chosen[:, 0] < augment.erase_probability, 1 + (chosen[:, 1] * augment.erase_count).astype(int), 0)
    return [
        _draw_rectangles(seed, epoch, views, augment, count, number) for number in range(1, augment.erase_count + 1)
    ]


def _draw_rectangles(
    seed: int, epoch: int, views: np.ndarray, augment: TrainAugment, count: np.ndarray, number: int
) -> EraseDraws:
    """The rectangle `number` (from 1) of each view that has as many."""
    size = augment.image_size_px
    draws = uniforms(seed, Stream.ERASE, epoch, views, 2 * ATTEMPTS + 3, block=number)
    low, high = augment.erase_area
    area = (low + (high - low) * draws[:, 2 : 2 + ATTEMPTS]) / np.maximum(count, 1)[:, None]
    low, high = np.log([augment.erase_aspect_min, 1 / augment.erase_aspect_min])
    aspect = np.exp(low + (high - low) * draws[:, 2 + ATTEMPTS : -1])
    heights = np.rint(size * np.sqrt(area * aspect)).astype(np.int32)
    widths = np.rint(size * np.sqrt(area / aspect)).astype(np.int32)
    fits = (heights < size) & (widths < size) & (heights > 0) & (widths > 0)
    first, rows = fits.argmax(axis=1), np.arange(len(views))
    erased = (number <= count) & fits.any(axis=1)
    height, width = np.where(erased, heights[rows, first], 1), np.where(erased, widths[rows, first], 1)
    tops = (draws[:, 0] * (size - height + 1)).astype(np.int32)
    lefts = (draws[:, 1] * (size - width + 1)).astype(np.int32)
    content = [
        _content(seed, where, augment.erase_mode, h, w) if on else NOTHING
        for where, on, h, w in zip(draws[:, -1], erased, height, width, strict=True)
    ]
    anchors, shapes = np.stack([tops, lefts], axis=1), np.stack([height, width], axis=1).astype(np.int32)
    return EraseDraws(erased.astype(np.int32), anchors, shapes, content)


NOTHING = np.zeros((1, 1, 3), dtype=np.float32)


NOISE_VALUES = 2**22
"""16 MiB. Noise drawn anew for each rectangle cost 0.1 CPU-ms an image, a tenth of the whole native pipeline."""


@lru_cache(maxsize=1)
def noise_values(seed: int) -> np.ndarray:
    """Normal values of which every rectangle takes a stretch, from a place of its own; float32 [NOISE_VALUES]."""
    values = generator(seed, Stream.ERASE_NOISE, 0, 0).standard_normal(NOISE_VALUES, dtype=np.float32)
    values.flags.writeable = False
    return values


def _content(seed: int, where: float, mode: str, height: int, width: int) -> np.ndarray:
    """What fills a rectangle, float32 [height, width, 3]; where: its noise's place in `noise_values`, in [0, 1)."""
    if mode == "const":
        return np.zeros((height, width, 3), dtype=np.float32)
    shape = (height, width, 3) if mode == "pixel" else (1, 1, 3)
    count = math.prod(shape)
    start = int(where * (NOISE_VALUES - count + 1))
    noise = noise_values(seed)[start : start + count].reshape(shape)
    # a fresh array for one colour: DALI takes no strides of 0
    return noise if mode == "pixel" else np.broadcast_to(noise, (height, width, 3)).copy()


def geometry_matrices(draws: OperationDraws, place: int, image_size_px: int) -> np.ndarray:
    """The affine map, output pixel to input pixel, of the geometric operations at one place; float64 [B, 2, 3].

    As Pillow's `transform` and `rotate` take it, for square images; the identity for other operations.
    """
    operation, argument = draws.operations[:, place], draws.arguments[:, place]
    matrix = np.tile(np.array([[1.0, 0, 0], [0, 1.0, 0]]), (len(operation), 1, 1))
    matrix[:, 0, 1] = np.where(operation == Operation.SHEAR_X, argument, 0)
    matrix[:, 1, 0] = np.where(operation == Operation.SHEAR_Y, argument, 0)
    matrix[:, 0, 2] = np.where(operation == Operation.TRANSLATE_X, argument * image_size_px, 0)
    matrix[:, 1, 2] = np.where(operation == Operation.TRANSLATE_Y, argument * image_size_px, 0)
    angle = -np.radians(np.where(operation == Operation.ROTATE, argument, 0))
    cos, sin, center = np.cos(angle), np.sin(angle), image_size_px / 2
    rotation = np.stack(
        [
            np.stack([cos, sin, center - cos * center - sin * center], axis=-1),
            np.stack([-sin, cos, center + sin * center - cos * center], axis=-1),
        ],
        axis=1,
    )
    return np.where((operation == Operation.ROTATE)[:, None, None], rotation, matrix)


BLUR_TAPS = 5
"""Of a box for radii up to 2."""
BLUR_PASSES = 3


def blur_kernels(draws: OperationDraws, place: int) -> np.ndarray:
    """The box of Pillow's Gaussian blur, applied BLUR_PASSES times along each axis; float32 [B, BLUR_TAPS].

    Its edge pixels weigh less than the others (Gwosdek et al. 2011), so that the passes together have the standard
    deviation asked for. The identity for other operations.
    """
    radius = np.where(draws.operations[:, place] == Operation.GAUSSIAN_BLUR, draws.arguments[:, place], 0)
    variance = radius**2 / BLUR_PASSES
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    weight = 1 / (2 * (whole + part) + 1)
    edge = (1 - (2 * whole + 1) * weight) / 2
    distance = np.abs(np.arange(BLUR_TAPS) - BLUR_TAPS // 2)[None, :]
    whole, weight, edge = whole[:, None], weight[:, None], edge[:, None]
    kernels = np.where(distance <= whole, weight, np.where(distance == whole + 1, edge, 0))
    return kernels.astype(np.float32)
