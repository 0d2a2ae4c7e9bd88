"""Bicubic resizing with Pillow's result and torchvision's sizes."""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

from .operations import Node


def shorter_side_to(side_px: int, shape: Node) -> Node:
    """Height and width, float32 [2], that torchvision's Resize(side_px) gives an image of `shape` [H, W, C].

    The longer side becomes int(side_px * longer / shorter).
    """
    size = fn.cast(shape[0:2], dtype=types.FLOAT64)
    shorter = dali_math.min(size[0], size[1])
    # float64 and one product before the division, as Python has it
    return fn.cast(dali_math.floor(size * float(side_px) / shorter), dtype=types.FLOAT)


def resize_bicubic(images: Node, size: Node) -> Node:
    """Bicubic with antialiasing to `size` (height, width), columns first and bytes in between, as Pillow does it.

    One call for both axes chooses its own order and keeps floats in between: 16 % of all values are then off by one or
    more, against 0.4 % (photographs, 256 px). It costs 2.1 CPU-ms for each image of 500 x 375 px, this 5.4.
    """
    for keep in ((0.0, 1.0), (1.0, 0.0)):  # in mode `stretch` an axis of size 0 stays as it is
        axis = size * types.Constant(np.array(keep, dtype=np.float32))
        images = fn.resize(images, size=axis, mode="stretch", interp_type=types.INTERP_CUBIC, antialias=True)
    return images
