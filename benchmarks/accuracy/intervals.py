"""95 % confidence intervals of a mean over few seeds, by Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; above 15 the last one is a little too wide."""


class Interval(NamedTuple):
    """A mean, and where the true one lies in 95 of 100 experiments; without a second value nothing is known of it."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """Of independent values that are about normal: one for each seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    t = T_975[min(len(values) - 1, len(T_975)) - 1]
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def difference(better: Sequence[float], other: Sequence[float]) -> Interval:
    """Of pairs that share a seed, and so their order of images and their draws."""
    return interval([a - b for a, b in zip(better, other, strict=True)])


def verdict(found: Interval) -> str:
    """Whether a difference is beyond what chance does."""
    if found.low is None or found.high is None:
        return "not known from one seed"
    if found.low > 0:
        return "yes"
    return "no, the reverse" if found.high < 0 else "not told apart"
