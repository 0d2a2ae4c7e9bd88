"""Two runs side by side: the ratio of medians with its confidence interval, and whether it is beyond noise.

The interval is the percentile bootstrap over turns (Efron 1979): the turns of each run are drawn again, independently
and with replacement, RESAMPLES times, and the ratio of the medians is taken each time; the middle 95 % of these ratios
is the interval. A difference counts as beyond noise when the interval leaves 1 out. What turns cannot show, such as a
machine that is slower today, is not in it: compare runs of one machine, and look at how the environments differ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deit_fast.bench_records import Record

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEWEST_TURNS = 5
"""Below it nothing is called beyond noise. Of 1,000 simulated pairs of equal runs, normal or skewed, 2.4-4.6 % were
called different with 5 to 20 turns, but 7 % with 4 and 10 % with 3."""
NEVER_THE_SAME = ("load_average_1_min", "gpu.clocks.sm", "gpu.temperature.gpu")
"""Of the environment: they change from minute to minute, and are shown in the record only."""


class Interval(NamedTuple):
    """A ratio, run B over run A, with its confidence interval."""

    ratio: float
    low: float
    high: float
    turns: int
    """Of the run with fewer."""

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves 1 out, by enough turns to say so."""
        return self.turns >= FEWEST_TURNS and not self.low <= 1 <= self.high


class Comparison(NamedTuple):
    """A contender that both runs timed."""

    workload: str
    name: str
    before: float
    after: float
    """Images/s, medians."""
    speed: Interval
    cpu: Interval | None
    """CPU-ms per image; None where it was not measured."""


def ratio_interval(before: list[float], after: list[float], seed: int = 0) -> Interval:
    """Median of `after` over median of `before`; the values of turns, above 0."""
    generator = np.random.default_rng(seed)
    medians = [
        np.median(generator.choice(np.asarray(values), (RESAMPLES, len(values))), axis=1) for values in (after, before)
    ]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians[0] / medians[1], (tail, 100 - tail)).tolist()
    ratio = float(np.median(after) / np.median(before))
    return Interval(ratio, low, high, min(len(before), len(after)))


def compare_rows(before: Record, after: Record) -> list[Comparison]:
    """The contenders that are in both records, in the order of the first."""
    others = {(row["workload"], row["name"]): row for row in after["rows"]}
    found = []
    for row in before["rows"]:
        other = others.get((row["workload"], row["name"]))
        if other is None or not (row.get("turn_images_per_second") and other.get("turn_images_per_second")):
            continue
        speed = ratio_interval(row["turn_images_per_second"], other["turn_images_per_second"])
        cpu = _both(row, other, "turn_cpu_ms_per_image")
        speeds = row["images_per_second"], other["images_per_second"]
        found.append(Comparison(row["workload"], row["name"], *speeds, speed, cpu and ratio_interval(*cpu)))
    return found


def _both(row: Record, other: Record, key: str) -> tuple[list[float], list[float]] | None:
    """The turns of both; None where one has none, or a turn too short for the clock."""
    values = row[key], other[key]
    return values if all(values) and all(map(all, values)) else None


def differing_facts(before: Record, after: Record, section: str) -> list[tuple[str, Any, Any]]:
    """(key, before, after) for each key of `config` or `environment` that differs, nested keys with dots."""
    one, other = flat(before[section]), flat(after[section])
    keys = [key for key in {**one, **other} if key not in NEVER_THE_SAME]
    return [(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
