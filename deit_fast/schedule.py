"""The learning rate over the epochs, as the official loop sets it."""

from __future__ import annotations

import math

from .config import ScheduleConfig


def learning_rate(epoch: int, schedule: ScheduleConfig, peak_lr: float) -> float:
    """The rate of the whole epoch `epoch` (from 0): f(max(epoch - 1, 0)).

    f is timm's: linear warm-up, then a cosine over all epochs, not shifted by the warm-up. The official loop steps the
    scheduler after each epoch with that epoch's own number, so it lags by one; results were published with that.
    """
    t = max(epoch - 1, 0)
    warmup_lr, min_lr = schedule.warmup_lr, schedule.min_lr
    if t < schedule.warmup_epochs:
        return warmup_lr + t * (peak_lr - warmup_lr) / schedule.warmup_epochs
    return min_lr + 0.5 * (peak_lr - min_lr) * (1 + math.cos(math.pi * t / schedule.epochs))
