"""3-Augment and ColorJitter as DeiT III uses them: what each view draws (Touvron et al. 2022, section 3)."""

from __future__ import annotations

import numpy as np

from .operation import Operation, OperationDraws
from .philox import Stream, uniforms

THREE_AUGMENT_OPERATIONS = (Operation.SOLARIZE, Operation.GRAYSCALE, Operation.GAUSSIAN_BLUR)
SOLARIZE_THRESHOLD = 128.0
BLUR_RADIUS = (0.1, 2.0)
"""Uniform; standard deviation in pixels, as Pillow's GaussianBlur takes it."""
JITTER_OPERATIONS = (Operation.COLOR, Operation.CONTRAST, Operation.BRIGHTNESS)


def draw_three_augment(seed: int, epoch: int, views: np.ndarray) -> OperationDraws:
    """One place: exactly one of grayscale, solarize and Gaussian blur, each as likely."""
    draws = uniforms(seed, Stream.AUGMENT, epoch, views, 2)
    operations = np.array(THREE_AUGMENT_OPERATIONS, dtype=np.int32)[(draws[:, 0] * 3).astype(np.int64)]
    radius = BLUR_RADIUS[0] + (BLUR_RADIUS[1] - BLUR_RADIUS[0]) * draws[:, 1]
    arguments = np.where(operations == Operation.SOLARIZE, SOLARIZE_THRESHOLD, radius)
    return OperationDraws(operations[:, None], arguments[:, None])


def draw_color_jitter(seed: int, epoch: int, views: np.ndarray, strength: float) -> OperationDraws:
    """Three places: brightness, contrast, saturation in random order, factors uniform in 1 -+ strength."""
    draws = uniforms(seed, Stream.COLOR_JITTER, epoch, views, 6)
    order = np.argsort(draws[:, :3], axis=1)  # a uniform permutation
    operations = np.array(JITTER_OPERATIONS, dtype=np.int32)[order]
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return OperationDraws(operations, low + (high - low) * draws[:, 3:])
