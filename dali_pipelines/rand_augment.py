"""RandAugment as timm's `rand-m9-mstd0.5-inc1`: what each view draws (Cubuk et al. 2019; timm's auto_augment.py).

`operations.py` holds what the operations do to pixels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import torch

from .operation import RAND_AUGMENT_OPERATIONS, Operation, OperationDraws
from .philox import Stream, uniforms

MAX_MAGNITUDE = 10.0


@dataclass(frozen=True)
class RandAugment:
    """A policy: `num_ops` operations one after another, each drawn from all 15 and applied with `probability`."""

    magnitude: float = 10.0
    """Of 10."""
    magnitude_std: float = 0.0
    """Normal noise on the magnitude; infinite: uniform from 0 to the magnitude."""
    num_ops: int = 2
    probability: float = 0.5


def parse_rand_augment(text: str) -> RandAugment:
    """`rand-m9-mstd0.5-inc1` and its like, in timm's notation; ValueError that names an unknown part.

    m: magnitude, mstd: its noise (over 100: uniform), n: number of operations, p: probability of each, inc1: the
    increasing set, the only one here.
    """
    first, *parts = text.split("-")
    if first != "rand":
        raise ValueError(f"augment.rand_augment {text} has to start with rand")
    values = {"m": 10.0, "mstd": 0.0, "n": 2.0, "p": 0.5, "inc": 0.0}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match is None or match[1] not in values:
            raise ValueError(f"augment.rand_augment {text}: unknown part {part}; known are mM, mstdS, nN, pP and inc1")
        values[match[1]] = float(match[2])
    if values["inc"] != 1:
        raise ValueError(f"augment.rand_augment {text}: only the increasing set is built here; add inc1")
    if values["n"] != int(values["n"]) or not 0 <= values["p"] <= 1 or values["m"] > MAX_MAGNITUDE:
        raise ValueError(f"augment.rand_augment {text}: m is at most 10, n a whole number, p from 0 to 1")
    magnitude_std = math.inf if values["mstd"] > 100 else values["mstd"]
    return RandAugment(values["m"], magnitude_std, int(values["n"]), values["p"])


def draw_rand_augment(policy: RandAugment, seed: int, epoch: int, views: np.ndarray) -> OperationDraws:
    """The operations of each view, as pure functions of (seed, epoch, view)."""
    draws = uniforms(seed, Stream.AUGMENT, epoch, views, 4 * policy.num_ops).reshape(len(views), policy.num_ops, 4)
    chosen = 1 + (draws[..., 0] * len(RAND_AUGMENT_OPERATIONS)).astype(np.int32)
    operations = np.where(draws[..., 1] < policy.probability, chosen, Operation.NONE)
    if math.isinf(policy.magnitude_std):
        magnitude = draws[..., 2] * policy.magnitude
    else:
        above_zero = torch.from_numpy(np.maximum(draws[..., 2], 2.0**-33))
        noise = torch.special.ndtri(above_zero).numpy()  # the inverse of the normal distribution function
        magnitude = np.clip(policy.magnitude + policy.magnitude_std * noise, 0, MAX_MAGNITUDE)
    sign = np.where(draws[..., 3] < 0.5, -1.0, 1.0)
    return OperationDraws(operations.astype(np.int32), level_to_argument(operations, magnitude, sign))


def level_to_argument(operations: np.ndarray, magnitude: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """timm's level functions of the increasing set: (operation, magnitude 0-10, sign) -> argument; float64."""
    level = magnitude / MAX_MAGNITUDE
    by_operation = {
        Operation.ROTATE: sign * level * 30.0,
        Operation.POSTERIZE: 4 - np.trunc(level * 4),
        Operation.SOLARIZE: 256 - np.minimum(256, np.trunc(level * 256)),
        Operation.SOLARIZE_ADD: np.minimum(128, np.trunc(level * 110)),
        Operation.SHEAR_X: sign * level * 0.3,
        Operation.SHEAR_Y: sign * level * 0.3,
        Operation.TRANSLATE_X: sign * level * 0.45,
        Operation.TRANSLATE_Y: sign * level * 0.45,
    }
    enhance = np.maximum(0.1, 1.0 + sign * level * 0.9)
    for operation in (Operation.COLOR, Operation.CONTRAST, Operation.BRIGHTNESS, Operation.SHARPNESS):
        by_operation[operation] = enhance
    arguments = np.zeros_like(level)
    for operation, values in by_operation.items():
        arguments = np.where(operations == operation, values, arguments)
    return arguments
