"""A question about this machine: candidates that give the same numbers, and a workload that checks and times them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from deit_fast.benchmarks.timing import Prepare
from deit_fast.config import Config
from deit_fast.distributed import Ranks
from deit_fast.tuned import is_left_to_us, value_of


@dataclass(frozen=True)
class Candidate:
    """One answer: values of some `section.key`."""

    name: str
    values: dict[str, Any]


class CandidateError(RuntimeError):
    """A candidate that does not give the reference's numbers."""


Repeat = Callable[[int], Prepare]
"""How often the work is repeated in a turn -> the turn."""


class Workload(Protocol):
    """What is computed with each candidate."""

    def check(self, config: Config) -> float:
        """The relative error against the reference; CandidateError when it is too large, or not finite."""
        ...

    def ready(self, config: Config) -> Repeat:
        """Builds what is timed."""
        ...


@dataclass(frozen=True)
class Question:
    """Candidates from the choices made so far, the first being what a run does that was not tuned."""

    name: str
    workload: str
    candidates: Callable[[Config, Ranks], list[Candidate]]
    by_speed: bool = False
    """Judged by images/s on a CPU too, where else CPU time decides."""
    only_told: bool = False
    """The answer is written down, but changes what is learnt, and so is the user's to take."""


def left_to_us(candidates: list[Candidate], config: Config) -> list[Candidate]:
    """The candidates that agree with what the user set; a question with one of them need not be asked."""
    return [
        candidate
        for candidate in candidates
        if all(is_left_to_us(config, key) or value_of(config, key) == value for key, value in candidate.values.items())
    ]
