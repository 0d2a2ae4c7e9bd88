"""Where a step's time goes, by marks at the borders of its phases: clocks on a CPU, events on a CUDA stream.

    fetch (feed in it) -> mix -> teacher -> forward -> loss -> backward -> all-reduce tail -> optimizer -> EMA -> log

A mark says "from here on it is this phase", so the phases of a step add up to the step. On CUDA a phase has two times:
the host's, and the device's, which includes that the device waited there for the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

PHASES = (
    "fetch", "feed", "mix", "teacher", "forward", "loss", "backward", "all-reduce tail", "optimizer", "EMA", "log",
)  # fmt: skip
"""In the order of a step. feed: the loader's callback inside `fetch`, which draws the random choices and hands over
what was read ahead; all-reduce tail: from this rank's last gradient until all ranks' mean is there; log: the rest of
the loop."""

STEP_PHASES = ("mix", "teacher", "forward", "loss", "backward", "optimizer", "EMA")
"""In which the host of a sound run never waits for a GPU."""

RECORDED, BARE, BETWEEN = "recorded", "bare", "between"
"""Kinds of step: with all marks, and with that of its beginning alone, to see what the marks cost. Between two steps
windows open and close, which is no step's time: starting a profiler takes long."""


class Mark(NamedTuple):
    """The beginning of a phase."""

    phase: str
    host_s: float
    event: Any
    """torch.cuda.Event of the current stream; None on a CPU."""


class Span(NamedTuple):
    """Work beside the phases: an all-reduce during the backward, a teacher on its own stream."""

    name: str
    begin: Mark
    end: Mark


@dataclass
class StepMarks:
    """One step: its number in the run, its kind, and its marks."""

    number: int
    kind: str
    marks: list[Mark] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


class Phases:
    """Collects the marks of steps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[StepMarks] = []
        self.current = "log"
        self.annotate: Callable[[str], None] = lambda _phase: None
        """Called with each phase as it begins: ranges for a trace or for Nsight."""
        self._event = _recorded_event if device.type == "cuda" else _no_event

    def start_step(self, number: int, kind: str) -> None:
        """A step begins by asking for its batch."""
        self.steps.append(StepMarks(number, kind))
        self.steps[-1].marks.append(self.mark("fetch" if kind != BARE else "bare step"))

    def mark(self, phase: str) -> Mark:
        """A mark of now, which is not kept."""
        self.current = phase
        self.annotate(phase)
        return Mark(phase, time.perf_counter(), self._event())

    def enter(self, phase: str) -> None:
        """From here on it is this phase."""
        if phase == self.current:
            return
        if not self.steps or self.steps[-1].kind == BARE:
            self.current = phase
            return
        self.steps[-1].marks.append(self.mark(phase))

    def begin_span(self) -> Mark:
        """The beginning of work beside the phases, on the current stream."""
        return Mark("", time.perf_counter(), self._event())

    def end_span(self, name: str, begin: Mark) -> None:
        """Its end; it belongs to the step in which it ends."""
        if self.steps and self.steps[-1].kind != BARE:
            self.steps[-1].spans.append(Span(name, begin, self.begin_span()))

    def around(self, part: Callable[..., Any], phase: str, then: str) -> Callable[..., Any]:
        """The part of a step with a mark before it, and one of the phase that follows after it."""

        def marked(*arguments: Any, **named: Any) -> Any:
            self.enter(phase)
            result = part(*arguments, **named)
            self.enter(then)
            return result

        return marked


def _no_event() -> None:
    return None


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(begin: Mark, end: Mark, *, on_device: bool) -> float:
    """From one mark to another."""
    if on_device:
        return float(begin.event.elapsed_time(end.event))
    return 1e3 * (end.host_s - begin.host_s)


def phase_times(marks: list[Mark], end: Mark, *, on_device: bool) -> dict[str, float]:
    """Milliseconds of each phase of a step that ends at `end`; a phase that came several times is summed."""
    times: dict[str, float] = {}
    for begin, following in zip(marks, [*marks[1:], end], strict=True):
        times[begin.phase] = times.get(begin.phase, 0.0) + milliseconds(begin, following, on_device=on_device)
    return times


def describe_steps(phases: Phases) -> list[dict[str, Any]]:
    """The finished steps as plain numbers (ms, from the step's beginning): one dictionary each; waits for the device.

    `host_ms` and, on CUDA, `device_ms`: of each phase; a bare step has `total_ms` alone.
    """
    on_device = phases.device.type == "cuda"
    if on_device:
        torch.cuda.synchronize(phases.device)
    described = []
    for step, following in zip(phases.steps, phases.steps[1:], strict=False):
        begin, end = step.marks[0], following.marks[0]
        row: dict[str, Any] = {
            "step": step.number,
            "kind": step.kind,
            "total_ms": milliseconds(begin, end, on_device=on_device),
        }
        if step.kind != BARE:
            row["host_ms"] = phase_times(step.marks, end, on_device=False)
            row["device_ms"] = phase_times(step.marks, end, on_device=True) if on_device else None
            row["marks"] = [[mark.phase, milliseconds(begin, mark, on_device=on_device)] for mark in step.marks]
            row["spans"] = [
                [span.name, *(milliseconds(begin, mark, on_device=on_device) for mark in (span.begin, span.end))]
                for span in step.spans
            ]
        described.append(row)
    return described


def mark_cost_us(device: torch.device, count: int = 2000) -> float:
    """What one mark costs the host, in microseconds: measured here and now."""
    phases = Phases(device)
    phases.start_step(0, RECORDED)
    start = time.perf_counter()
    for _ in range(count // 2):
        phases.enter("mix")
        phases.enter("log")
    return 1e6 * (time.perf_counter() - start) / count
