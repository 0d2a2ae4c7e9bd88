"""From the loader's batch to what teacher and student read: mixed by plain torch, or prepared by one kernel.

The kernel mixes, casts to the dtype of the matrix products, normalises where the loader gives bytes, and writes the
teacher's channels-last images and the student's patch rows in one pass. Which of both is wanted is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deit_fast.dali_pipelines.loader import Batch
from deit_fast.kernels.batch_prep import batch_prep
from deit_fast.kernels.choice import choose

from .config import IMAGENET_MEAN, IMAGENET_STD, Config
from .mixing import MixedLabels, MixPlan, draw_plan, mix_batch, mix_labels
from .model import DeiT
from .precision import DTYPES

NO_BOX = (0, 0, 0, 0)


class Mixed(NamedTuple):
    """A mixed batch: images [B, 3, H, W] for the teacher; for the student the same, or their patch rows.

    Where no teacher looks, `teacher` may be the patch rows too.
    """

    teacher: Tensor
    student: Tensor


Prepare = Callable[[Batch, int, list[int]], tuple[Mixed, MixedLabels]]
"""(batch, step, global indices of its mixing groups) -> what is trained on: a pure function of them and of the seed."""


def build_prepare(config: Config, model: nn.Module | None, *, teacher_looks: bool, precision: str) -> Prepare:
    """The preparation that `runtime.kernels` asks for. model: the student, None where only a teacher is asked."""
    if choose("batch_prep", config.runtime.kernels) == "reference":
        return partial(mix_step, config=config)
    patch_size_px = model.shape.patch_size_px if isinstance(model, DeiT) else None

    def prepare(batch: Batch, step: int, groups: list[int]) -> tuple[Mixed, MixedLabels]:
        plans = draw_plans(config, step, groups)
        device, group_size = batch.images.device, config.mix.group_size
        labels = mix_labels(batch.labels, plans, group_size)
        box = torch.tensor([plan.box or NO_BOX for plan in plans], dtype=torch.int32)
        are_bytes = batch.images.dtype == torch.uint8
        prepared = batch_prep(
            batch.images,
            partners(len(plans), group_size, device),
            labels.lam,
            box.repeat_interleave(group_size, 0).to(device, non_blocking=True),
            dtype=DTYPES[precision],
            mean=IMAGENET_MEAN if are_bytes else None,
            std=IMAGENET_STD if are_bytes else None,
            channels_last=teacher_looks or patch_size_px is None,
            patch_size_px=patch_size_px,
            backend="triton",
        )
        given = [output for output in (prepared.images, prepared.patches) if output is not None]
        return Mixed(given[0], given[-1]), labels

    return prepare


def mix_step(batch: Batch, step: int, groups: list[int], config: Config) -> tuple[Mixed, MixedLabels]:
    """By plain torch."""
    plans = draw_plans(config, step, groups)
    images, labels = mix_batch(batch.images, batch.labels, plans, config.mix.group_size)
    return Mixed(images, images), labels


def draw_plans(config: Config, step: int, groups: list[int]) -> Sequence[MixPlan]:
    """The plan of each group."""
    return [draw_plan(config.runtime.seed, step, group, config.mix, config.model.image_size_px) for group in groups]


@lru_cache(maxsize=4)
def partners(num_groups: int, group_size: int, device: torch.device) -> Tensor:
    """Each image's partner, int64 [B]: its group in reverse. Kept on the device, since all steps have the same."""
    places = torch.arange(num_groups * group_size).view(num_groups, group_size)
    return places.flip(1).flatten().to(device)
