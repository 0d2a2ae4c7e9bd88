"""Which image is shown when: stateless orders, so that resuming and resharding are exact.

A view is a position in the epoch's global order. A step takes `global_batch_size` consecutive views and deals them to
R = global_batch_size / group_size mixing groups as the official samplers deal to ranks: group = position modulo R.
With one group a rank this is exactly the official order (`RASampler` of facebookresearch/deit; torch's
`DistributedSampler` without repeats), and any other split of the same global batch trains on the same groups.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch


@lru_cache(maxsize=2)  # the loader prepares the next epoch's first batches while this epoch's last are in use
def epoch_permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The official order of an epoch: torch's randperm from a generator seeded with seed + epoch; int64 [N]."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(num_images, generator=generator).numpy()


class TrainSampler:
    """Views of this rank for any (epoch, step), and the image that each shows."""

    def __init__(
        self,
        num_images: int,
        *,
        global_batch_size: int,
        group_size: int,
        repeats: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        placement: Literal["official", "same_rank"] = "official",
    ) -> None:
        """repeats: how many views an image gets in a row (repeated augmentation; 1: none).

        placement: `official` deals a step's views to the groups in turn, so the views of an image fall to neighbouring
        ranks; `same_rank` gives each group a run of consecutive views, ordered so that mixing never pairs two views of
        one image. A step's views are the same, but an image's views share a rank (and one decoding) and a mixing draw.

        ValueError, naming the keys, when groups do not divide a rank's batch or an epoch has no full batch.
        """
        local = global_batch_size // world_size
        if repeats < 1:
            raise ValueError(f"data.repeats must be at least 1, got {repeats}")
        if group_size < 2 or group_size % 2 or local % group_size:
            raise ValueError(
                f"mix.group_size {group_size} has to be even and divide runtime.batch_size_per_device {local}; "
                f"use --mix.group_size {_largest_group(local, group_size)}"
                if local % 2 == 0
                else f"runtime.batch_size_per_device must be even, since images are mixed in pairs, got {local}"
            )
        if placement == "same_rank" and group_size < 2 * repeats:
            raise ValueError(
                f"data.repeats_placement same_rank needs mix.group_size {group_size} to be at least twice data.repeats "
                f"{repeats}, or views of one image would be mixed with each other"
            )
        self.num_images, self.repeats, self.seed, self.placement = num_images, repeats, seed, placement
        self.group_size, self.num_groups = group_size, global_batch_size // group_size
        self.groups_per_rank, self.rank = local // group_size, rank
        self.steps_per_epoch = self._views_per_group() // group_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"global batch {global_batch_size} (runtime.batch_size_per_device {local} x {world_size} processes) "
                f"is larger than the training set of {num_images} images; use a smaller runtime.batch_size_per_device"
            )

    def _views_per_group(self) -> int:
        """The official number of views a rank gets in an epoch, before incomplete batches are dropped."""
        if self.repeats == 1:
            return -(-self.num_images // self.num_groups)
        # The official formula rounds down to a multiple of 256 and so leaves nothing of a small data set: use all then
        return (self.num_images // 256 * 256 or self.num_images) // self.num_groups

    def groups(self, step: int) -> list[int]:
        """The global indices of this rank's mixing groups, which are the same in every step."""
        del step
        first = self.rank * self.groups_per_rank
        return list(range(first, first + self.groups_per_rank))

    def views(self, step: int) -> np.ndarray:
        """This rank's views in the epoch's step `step`, group after group; int64 [local batch]."""
        groups = np.array(self.groups(step))[:, None]
        start = step * self.group_size * self.num_groups
        if self.placement == "same_rank":
            # mixing pairs place i with place size - 1 - i: they hold views half a group apart
            half = np.arange(self.group_size // 2)
            order = np.concatenate([half, self.group_size // 2 + half[::-1]])
            return (start + groups * self.group_size + order[None, :]).reshape(-1)
        return (start + groups + np.arange(self.group_size)[None, :] * self.num_groups).reshape(-1)

    def images(self, epoch: int, views: np.ndarray) -> np.ndarray:
        """The image that each view of the epoch shows; int64, same shape."""
        order = epoch_permutation(self.num_images, self.seed, epoch)
        return order[(views // self.repeats) % self.num_images]


def _largest_group(local: int, wanted: int) -> int:
    """The largest even divisor of `local` up to `wanted`."""
    return max((size for size in range(2, max(2, min(local, wanted)) + 1, 2) if local % size == 0), default=2)


class ValidationSampler:
    """Every image exactly once over all ranks; the last batch is smaller where they do not divide."""

    def __init__(self, num_images: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        """ValueError unless batch_size is positive."""
        if batch_size < 1:
            raise ValueError(f"eval.batch_size_per_device must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._mine = np.arange(rank, num_images, world_size)
        self.num_batches = -(-len(self._mine) // batch_size)

    def images(self, batch: int) -> np.ndarray:
        """The images of this rank's batch; int64 [at most batch_size]."""
        return self._mine[batch * self.batch_size : (batch + 1) * self.batch_size]
