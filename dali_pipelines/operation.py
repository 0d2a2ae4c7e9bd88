"""The operations that a training view may go through, by number, and what is drawn of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class Operation:
    """timm's increasing set after NONE, for an operation that is not applied; then those of 3-Augment.

    In an order that keeps operations of one kind side by side, since the graph parts samples by comparing numbers.
    Plain numbers and not an Enum, which DALI's arithmetic does not take as a constant.
    """

    NONE = 0
    AUTO_CONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    POSTERIZE = 4
    SOLARIZE = 5
    SOLARIZE_ADD = 6
    COLOR = 7
    CONTRAST = 8
    BRIGHTNESS = 9
    SHARPNESS = 10
    ROTATE = 11
    SHEAR_X = 12
    TRANSLATE_X = 13
    SHEAR_Y = 14
    TRANSLATE_Y = 15
    GRAYSCALE = 16
    GAUSSIAN_BLUR = 17


RAND_AUGMENT_OPERATIONS = tuple(range(Operation.AUTO_CONTRAST, Operation.TRANSLATE_Y + 1))
GEOMETRIC_OPERATIONS = tuple(range(Operation.ROTATE, Operation.TRANSLATE_Y + 1))


@dataclass(frozen=True)
class OperationDraws:
    """For each view and place: the operation, and its argument as the recipe's code gives it."""

    operations: np.ndarray
    """int32 [B, places], values of `Operation`."""
    arguments: np.ndarray
    """float64 [B, places]: enhancement factor, degrees, shear, share of the side, bits, threshold, addend, radius."""
