"""Everything random about a view before mixing, drawn on the host as pure functions of (seed, epoch, view).

The graphs hold no random operators: what they do to an image follows from these arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .philox import Stream, generator, uniforms
from .rand_augment import AugmentDraws, Operation

ATTEMPTS = 10
"""Draws of a rectangle before giving up, in torchvision's RandomResizedCrop and timm's RandomErasing alike."""
CROP_RATIO = (3 / 4, 4 / 3)
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)


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
    """Random erasing: a rectangle of normal noise in some of the views."""

    erased: np.ndarray
    """int32 [B]."""
    anchors: np.ndarray
    """int32 [B, 2]: top and left in pixels."""
    shapes: np.ndarray
    """int32 [B, 2]: height and width in pixels."""
    noise: list[np.ndarray]
    """float32 [h, w, 3] each; 1 x 1 where nothing is erased."""


def draw_erasing(seed: int, epoch: int, views: np.ndarray, probability: float, image_size_px: int) -> EraseDraws:
    """timm's RandomErasing, `pixel` mode, count 1: area uniform in [0.02, 1/3], aspect log-uniform in [0.3, 1/0.3]."""
    draws = uniforms(seed, Stream.ERASE, epoch, views, 2 * ATTEMPTS + 3)
    area = ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * draws[:, 3 : 3 + ATTEMPTS]
    low, high = np.log(ERASE_ASPECT)
    aspect = np.exp(low + (high - low) * draws[:, 3 + ATTEMPTS :])
    heights = np.rint(image_size_px * np.sqrt(area * aspect)).astype(np.int32)
    widths = np.rint(image_size_px * np.sqrt(area / aspect)).astype(np.int32)
    fits = (heights < image_size_px) & (widths < image_size_px)
    first = fits.argmax(axis=1)
    rows = np.arange(len(views))
    erased = (draws[:, 0] < probability) & fits.any(axis=1)
    height, width = np.where(erased, heights[rows, first], 1), np.where(erased, widths[rows, first], 1)
    tops = (draws[:, 1] * (image_size_px - height + 1)).astype(np.int32)
    lefts = (draws[:, 2] * (image_size_px - width + 1)).astype(np.int32)
    nothing = np.zeros((1, 1, 3), dtype=np.float32)
    noise = [
        generator(seed, Stream.ERASE_NOISE, epoch, int(view)).standard_normal((h, w, 3), dtype=np.float32)
        if on
        else nothing
        for view, on, h, w in zip(views, erased, height, width, strict=True)
    ]
    anchors, shapes = np.stack([tops, lefts], axis=1), np.stack([height, width], axis=1).astype(np.int32)
    return EraseDraws(erased.astype(np.int32), anchors, shapes, noise)


def geometry_matrices(draws: AugmentDraws, place: int, image_size_px: int) -> np.ndarray:
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
