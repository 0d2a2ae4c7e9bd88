"""Asks the questions one after another, within a budget of time."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from deit_fast.benchmarks.first_line import first_line
from deit_fast.benchmarks.timing import Contender, Prepare, Timing, Turn, time_in_turns
from deit_fast.config import Config
from deit_fast.distributed import Ranks
from deit_fast.memory import is_out_of_memory
from deit_fast.tuned import with_values

from .answer import Answer, Tried, judge
from .journal import ENDED, Journal
from .question import Candidate, Question, Repeat, Workload, left_to_us

WARM_UPS = 3
"""Compilers, autotuners and CUDA graphs are done after them."""
SECONDS_OF_A_TURN = 0.3
TURNS = (4, 15)
"""At least and at most."""
SHARE_OF_THE_REST = 0.25
"""Of the time left, for the turns of one question."""


class Ready(NamedTuple):
    """A candidate that is correct and warm."""

    repeat: Repeat
    seconds: float
    """Of one piece of its work."""


class TurnError(RuntimeError):
    """Memory ran out in the turn of a candidate, which had enough when it was alone."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass(frozen=True)
class Search:
    """Coordinate descent: each question is answered by measurement, with the answers before it in place."""

    config: Config
    ranks: Ranks
    workloads: Mapping[str, Workload]
    journal: Journal
    deadline: float
    """Of time.monotonic(); what is under way then is finished, and no more is begun."""
    say: Callable[[str], None]

    def run(self, questions: list[Question]) -> dict[str, Any]:
        """The chosen values; what time did not suffice for is in journal.left."""
        chosen: dict[str, Any] = {}
        self.journal.left = []
        for question in questions:
            candidates = self.candidates(question, chosen)
            if not candidates:
                continue
            answer = self.journal.kept(question.name, [candidate.name for candidate in candidates], dict(chosen))
            if answer is None and not self.journal.left:
                answer = self.ask(question, candidates, chosen)
            if answer is None:
                self.journal.left.append(question.name)
                continue
            self.journal.keep(answer)
            self.say(answer.line())
            if not question.only_told:
                chosen |= answer.values
        self.journal.write()
        return chosen

    def candidates(self, question: Question, chosen: dict[str, Any]) -> list[Candidate]:
        """Those of a question, where there is something to choose and something to measure it with."""
        found = question.candidates(with_values(self.config, chosen), self.ranks)
        if not question.only_told:
            found = left_to_us(found, self.config)
        return found if len(found) > 1 and question.workload in self.workloads else []

    def ask(self, question: Question, candidates: list[Candidate], chosen: dict[str, Any]) -> Answer | None:
        """Checks all, then times the correct ones in turns; None when time ran out. RuntimeError when none is right."""
        tried = [Tried(candidate.name, candidate.values) for candidate in candidates]
        ready: dict[str, Ready] = {}
        for one in tried:
            if time.monotonic() > self.deadline:
                return None
            if self.journal.has_ended(question.name, one.name):
                one.fails = ENDED
                continue
            with self.journal.trying(question.name, one.name):
                got_ready = try_one(
                    one, with_values(self.config, chosen | one.values), self.workloads[question.workload]
                )
            if got_ready is not None:
                ready[one.name] = got_ready
            elif not device_works(self.ranks):
                self.give_up(question, one)
        if not ready:
            raise RuntimeError(f"no candidate for {question.name} works here: {tried[0].fails}")
        timings = self.time_what_fits(tried, ready)
        by_cpu_time = self.ranks.device.type == "cpu" and not question.by_speed
        answer = judge(question.name, tried, timings, "CPU time" if by_cpu_time else "images/s", dict(chosen))
        answer.only_told = question.only_told
        ready.clear()
        free_memory(self.ranks)
        return answer

    def time_what_fits(self, tried: list[Tried], ready: dict[str, Ready]) -> dict[str, Timing]:
        """Of the candidates that are ready; one that finds no memory beside the others is told, and left out."""
        while True:
            try:
                return time_ready(ready, self.deadline)
            except TurnError as error:
                if len(ready) == 1:
                    raise
                next(one for one in tried if one.name == error.name).fails = str(error)
                del ready[error.name]
            collect_memory(self.ranks)  # when the error, which holds its turn's tensors, is gone

    def give_up(self, question: Question, one: Tried) -> None:
        """RuntimeError: after an illegal access no call of this process works, but those of the next will."""
        self.journal.note_ended(question.name, one.name)
        raise RuntimeError(
            f"{one.name} ({question.name}) failed and the device with it ({one.fails}); run deit-fast tune again, it "
            "goes on without it"
        )


def try_one(one: Tried, config: Config, workload: Workload) -> Ready | None:
    """Checks and warms up a candidate; None, with the reason in `fails`, for one that does not work.

    TypeError and NameError are mistakes of the program, not of a candidate, and end it.
    """
    try:
        one.error = float(f"{workload.check(config):.3g}")
        repeat = workload.ready(config)
        for _ in range(WARM_UPS):
            turn = repeat(1)()
            start = time.perf_counter()
            turn()
            seconds = time.perf_counter() - start
    except (TypeError, NameError):
        raise
    except Exception as error:  # noqa: BLE001 - compilers and drivers fail with anything; it is told, and not chosen
        one.fails = first_line(error)
        return None
    return Ready(repeat, seconds)


def time_ready(ready: dict[str, Ready], deadline: float) -> dict[str, Timing]:
    """Timings by name, in interleaved turns, as many as the time allows. TurnError: memory ran out in one."""
    counts = {name: max(1, math.ceil(SECONDS_OF_A_TURN / max(one.seconds, 1e-6))) for name, one in ready.items()}
    round_seconds = sum(counts[name] * one.seconds for name, one in ready.items())
    budget = SHARE_OF_THE_REST * (deadline - time.monotonic())
    turns = max(TURNS[0], min(TURNS[1], int(budget / round_seconds)))
    begun: list[str] = []

    def noted(name: str, prepare: Prepare) -> Prepare:
        def begin() -> Turn:
            begun.append(name)
            return prepare()

        return begin

    contenders = {Contender("tune", name): noted(name, one.repeat(counts[name])) for name, one in ready.items()}
    try:
        timings = time_in_turns(contenders, turns, warm_up_turns=0)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TurnError(begun[-1], first_line(error)) from None
    return {contender.name: timing for contender, timing in timings.items()}


def device_works(ranks: Ranks) -> bool:
    """Whether the device still answers: after an illegal access, no call of the process does."""
    if ranks.device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(ranks.device)
    except RuntimeError:
        return False
    collect_memory(ranks)
    return True


def free_memory(ranks: Ranks) -> None:
    """Gives back what all candidates of a question took."""
    if "torch._dynamo" in sys.modules:  # whose import takes 4 CPU-s
        torch.compiler.reset()
    collect_memory(ranks)


def collect_memory(ranks: Ranks) -> None:
    """Gives back what a candidate took that failed; the others stay compiled."""
    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
