"""Asks the questions one after another, within a budget of time."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from deit_fast.benchmarks.timing import Contender, time_in_turns
from deit_fast.config import Config
from deit_fast.distributed import Ranks
from deit_fast.tuned import with_values

from .answer import Answer, Tried, as_tried, judge
from .journal import ENDED, Journal
from .question import Candidate, Question, Repeat, Workload, left_to_us

WARM_UPS = 3
"""Compilers, autotuners and CUDA graphs are done after them."""
SECONDS_OF_A_TURN = 0.3
TURNS = (4, 15)
"""At least and at most."""
SHARE_OF_THE_REST = 0.25
"""Of the time left, for the turns of one question."""


def tune(
    config: Config,
    ranks: Ranks,
    questions: list[Question],
    workloads: Mapping[str, Workload],
    journal: Journal,
    deadline: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The chosen values; what time did not suffice for is in journal.left. deadline: of time.monotonic()."""
    chosen: dict[str, Any] = {}
    journal.left = []
    for question in questions:
        candidates = to_ask(question, config, with_values(config, chosen), ranks)
        if not candidates or question.workload not in workloads:
            continue
        answer = journal.kept(question.name, [candidate.name for candidate in candidates], dict(chosen))
        if answer is None and not journal.left:
            answer = ask(question, candidates, config, chosen, ranks, workloads[question.workload], journal, deadline)
        if answer is None:
            journal.left.append(question.name)
            continue
        journal.keep(answer)
        say(answer.line())
        if not question.only_told:
            chosen |= answer.values
    journal.write()
    return chosen


def to_ask(question: Question, config: Config, current: Config, ranks: Ranks) -> list[Candidate]:
    """The candidates, where there is something to choose."""
    candidates = question.candidates(current, ranks)
    if not question.only_told:
        candidates = left_to_us(candidates, config)
    return candidates if len(candidates) > 1 else []


def ask(
    question: Question,
    candidates: list[Candidate],
    config: Config,
    chosen: dict[str, Any],
    ranks: Ranks,
    workload: Workload,
    journal: Journal,
    deadline: float,
) -> Answer | None:
    """Checks all, then times the correct ones in turns; None when time ran out. RuntimeError when none is correct."""
    tried = [as_tried(candidate) for candidate in candidates]
    ready: dict[str, tuple[Repeat, float]] = {}
    for one in tried:
        if time.monotonic() > deadline:
            return None
        if journal.has_ended(question.name, one.name):
            one.fails = ENDED
            continue
        with journal.trying(question.name, one.name):
            try_one(one, with_values(config, chosen | one.values), workload, ready)
        if one.fails is not None and not device_works(ranks):
            journal.note_ended(question.name, one.name)
            raise RuntimeError(
                f"{one.name} ({question.name}) failed and the device with it ({one.fails}); run deit-fast tune again, "
                "it goes on without it"
            )
    if not ready:
        raise RuntimeError(f"no candidate for {question.name} works here: {tried[0].fails}")
    judged_by = "CPU time" if ranks.device.type == "cpu" and not question.by_speed else "images/s"
    timings = time_ready(ready, deadline)
    answer = judge(question.name, tried, timings, judged_by, dict(chosen))
    answer.only_told = question.only_told
    del ready
    free_memory(ranks)
    return answer


def try_one(one: Tried, config: Config, workload: Workload, ready: dict[str, tuple[Repeat, float]]) -> None:
    """Checks and warms up a candidate: into `ready` with the seconds of one piece of work, or why not into `fails`."""
    try:
        one.error = float(f"{workload.check(config):.3g}")
        repeat = workload.ready(config)
        for _ in range(WARM_UPS):
            turn = repeat(1)()
            start = time.perf_counter()
            turn()
            seconds = time.perf_counter() - start
        ready[one.name] = repeat, seconds
    except Exception as error:  # noqa: BLE001 - compilers and drivers fail with anything; it is told, and not chosen
        one.fails = first_line(error)


def first_line(error: BaseException) -> str:
    """One line of an error, which may be a page of a compiler's."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def time_ready(ready: dict[str, tuple[Repeat, float]], deadline: float) -> dict[str, Any]:
    """Timings by name, in interleaved turns, as many as the time allows."""
    counts = {name: max(1, math.ceil(SECONDS_OF_A_TURN / max(seconds, 1e-6))) for name, (_, seconds) in ready.items()}
    round_seconds = sum(counts[name] * seconds for name, (_, seconds) in ready.items())
    budget = SHARE_OF_THE_REST * (deadline - time.monotonic())
    turns = max(TURNS[0], min(TURNS[1], int(budget / round_seconds)))
    contenders = {Contender("tune", name): repeat(counts[name]) for name, (repeat, _) in ready.items()}
    timings = time_in_turns(contenders, turns, warm_up_turns=0)
    return {contender.name: timing for contender, timing in timings.items()}


def device_works(ranks: Ranks) -> bool:
    """Whether the device still answers: after an illegal access, no call of the process does."""
    if ranks.device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(ranks.device)
    except RuntimeError:
        return False
    free_memory(ranks)
    return True


def free_memory(ranks: Ranks) -> None:
    """Gives back what the last candidates took."""
    if "torch._dynamo" in sys.modules:  # whose import takes 4 CPU-s
        torch.compiler.reset()
    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
