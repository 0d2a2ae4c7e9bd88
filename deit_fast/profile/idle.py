"""What the device does over a step, and what it waits for when it does nothing: arithmetic on intervals of a trace.

On a GPU busy time is that of its kernels and copies. On a CPU, which is host and device at once, it is that of the
operators on the training thread; what is left is Python, and waiting.
"""

from __future__ import annotations

from typing import Any

from .trace import DEVICE_KINDS, PHASE, Event, Trace

Intervals = list[tuple[float, float]]
"""Begin and end in microseconds, sorted and apart."""

MEMORY_OPERATORS = ("aten::copy_", "aten::to", "aten::_to_copy", "aten::clone", "aten::contiguous", "Memcpy", "Memset")
COMMUNICATION = ("nccl", "c10d::", "gloo:", "ncclDevKernel")
CAUSES = {
    "fetch": "waiting for data",
    "feed": "waiting for data",
    "all-reduce tail": "waiting for a rank",
}
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


def kind_of(event: Event) -> str:
    """compute, communication or memory."""
    if event.name.startswith(COMMUNICATION) or "nccl" in event.name.lower():
        return "communication"
    if event.category in DEVICE_KINDS:
        return DEVICE_KINDS[event.category]
    return "memory" if event.name.startswith(MEMORY_OPERATORS) else "compute"


def busy_intervals(trace: Trace) -> dict[str, Intervals]:
    """Kind -> when the device did that."""
    if trace.on_device:
        events = trace.device
    else:
        main = trace.phases[0].thread if trace.phases else None
        outermost = [event for event in trace.operators if not _inside_an_operator(event)]
        events = [event for event in outermost if event.thread == main or kind_of(event) == "communication"]
    found: dict[str, Intervals] = {"compute": [], "communication": [], "memory": []}
    for event in events:
        found[kind_of(event)].append((event.start_us, event.end_us))
    return {kind: union(intervals) for kind, intervals in found.items()}


def _inside_an_operator(event: Event) -> bool:
    return event.parent is not None and any(outer.category == "cpu_op" for outer in event.parent.ancestors())


def idle_analysis(trace: Trace) -> dict[str, Any]:
    """Shares of the traced steps; compute hides communication, and both hide copies, where they run at once."""
    window = [trace.window_us]
    total = length(window) or 1.0
    outside = minus([(float("-inf"), float("inf"))], window)
    busy = {kind: minus(intervals, outside) for kind, intervals in busy_intervals(trace).items()}
    compute = busy["compute"]
    communication = minus(busy["communication"], compute)
    memory = minus(busy["memory"], union(compute + communication))
    idle = minus(window, union(compute + communication + memory))
    causes: dict[str, float] = {}
    for cause, intervals in _by_cause(trace).items():
        causes[cause] = overlap(idle, intervals) / total
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
