"""How exact the native operators are against timm on Pillow: the second table of `deit-fast bench parity`.

It stands in docs/native.md. The tests hold its rows to their limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from deit_fast.dali_pipelines.native import direct
from deit_fast.dali_pipelines.operation import Operation
from deit_fast.dali_pipelines.rand_augment import level_to_argument

from .parity import TIMM_NAMES, pillow_three_augment, square_photographs, timm_rand_augment
from .photographs import photographs
from .table import markdown

MAGNITUDES = (0.7, 3.3, 8.5, 9.0, 9.7)
BLUR_RADII = (0.1, 0.3, 0.7, 1.0, 1.37, 1.8, 2.0)
BICUBIC = Image.Resampling.BICUBIC


class Parity(NamedTuple):
    """What a comparison found."""

    name: str
    exact: float
    """Share of values that are equal."""
    max_difference: int
    """Of 255."""
    values: int


def compare(name: str, ours: list[np.ndarray], theirs: list[np.ndarray]) -> Parity:
    """Over all values of all images."""
    difference = np.abs(np.concatenate([a.ravel().astype(int) - b.ravel() for a, b in zip(ours, theirs, strict=True)]))
    return Parity(name, float((difference == 0).mean()), int(difference.max()), difference.size)


def operation_parity(
    images: list[np.ndarray], operation: int, magnitude: float, simd: str = "auto", bilinear: bool = False
) -> Parity:
    """An operation of RandAugment with both signs."""
    ours, theirs = [], []
    for sign in (-1.0, 1.0):
        (argument,) = level_to_argument(np.array([operation]), np.array([magnitude]), np.array([sign]))
        theirs += timm_rand_augment(images, operation, magnitude, np.full(len(images), sign))
        ours += [direct.augment(image, [operation], [argument], simd=simd, bilinear=bilinear) for image in images]
    return compare(TIMM_NAMES[operation], ours, theirs)


def blur_parity(images: list[np.ndarray], radius: float, simd: str = "auto") -> Parity:
    """3-Augment's blur."""
    theirs = pillow_three_augment(images, Operation.GAUSSIAN_BLUR, radius)
    ours = [direct.augment(image, [Operation.GAUSSIAN_BLUR], [radius], simd=simd) for image in images]
    return compare("GaussianBlur", ours, theirs)


def pillow_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow 13's bicubic resize, in any Pillow: since then rows come first where that leaves far less to do."""
    picture = Image.fromarray(image)
    shrunk = image.shape[0] - height
    if shrunk > 0 and shrunk > 2 * (image.shape[1] - width):
        return np.asarray(picture.resize((picture.width, height), BICUBIC).resize((width, height), BICUBIC))
    return np.asarray(picture.resize((width, picture.height), BICUBIC).resize((width, height), BICUBIC))


def random_boxes(count: int, seed: int = 0) -> Iterator[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """Crops of photographs, of any size and shape."""
    generator, pictures = np.random.default_rng(seed), photographs()
    for index in range(count):
        picture = pictures[index % len(pictures)]
        height, width = (int(generator.integers(1, side + 1)) for side in picture.shape[:2])
        top = int(generator.integers(0, picture.shape[0] - height + 1))
        left = int(generator.integers(0, picture.shape[1] - width + 1))
        yield picture, (top, left, height, width)


def resize_parity(count: int, size_px: int, simd: str = "auto", seed: int = 0) -> Parity:
    """Crops of any size to a square, half of them mirrored."""
    ours, theirs = [], []
    for index, (picture, box) in enumerate(random_boxes(count, seed)):
        top, left, height, width = box
        flip = index % 2 == 1
        ours.append(direct.resize(picture, size_px, box=box, flip=flip, simd=simd))
        resized = pillow_resize(picture[top : top + height, left : left + width], size_px, size_px)
        theirs.append(resized[:, :: -1 if flip else 1])
    return compare(f"crop, resize to {size_px} px, flip", ours, theirs)


def merged(rows: list[Parity]) -> Parity:
    """One row for several of the same name."""
    values = sum(row.values for row in rows)
    exact = sum(row.exact * row.values for row in rows) / values
    return Parity(rows[0].name, exact, max(row.max_difference for row in rows), values)


def table(size_px: int = 224) -> list[Parity]:
    """All rows."""
    images = square_photographs(size_px)
    rows = [merged([operation_parity(images, op, magnitude) for magnitude in MAGNITUDES]) for op in TIMM_NAMES]
    rows.append(merged([blur_parity(images, radius) for radius in BLUR_RADII]))
    rows += [resize_parity(60, size) for size in (size_px, 65)]
    return rows


def markdown_table(rows: list[Parity]) -> str:
    """The table of docs/native.md, operation by operation."""
    cells = [(row.name, f"{100 * row.exact:.4f} % of {row.values:,}", str(row.max_difference)) for row in rows]
    return markdown(("against timm on Pillow", "equal values", "largest difference"), cells)
