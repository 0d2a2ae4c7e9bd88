"""What the device does over a step, and what it waits for when it does nothing: arithmetic on intervals of a trace.

On a GPU busy time is that of its kernels and copies. On a CPU, which is host and device at once, it is that of the
operators on the training thread; what is left is Python, and waiting. A collective waits until the last rank has come:
what it takes longer than on the rank where it is shortest is idle time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .trace import DEVICE_KINDS, PHASE, Event, Trace

Intervals = list[tuple[float, float]]
"""Begin and end in microseconds, sorted and apart."""

MEMORY_OPERATORS = ("aten::copy_", "aten::to", "aten::_to_copy", "aten::clone", "aten::contiguous", "Memcpy", "Memset")
GLOO = "gloo:"
REDUCING = ("backward", "all-reduce tail")
"""Phases in which gradients are reduced; gloo also carries the hosts' vote on a stop, which nobody waits for."""
FOR_A_RANK = "waiting for a rank"
CAUSES = {"fetch": "waiting for data", "feed": "waiting for data", "all-reduce tail": FOR_A_RANK}
LAUNCH_BOUND = "the host prepares the next work"
"""Any other phase: launches, Python, or a wait of the host for the device just before."""


def union(intervals: Intervals) -> Intervals:
    """The same time without overlaps."""
    joined: Intervals = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def length(intervals: Intervals) -> float:
    """Sum of the lengths; the intervals are apart."""
    return sum(end - begin for begin, end in intervals)


def minus(intervals: Intervals, taken: Intervals) -> Intervals:
    """What of `intervals` is not in `taken`; both are unions."""
    left: Intervals = []
    i = 0
    for begin, end in intervals:
        while i < len(taken) and taken[i][1] <= begin:
            i += 1
        k = i
        while k < len(taken) and taken[k][0] < end:
            if taken[k][0] > begin:
                left.append((begin, taken[k][0]))
            begin = max(begin, taken[k][1])
            k += 1
        if begin < end:
            left.append((begin, end))
    return left


def overlap(intervals: Intervals, others: Intervals) -> float:
    """Time that both have in common; both are unions."""
    return length(intervals) - length(minus(intervals, others))


def is_nccl(event: Event) -> bool:
    """Whether it is one of NCCL's kernels."""
    return event.category == "kernel" and "nccl" in event.name.lower()


def collectives(trace: Trace) -> list[Event]:
    """NCCL's kernels, or gloo's work for the backward, in their order, which is the same on every rank."""
    if trace.on_device:
        found = [event for event in trace.device if is_nccl(event)]
    else:
        reducing = union([(e.start_us, e.end_us) for e in trace.phases if e.name.removeprefix(PHASE) in REDUCING])
        found = [
            event
            for event in trace.host
            if event.name.startswith(GLOO) and any(begin <= event.start_us < end for begin, end in reducing)
        ]
    return sorted(found, key=lambda event: event.start_us)


def waits_for_ranks(trace: Trace, by_rank_us: Sequence[Sequence[float]]) -> Intervals:
    """When collectives only waited for the last rank. by_rank_us: each rank's durations, in their order.

    Nothing where the ranks did not trace the same collectives.
    """
    own = collectives(trace)
    if any(len(durations) != len(own) for durations in by_rank_us):
        return []
    shortest = [min(durations) for durations in zip(*by_rank_us, strict=True)]
    waits = [(event.start_us, event.end_us - least) for event, least in zip(own, shortest, strict=True)]
    return union([(begin, end) for begin, end in waits if begin < end])


def busy_intervals(trace: Trace) -> dict[str, Intervals]:
    """Kind -> when the device did that."""
    communication = collectives(trace)
    found: dict[str, Intervals] = {"compute": [], "communication": [(e.start_us, e.end_us) for e in communication],
                                   "memory": []}  # fmt: skip
    apart = set(map(id, communication))
    for event in trace.device if trace.on_device else _work_of_a_cpu(trace):
        if id(event) not in apart:
            found[_kind_of(event)].append((event.start_us, event.end_us))
    return {kind: union(intervals) for kind, intervals in found.items()}


def _kind_of(event: Event) -> str:
    if event.category in DEVICE_KINDS:
        return DEVICE_KINDS[event.category]
    return "memory" if event.name.startswith(MEMORY_OPERATORS) else "compute"


def _work_of_a_cpu(trace: Trace) -> list[Event]:
    """The outermost operators of the training thread."""
    main = trace.phases[0].thread if trace.phases else None
    return [event for event in trace.operators if event.thread == main and not _inside_an_operator(event)]


def _inside_an_operator(event: Event) -> bool:
    return event.parent is not None and any(outer.category == "cpu_op" for outer in event.parent.ancestors())


def idle_analysis(trace: Trace, by_rank_us: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    """Shares of the traced steps; compute hides communication, and both hide copies, where they run at once.

    by_rank_us: durations of every rank's `collectives`, from which follows what of them is waiting for a rank.
    """
    window = [trace.window_us]
    total = length(window) or 1.0
    outside = minus([(float("-inf"), float("inf"))], window)
    busy = {kind: minus(intervals, outside) for kind, intervals in busy_intervals(trace).items()}
    waits = waits_for_ranks(trace, by_rank_us) if by_rank_us else []
    compute = busy["compute"]
    communication = minus(minus(busy["communication"], waits), compute)
    memory = minus(busy["memory"], union(compute + communication))
    idle = minus(window, union(compute + communication + memory))
    causes = {cause: overlap(minus(idle, waits), intervals) / total for cause, intervals in _by_cause(trace).items()}
    if waits:
        causes[FOR_A_RANK] = causes.get(FOR_A_RANK, 0.0) + overlap(idle, waits) / total
    return {
        "ms_per_step": total / 1e3 / trace.num_steps,
        "compute": length(compute) / total,
        "communication": length(communication) / total,
        "memory": length(memory) / total,
        "idle": length(idle) / total,
        "idle_causes": causes,
    }


def _by_cause(trace: Trace) -> dict[str, Intervals]:
    causes: dict[str, Intervals] = {}
    for event in trace.phases:
        cause = CAUSES.get(event.name.removeprefix(PHASE), LAUNCH_BOUND)
        causes.setdefault(cause, []).append((event.start_us, event.end_us))
    return {cause: union(intervals) for cause, intervals in causes.items()}
