"""Mixup and CutMix on the device, in timm's batch mode, per mixing group (Zhang et al. 2018; Yun et al. 2019).

The plan of a group is drawn on the host as a pure function of (seed, step, group): neither the number of devices nor
the place of a group among them changes what is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deit_fast.dali_pipelines.philox import Stream, generator

from .config import MixConfig

Box = tuple[int, int, int, int]
"""Rows y0 to y1 and columns x0 to x1 of an image, the ends excluded, in pixels."""


class MixedLabels(NamedTuple):
    """Two labels per image and the weight of the first: int64 [B], int64 [B], fp32 [B]."""

    label_a: Tensor
    label_b: Tensor
    lam: Tensor


@dataclass(frozen=True)
class MixPlan:
    """What happens to a group: Mixup (box is None) or CutMix with the group reversed; lam 1 leaves it as it is."""

    lam: float = 1.0
    box: Box | None = None


def cutmix_box(lam: float, center_y: int, center_x: int, image_size_px: int, form: str) -> Box:
    """The rectangle around a centre whose area is about 1 - lam of the image, clipped to it.

    Its side is s = int(size * sqrt(1 - lam)). `official` (timm 0.3, with which DeiT was trained) reaches s // 2 to both
    sides, so that an odd side loses a pixel; `timm` (1.x) reaches (s + 1) // 2 to the far side.
    """
    side = int(image_size_px * np.sqrt(1 - lam))
    before, after = side // 2, (side + 1) // 2 if form == "timm" else side // 2
    y0, y1 = np.clip([center_y - before, center_y + after], 0, image_size_px).tolist()
    x0, x1 = np.clip([center_x - before, center_x + after], 0, image_size_px).tolist()
    return y0, y1, x0, x1


def draw_plan(seed: int, step: int, group: int, mix: MixConfig, image_size_px: int) -> MixPlan:
    """The plan of mixing group `group` (its index in the global step); CutMix's lam is that of the clipped box."""
    draw = generator(seed, Stream.MIX, step, group)
    mixup, cutmix = mix.mixup_alpha > 0, mix.cutmix_alpha > 0
    if not (mixup or cutmix) or draw.random() >= mix.probability:
        return MixPlan()
    use_cutmix = cutmix and (not mixup or draw.random() < mix.switch_probability)
    if not use_cutmix:
        return MixPlan(lam=draw.beta(mix.mixup_alpha, mix.mixup_alpha))
    lam = draw.beta(mix.cutmix_alpha, mix.cutmix_alpha)
    center_y, center_x = draw.integers(image_size_px, size=2).tolist()
    box = y0, y1, x0, x1 = cutmix_box(lam, center_y, center_x, image_size_px, mix.cutmix_box)
    return MixPlan(lam=1 - (y1 - y0) * (x1 - x0) / image_size_px**2, box=box)


def mix_batch(images: Tensor, labels: Tensor, plans: Sequence[MixPlan], group_size: int) -> tuple[Tensor, MixedLabels]:
    """Mixes each group of `group_size` consecutive images with itself in reverse, by its plan.

    images [B, 3, H, W] of a floating dtype and any memory format, labels int64 [B], B = len(plans) * group_size.
    Returns new images (the input belongs to the loader and is left alone) and the labels of both partners.
    """
    assert len(images) == len(labels) == len(plans) * group_size
    mixed = torch.empty_like(images)
    for plan, source, target in zip(plans, images.split(group_size), mixed.split(group_size), strict=True):
        partner = source.flip(0)
        if plan.box is not None:
            y0, y1, x0, x1 = plan.box
            target.copy_(source)
            target[:, :, y0:y1, x0:x1] = partner[:, :, y0:y1, x0:x1]
        else:
            torch.mul(source, plan.lam, out=target).add_(partner, alpha=1 - plan.lam)
    return mixed, mix_labels(labels, plans, group_size)


def mix_labels(labels: Tensor, plans: Sequence[MixPlan], group_size: int) -> MixedLabels:
    """Each image's label, its partner's, and the weight of the first; labels int64 [B]."""
    partners = labels.view(len(plans), group_size).flip(1).reshape(-1)
    lam = torch.tensor([plan.lam for plan in plans], dtype=torch.float32).repeat_interleave(group_size)
    return MixedLabels(labels, partners, lam.to(labels.device, non_blocking=True))
