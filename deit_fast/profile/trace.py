"""A Chrome trace of torch.profiler as events that know their parents and, for device work, the operator behind them.

All that is said about operators, idle time and memory is computed from the trace file, so that it can be computed again
from a kept one, on a machine without the GPU that it was made on.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVICE_KINDS = {"kernel": "compute", "gpu_memcpy": "memory", "gpu_memset": "memory"}
"""The profiler's categories of what runs on a GPU -> what it is; kernels of NCCL are communication."""
PHASE, MODULE = "phase: ", "module: "
"""How the names of our own ranges begin."""


@dataclass(eq=False)
class Event:
    """Something that took time; times in microseconds."""

    name: str
    category: str
    start_us: float
    duration_us: float
    thread: tuple[Any, Any]
    args: dict[str, Any]
    parent: Event | None = None
    children_us: float = 0.0
    kernels: list[Event] = field(default_factory=list)
    """For an operator: the device work that it launched itself."""

    @property
    def end_us(self) -> float:
        """When it was over."""
        return self.start_us + self.duration_us

    @property
    def self_us(self) -> float:
        """Its own time, without that of what it called."""
        return max(0.0, self.duration_us - self.children_us)

    @property
    def device_us(self) -> float:
        """Device time of what it launched itself."""
        return sum(kernel.duration_us for kernel in self.kernels)

    def ancestors(self) -> Iterator[Event]:
        """Itself, then what it was called by, outwards."""
        event: Event | None = self
        while event is not None:
            yield event
            event = event.parent


class Trace:
    """The events of a trace; `on_device`: whether it holds device work, whose time then counts."""

    def __init__(self, content: dict[str, Any]) -> None:
        raw = content["traceEvents"]
        host = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")
        timed = [entry for entry in raw if entry.get("ph") == "X" and "dur" in entry]
        self.host = [_event(entry) for entry in timed if entry.get("cat") in host]
        self.device = [_event(entry) for entry in timed if entry.get("cat") in DEVICE_KINDS]
        self.memory = [entry for entry in raw if entry.get("name") == "[memory]"]
        self.on_device = bool(self.device)
        _nest(self.host)
        self.operators = [event for event in self.host if event.category == "cpu_op"]
        _link(self.host, self.device)
        self.phases = [
            event for event in self.host if event.category == "user_annotation" and event.name.startswith(PHASE)
        ]

    @property
    def num_steps(self) -> int:
        """A step mixes once."""
        return max(1, sum(event.name == PHASE + "mix" for event in self.phases))

    @property
    def window_us(self) -> tuple[float, float]:
        """From the first phase to the end of the last, or of what it launched: the device is behind the host."""
        events = self.phases or self.host
        launched = [kernel for operator in self.operators for kernel in operator.kernels]
        return min(event.start_us for event in events), max(event.end_us for event in [*events, *launched])


def read_trace(path: Path) -> Trace:
    """A trace from its file, .json or .json.gz; ValueError for another file."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            return Trace(json.load(file))
    except (json.JSONDecodeError, gzip.BadGzipFile, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no Chrome trace; give the trace.json that profile wrote") from error


def _event(entry: dict[str, Any]) -> Event:
    thread = (entry.get("pid"), entry.get("tid"))
    return Event(entry["name"], entry["cat"], float(entry["ts"]), float(entry["dur"]), thread, entry.get("args", {}))


def _nest(events: list[Event]) -> None:
    """Gives each event its parent, the innermost of the same thread that encloses it."""
    by_thread: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    for event in events:
        by_thread[event.thread].append(event)
    for thread in by_thread.values():
        thread.sort(key=lambda event: (event.start_us, -event.duration_us))
        open_events: list[Event] = []
        for event in thread:
            while open_events and open_events[-1].end_us < event.end_us:
                open_events.pop()
            if open_events:
                event.parent = open_events[-1]
                event.parent.children_us += event.duration_us
            open_events.append(event)


def _link(host: list[Event], device: list[Event]) -> None:
    """Gives each operator the device work with its External id; else it is that of whoever called the launch."""
    by_id = {
        event.args["External id"]: event for event in host if event.category == "cpu_op" and "External id" in event.args
    }
    by_call = {event.args["correlation"]: event for event in host if "correlation" in event.args}
    for kernel in device:
        launcher = by_id.get(kernel.args.get("External id")) or by_call.get(kernel.args.get("correlation"))
        if launcher is not None:
            kernel.parent = launcher
            owner = next((outer for outer in launcher.ancestors() if outer.category == "cpu_op"), None)
            if owner is not None:
                owner.kernels.append(kernel)
