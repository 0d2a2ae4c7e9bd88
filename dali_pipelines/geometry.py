"""Rotation, shear and translation with Pillow's sampling, built from DALI's nearest-neighbour warps and arithmetic.

DALI's warps know no bicubic of Pillow's. A nearest-neighbour warp with clamped borders, shifted by whole pixels, gets
the taps of any interpolation; the weights follow from the same affine map. Shear and translation move along one axis
only, so that 4 taps are enough; rotation takes 16.
"""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

from .operations import FILL, Node, beside, byte, constant, truncate


class Warp:
    """An affine map, output pixel to input pixel, per sample: CPU node `matrix` float32 [2, 3]; square images."""

    def __init__(self, images: Node, matrix: Node, image_size_px: int) -> None:
        self.images, self.matrix, self.size = images, matrix, image_size_px
        centers = np.arange(image_size_px) + 0.5
        columns, rows = constant(centers[None, :, None], images), constant(centers[:, None, None], images)
        # what depends on the row alone is added first: a column of values instead of a square
        self.source_x = self._entry(0, 0) * columns + (self._entry(0, 1) * rows + self._entry(0, 2))
        self.source_y = self._entry(1, 0) * columns + (self._entry(1, 1) * rows + self._entry(1, 2))

    def _entry(self, row: int, column: int) -> Node:
        return beside(fn.cast(self.matrix[row, column], dtype=types.FLOAT64), self.images)

    def inside(self) -> Node:
        """1 where the source point lies in the image, uint8 HW1: elsewhere Pillow puts the fill colour."""
        checks = [(axis >= 0.0) & (axis < float(self.size)) for axis in (self.source_x, self.source_y)]
        return fn.cast(checks[0] & checks[1], dtype=types.UINT8)

    def tap(self, shift_x: float, shift_y: float) -> Node:
        """The pixel at the source point moved by this much, borders repeated; float HWC."""
        offset = types.Constant(np.array([[0, 0, shift_x], [0, 0, shift_y]], dtype=np.float32))
        return fn.warp_affine(self.images, matrix=self.matrix + offset, interp_type=types.INTERP_NN, dtype=types.FLOAT)


def cubic_weights(source: Node) -> list[Node]:
    """Pillow's bicubic weights (a = -1, as in its affine transform) of the pixels -1, 0, 1, 2 around it; float HW1."""
    position = source - 0.5
    d = fn.cast(position - dali_math.floor(position), dtype=types.FLOAT)
    return [
        d * (d * (2.0 - d) - 1.0),
        1.0 + d * d * (d - 2.0),
        d * (1.0 + d * (1.0 - d)),
        d * d * (d - 1.0),
    ]


def weighted_sum(taps: list[Node], weights: list[Node]) -> Node:
    """sum(tap * weight)."""
    total = taps[0] * weights[0]
    for i in range(1, len(taps)):
        total = total + taps[i] * weights[i]
    return total


SHIFTS = (-1.5, -0.5, 0.5, 1.5)
"""From the source point to the centres of the four pixels around it, as a nearest-neighbour warp has to be told."""


def fill_outside(values: Node, warp: Warp, images: Node) -> Node:
    """Float values to uint8 by truncation, and the fill colour where the source point is outside."""
    inside = warp.inside()
    fill = constant(np.array([[FILL]], dtype=np.uint8), images)
    return truncate(values) * inside + fill * (byte(1) - inside)


def warp_bicubic_x(images: Node, matrix: Node, image_size_px: int) -> Node:
    """Maps that leave the row alone (shear and translation along x), bicubic."""
    warp = Warp(images, matrix, image_size_px)
    taps = [warp.tap(shift, 0.0) for shift in SHIFTS]
    return fill_outside(weighted_sum(taps, cubic_weights(warp.source_x)), warp, images)


def warp_bicubic_y(images: Node, matrix: Node, image_size_px: int) -> Node:
    """Maps that leave the column alone (shear and translation along y), bicubic."""
    warp = Warp(images, matrix, image_size_px)
    taps = [warp.tap(0.0, shift) for shift in SHIFTS]
    return fill_outside(weighted_sum(taps, cubic_weights(warp.source_y)), warp, images)


def warp_bicubic(images: Node, matrix: Node, image_size_px: int) -> Node:
    """Any affine map, bicubic: rows first, then the column of their results, as Pillow does."""
    warp = Warp(images, matrix, image_size_px)
    weights_x = cubic_weights(warp.source_x)
    rows = [weighted_sum([warp.tap(x, y) for x in SHIFTS], weights_x) for y in SHIFTS]
    return fill_outside(weighted_sum(rows, cubic_weights(warp.source_y)), warp, images)


def warp_bilinear(images: Node, matrix: Node, _image_size_px: int) -> Node:
    """Any affine map, bilinear: one call of OpenCV's (on a GPU CV-CUDA's) warp, and not what the recipe says.

    It rounds where Pillow truncates, and mixes the fill colour into the outermost half pixel, where Pillow repeats the
    border. On a CPU it costs 0.6 ms at 224 px, where DALI's own warp, which knows one fill value alone, costs 2.2 with
    what it takes to fill in the colour.
    """
    last_row = types.Constant(np.array([[0, 0, 1]], dtype=np.float32))
    return fn.experimental.warp_perspective(
        images,
        matrix=fn.cat(matrix, last_row, axis=0),
        inverse_map=True,
        pixel_origin="corner",
        border_mode="constant",
        fill_value=list(FILL),
        interp_type=types.INTERP_LINEAR,
    )
