"""RandAugment's operations on uint8 HWC images, as Pillow computes them, for CPU and GPU alike.

Each takes images on either device and one CPU scalar per sample, the argument that timm's level functions give. Where
Pillow truncates, so do these: a cast alone would round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

from .draws import BLUR_PASSES, BLUR_TAPS

Node = Any
"""A node of a DALI graph."""

FILL = (124, 116, 104)
"""What geometric operations put where the image ends: ImageNet's mean colour, as timm sets it."""

LUMA_WEIGHTS = (19595, 38470, 7471)
"""Pillow's conversion to grey, in 1 / 65536."""

SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
"""Pillow's SMOOTH filter, towards which Sharpness blends."""


def beside(scalar: Node, images: Node) -> Node:
    """The scalar on the images' device: an operand of arithmetic has to be where the other is."""
    return scalar.gpu() if images.device == "gpu" and scalar.device == "cpu" else scalar


def constant(value: np.ndarray, images: Node) -> Node:
    """A constant on the images' device."""
    return types.Constant(value, device=images.device)


def byte(value: int) -> Node:
    """A uint8 constant, which keeps arithmetic with images in uint8."""
    return types.Constant(value, dtype=types.UINT8)


def truncate(values: Node) -> Node:
    """Float to uint8 as Pillow does: clipped, then the fraction cut off."""
    return fn.cast(dali_math.floor(values), dtype=types.UINT8)


def blend(degenerate: Node, images: Node, factor: Node) -> Node:
    """Pillow's Image.blend: degenerate + factor * (image - degenerate); all of ImageEnhance is this."""
    start = fn.cast(degenerate, dtype=types.FLOAT)
    return truncate(start + beside(factor, images) * (images - start))


def luma(images: Node) -> Node:
    """Pillow's grey value, a whole number in float32 HW1: the weighted sum is exact, since it stays below 2 ** 24."""
    weights = [weight / 65536 for weight in LUMA_WEIGHTS]
    return dali_math.floor(fn.coord_transform(images, M=weights, T=0.5, dtype=types.FLOAT))


def invert(images: Node) -> Node:
    """255 - x."""
    return byte(255) - images


def posterize(images: Node, bits: Node) -> Node:
    """Keeps the highest `bits` bits (0: black)."""
    return images & beside(fn.cast(256.0 - dali_math.pow(2.0, 8.0 - bits), dtype=types.UINT8), images)


def solarize(images: Node, threshold: Node) -> Node:
    """255 - x where x >= threshold, a whole number up to 256."""
    above = fn.cast(images >= beside(fn.cast(threshold, dtype=types.INT32), images), dtype=types.UINT8)
    return images ^ (above * byte(255))  # 255 - x is 255 XOR x on bytes


def solarize_add(images: Node, addend: Node) -> Node:
    """Adds a whole number up to 128 to values below 128."""
    below = fn.cast(images < byte(128), dtype=types.UINT8)
    return images + below * beside(fn.cast(addend, dtype=types.UINT8), images)


def brightness(images: Node, factor: Node) -> Node:
    """Blends with black."""
    return truncate(images * beside(factor, images))


def color(images: Node, factor: Node) -> Node:
    """Blends with its own grey."""
    return blend(luma(images), images, factor)


def contrast(images: Node, factor: Node) -> Node:
    """Blends with its mean grey, rounded."""
    mean = fn.reductions.mean(luma(images), axes=[0, 1, 2], keep_dims=True, dtype=types.FLOAT)
    return blend(dali_math.floor(mean + 0.5), images, factor)


def grayscale(images: Node) -> Node:
    """Its grey value in all three channels."""
    gray = fn.cast(luma(images), dtype=types.UINT8)
    return fn.cat(gray, gray, gray, axis=2)


def gaussian_blur(images: Node, kernel: Node) -> Node:
    """Pillow's GaussianBlur: a box (`draws.blur_kernels`) three times along rows, then along columns, bytes in between.

    One filter of the three boxes together is cheaper and wrong by up to 20 at the border, which Pillow repeats anew in
    each pass.
    """
    for shape in ([1, BLUR_TAPS], [BLUR_TAPS, 1]):
        box = fn.reshape(kernel, shape=shape)
        for _ in range(BLUR_PASSES):
            images = fn.filter(images, box, border="clamp", dtype=types.UINT8)
    return images


def sharpness(images: Node, factor: Node, image_size_px: int) -> Node:
    """Blends with its smoothed self, whose border of one pixel Pillow leaves as it is."""
    inner = np.zeros((image_size_px, image_size_px, 1), dtype=np.uint8)
    inner[1:-1, 1:-1] = 1
    smooth = fn.filter(images, constant(SMOOTH, images))
    inside = constant(inner, images)
    return blend(smooth * inside + images * (byte(1) - inside), images, factor)


def auto_contrast(images: Node) -> Node:
    """Stretches each channel to 0-255, in float64 as Pillow's table is; a constant channel stays."""
    low, high = (
        fn.cast(reduce(images, axes=[0, 1], keep_dims=True), dtype=types.FLOAT64)
        for reduce in (fn.reductions.min, fn.reductions.max)
    )
    span = high - low
    flat = fn.cast(span < 0.5, dtype=types.FLOAT64)
    scale = flat + (1.0 - flat) * types.Constant(255.0, dtype=types.FLOAT64) / (span + flat)
    offset = low * (flat - 1.0) * scale
    return truncate(fn.cast(images, dtype=types.FLOAT64) * scale + offset)


def equalize(images: Node, image_size_px: int) -> Node:
    """Equalises each channel's histogram, within 1 of Pillow.

    Pillow's table is floor(1/2 + below / step), of the number of pixels below a value and a whole step of
    (pixels - those of the highest value) // 255. OpenCV's (DALI's) counts a value's own pixels too, so it is asked
    about the mirrored image, and its step is not a whole number, which the ratio of both steps makes good.
    """
    equalized = fn.cast(byte(255) - fn.equalize(byte(255) - images), dtype=types.FLOAT)
    highest = fn.reductions.max(images, axes=[0, 1], keep_dims=True)
    is_highest = fn.cast(images == highest, dtype=types.FLOAT)
    at_highest = fn.reductions.sum(is_highest, axes=[0, 1], keep_dims=True, dtype=types.FLOAT)
    step = (image_size_px**2 - at_highest) / 255.0
    whole_step = dali_math.floor(step)
    varied = fn.cast(whole_step >= 1.0, dtype=types.FLOAT)  # else Pillow leaves the channel as it is
    values = dali_math.floor(equalized * step / dali_math.max(whole_step, 1.0) + 0.5)
    values = varied * values + (1.0 - varied) * fn.cast(images, dtype=types.FLOAT)
    return fn.cast(values, dtype=types.UINT8)  # saturates
