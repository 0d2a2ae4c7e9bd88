"""Stochastic depth, drawn on the host as a pure function of (seed, step, block, view): however a batch is split over
devices and accumulation steps, the same branches of the same views are dropped (Huang et al. 2016)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deit_fast.dali_pipelines.philox import Stream, uniforms


def keep_probabilities(rate: float, depth: int, schedule: str = "linear") -> np.ndarray:
    """Of each of the 2 * depth residual branches; float64.

    linear: the rate grows from 0 at the first block to `rate` at the last (linspace, as timm); constant: the same at
    every block (DeiT III).
    """
    rates = np.full(depth, rate) if schedule == "constant" else np.linspace(0, rate, depth)
    return 1 - rates.repeat(2)


def draw_drop_path_scale(
    seed: int, step: int, views: Tensor, *, rate: float, depth: int, schedule: str = "linear"
) -> Tensor | None:
    """Independent draws: fp32 [2 * depth, B] on the host, each 0 or 1 / keep probability; None for rate 0."""
    if rate == 0:
        return None
    keep = keep_probabilities(rate, depth, schedule)
    draws = uniforms(seed, Stream.DROP_PATH, step, views.cpu().numpy(), 2 * depth).T
    return torch.from_numpy(((draws < keep[:, None]) / keep[:, None]).astype(np.float32))


def draw_kept_samples(
    seed: int, step: int, views: Tensor, *, group_size: int, rate: float, depth: int, schedule: str = "linear"
) -> list[Tensor]:
    """A fixed share of every mixing group is kept: for each of the 2 * depth branches the kept places of the batch.

    int64 [kept], in ascending order. The number is that of independent draws on average, rounded; which ones are kept
    follows from the same uniform numbers. DINOv2 drops so where the rate is high: a dropped sample then costs nothing.
    """
    draws = uniforms(seed, Stream.DROP_PATH, step, views.cpu().numpy(), 2 * depth).T
    groups = draws.reshape(2 * depth, -1, group_size)
    order = groups.argsort(axis=2, kind="stable")
    offsets = np.arange(groups.shape[1])[:, None] * group_size
    kept = []
    for branch, keep in enumerate(keep_probabilities(rate, depth, schedule)):
        count = max(1, round(group_size * keep))
        kept.append(torch.from_numpy(np.sort((order[branch, :, :count] + offsets).reshape(-1))))
    return kept
