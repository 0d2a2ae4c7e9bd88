"""From the timings of a question's candidates to its answer."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from deit_fast.benchmarks.timing import Timing

MARGIN = 1.02
"""A candidate has to be this many times as fast as the default, or the default stays."""
AGREEING_ROUNDS = 0.75
"""And faster in at least this share of the rounds: one lucky turn decides nothing."""


@dataclass
class Tried:
    """What became of one candidate; plain values for YAML."""

    name: str
    values: dict[str, Any]
    error: float | None = None
    """Against the reference, see the workload's check."""
    images_per_second: float | None = None
    cpu_ms_per_image: float | None = None
    times_default: float | None = None
    """How many times as fast as the first correct candidate: the median over the rounds."""
    fails: str | None = None
    """Why it is not used; None for a correct one."""


@dataclass
class Answer:
    """What was chosen, and from what."""

    question: str
    chosen: str
    values: dict[str, Any]
    judged_by: str
    rounds: int
    given: dict[str, Any]
    """The choices before, under which it was measured."""
    candidates: list[Tried] = field(default_factory=list)
    only_told: bool = False

    def line(self) -> str:
        """For the terminal: what was chosen, by how much, and what became of the others."""
        shown = [self._show(tried) for tried in self.candidates]
        return f"{self.question}: {self.chosen} ({'; '.join(shown)})"

    def _show(self, tried: Tried) -> str:
        if tried.fails is not None:
            return f"{tried.name} not used: {tried.fails}"
        text = f"{tried.name} {tried.images_per_second:,.1f} images/s, {tried.cpu_ms_per_image:,.1f} CPU-ms an image"
        first = next(other for other in self.candidates if other.fails is None)
        return text if tried is first else f"{text}, {tried.times_default:.2f} x"


def speedups(default: Timing, other: Timing, judged_by: str) -> list[float]:
    """How many times as fast as the default, round by round; by `CPU time` or `images/s`."""
    if judged_by == "CPU time":
        return [ours / theirs for ours, theirs in zip(default.cpu_ms, other.cpu_ms, strict=True)]
    ours, theirs = (
        [seconds / images for seconds, images in zip(timing.seconds, timing.images, strict=True)]
        for timing in (default, other)
    )
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def choose(rounds: dict[str, list[float]]) -> str:
    """The fastest by the median of its speedups over the first, if it is so clearly; else the first."""
    first = next(iter(rounds))
    clear = [
        name
        for name, times in rounds.items()
        if statistics.median(times) >= MARGIN and sum(t > 1 for t in times) >= AGREEING_ROUNDS * len(times)
    ]
    return max(clear, key=lambda name: statistics.median(rounds[name]), default=first)


def judge(
    question: str, tried: list[Tried], timings: dict[str, Timing], judged_by: str, given: dict[str, Any]
) -> Answer:
    """Fills in the figures of the candidates that were timed, and chooses."""
    default = next(iter(timings.values()))
    rounds = {name: speedups(default, timing, judged_by) for name, timing in timings.items()}
    for candidate in tried:
        if candidate.name in timings:
            row = timings[candidate.name].row()
            candidate.images_per_second = round(row["images_per_second"], 3)
            candidate.cpu_ms_per_image = round(row["cpu_ms_per_image"], 4)
            candidate.times_default = round(statistics.median(rounds[candidate.name]), 4)
    chosen = choose(rounds)
    values = next(candidate.values for candidate in tried if candidate.name == chosen)
    return Answer(question, chosen, values, judged_by, len(default.images), given, tried)
