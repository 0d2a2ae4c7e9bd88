"""Policies as sequences of places: at each place a view goes through one operation out of some, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .operation import GEOMETRIC_OPERATIONS, RAND_AUGMENT_OPERATIONS, Operation, OperationDraws
from .rand_augment import draw_rand_augment, parse_rand_augment
from .three_augment import (
    JITTER_OPERATIONS,
    THREE_AUGMENT_OPERATIONS,
    draw_color_jitter,
    draw_three_augment,
)
from .train_augment import TrainAugment

Draw = Callable[[int, int, np.ndarray], OperationDraws]
"""(seed, epoch, views) -> what each view goes through."""


@dataclass(frozen=True)
class Place:
    """What may happen at one place: ascending values of `Operation`; the graph holds no others there."""

    operations: tuple[int, ...]

    @property
    def is_geometric(self) -> bool:
        """Whether the place needs an affine map for each view."""
        return any(operation in GEOMETRIC_OPERATIONS for operation in self.operations)

    @property
    def blurs(self) -> bool:
        """Whether the place needs a filter for each view."""
        return Operation.GAUSSIAN_BLUR in self.operations


@dataclass(frozen=True)
class Policy:
    """The places, one after another, and how their operations are drawn."""

    places: tuple[Place, ...]
    draws: tuple[Draw, ...]

    def draw(self, seed: int, epoch: int, views: np.ndarray) -> OperationDraws:
        """For each view and place, as pure functions of (seed, epoch, view)."""
        drawn = [draw(seed, epoch, views) for draw in self.draws]
        if not drawn:
            return OperationDraws(np.zeros((len(views), 0), dtype=np.int32), np.zeros((len(views), 0)))
        return OperationDraws(
            np.concatenate([part.operations for part in drawn], axis=1),
            np.concatenate([part.arguments for part in drawn], axis=1),
        )


def build_policy(augment: TrainAugment) -> Policy:
    """RandAugment, or 3-Augment, or none; then ColorJitter if asked for. ValueError for an unknown RandAugment."""
    places: list[Place] = []
    draws: list[Draw] = []
    if augment.policy == "rand":
        rand = parse_rand_augment(augment.rand_augment)
        places += [Place((Operation.NONE, *RAND_AUGMENT_OPERATIONS))] * rand.num_ops
        draws.append(partial(draw_rand_augment, rand))
    elif augment.policy == "three":
        places.append(Place(THREE_AUGMENT_OPERATIONS))
        draws.append(draw_three_augment)
    if augment.color_jitter > 0:
        places += [Place(JITTER_OPERATIONS)] * len(JITTER_OPERATIONS)
        draws.append(partial(draw_color_jitter, strength=augment.color_jitter))
    return Policy(tuple(places), tuple(draws))
