"""Which operators and which parts of the model a step's time goes to, from a trace."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from .idle import is_nccl
from .phases import STEP_PHASES
from .trace import MODULE, PHASE, Event, Trace

SHORT_US = 10.0
"""Below it, work counts as short: what it costs is then in good part its launch."""
BACKWARD = "autograd::engine::evaluate_function: "
COMPILED = "Torch-Compiled Region"
RUNTIME_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
RUNTIME_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
UNPINNED = "Pageable"
"""In the name of a copy whose call waits for it, even where it is called asynchronous."""
IN_STEP = tuple(PHASE + phase for phase in STEP_PHASES)


def own_us(event: Event, trace: Trace) -> float:
    """What an operator itself took: of the device where there is one, else of the host."""
    return event.device_us if trace.on_device else event.self_us


def top_operators(trace: Trace, count: int = 25) -> list[dict[str, Any]]:
    """The operators with most own time: ms and calls a step, share of all operators' time."""
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in trace.operators:
        times[event.name] += own_us(event, trace)
        calls[event.name] += 1
    total = sum(times.values()) or 1.0
    names = sorted(times, key=lambda name: -times[name])[:count]
    return [
        {
            "operator": name,
            "self_ms_per_step": times[name] / 1e3 / trace.num_steps,
            "share": times[name] / total,
            "calls_per_step": calls[name] / trace.num_steps,
        }
        for name in names
    ]


def top_kernels(trace: Trace, count: int = 15) -> list[dict[str, Any]]:
    """The device's kernels with most time; empty without a device."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in trace.device:
        times[event.name].append(event.duration_us)
    names = sorted(times, key=lambda name: -sum(times[name]))[:count]
    return [
        {
            "kernel": name,
            "ms_per_step": sum(times[name]) / 1e3 / trace.num_steps,
            "launches_per_step": len(times[name]) / trace.num_steps,
            "mean_us": sum(times[name]) / len(times[name]),
        }
        for name in names
    ]


def module_times(trace: Trace) -> list[dict[str, Any]]:
    """Milliseconds a step of each part of the model, forward and backward apart, and of what is outside of it."""
    forward_group = _group_of_sequence_number(trace)
    times: dict[tuple[str, str], float] = defaultdict(float)
    for event in trace.device if trace.on_device else trace.operators:
        group, direction = _group(event, forward_group)
        times[group, direction] += event.duration_us if trace.on_device else event.self_us
    total = sum(times.values()) or 1.0
    groups: dict[str, float] = defaultdict(float)
    for (group, _), spent in times.items():
        groups[group] += spent
    return [
        {
            "module": group,
            "forward_ms": times[group, "forward"] / 1e3 / trace.num_steps,
            "backward_ms": times[group, "backward"] / 1e3 / trace.num_steps,
            "share": groups[group] / total,
        }
        for group in sorted(groups, key=lambda group: -groups[group])
    ]


def _group_of_sequence_number(trace: Trace) -> dict[int, str]:
    """Which part of the model the forward operator of an autograd node belongs to.

    An operator notes the number of the next node; the last one to note a number is the one that made that node.
    """
    groups: dict[int, str] = {}
    for event in sorted(trace.operators, key=lambda event: event.start_us):
        number = event.args.get("Sequence number", -1)
        if number >= 0 and not event.args.get("Fwd thread id") and not _in_backward(event):
            groups[number] = _group(event, {})[0]
    return groups


def _in_backward(event: Event) -> bool:
    return any(outer.name.startswith(BACKWARD) for outer in event.ancestors())


def _group(event: Event, forward_group: dict[int, str]) -> tuple[str, str]:
    """(part of the model or phase, forward or backward) of an operator, or of a device's work."""
    if is_nccl(event):
        return "all-reduce", "backward"
    for outer in event.ancestors():
        if outer.name.startswith(MODULE):
            return outer.name.removeprefix(MODULE), "forward"
        if outer.name.startswith(COMPILED):
            return "compiled blocks", "forward"
        if outer.name.startswith(BACKWARD):
            if "CompiledFunctionBackward" in outer.name:
                return "compiled blocks", "backward"
            return forward_group.get(outer.args.get("Sequence number", -1), "gradients of weights"), "backward"
        if outer.name.startswith(PHASE):
            return outer.name.removeprefix(PHASE), "forward"
    return "outside of the step: DALI and others", "forward"


def launches(trace: Trace) -> dict[str, Any]:
    """How many launches a step makes and how many are short; on a CPU, the operators that do work themselves."""
    if trace.on_device:
        durations = [event.duration_us for event in trace.device]
        calls = sum(event.name.startswith(RUNTIME_LAUNCHES) for event in trace.host)
    else:
        durations = [event.self_us for event in trace.operators if event.children_us == 0]
        calls = len(durations)
    short = [duration for duration in durations if duration < SHORT_US]
    return {
        "unit": "kernels" if trace.on_device else "operators that call no other",
        "per_step": len(durations) / trace.num_steps,
        "host_launches_per_step": calls / trace.num_steps,
        "short_us": SHORT_US,
        "short_per_step": len(short) / trace.num_steps,
        "short_share_of_count": len(short) / max(1, len(durations)),
        "short_share_of_time": sum(short) / max(1e-9, sum(durations)),
    }


def host_wait_ms(trace: Trace) -> float | None:
    """Milliseconds a step in which the step's host waited for a GPU; None on a CPU.

    Neither the reading of a log step, nor DALI's wait for a batch, nor what DALI's threads wait for.
    """
    if not trace.on_device:
        return None
    unpinned = {event.args.get("correlation", "none") for event in trace.device if UNPINNED in event.name}
    waits = [
        event
        for event in trace.host
        if (event.name in RUNTIME_WAITS or event.args.get("correlation") in unpinned) and _in_step(event)
    ]
    return sum(event.duration_us for event in waits) / 1e3 / trace.num_steps


def _in_step(event: Event) -> bool:
    return any(outer.name in IN_STEP or outer.name.startswith(BACKWARD) for outer in event.ancestors())


def roofline(trace: Trace, watched: list[dict[str, Any]], peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Each watched operator against this device's measured peaks: memory-bound, compute-bound, or neither.

    Time is that of the outermost call of a watched name, with all that it called. `of_roof`: the larger of the shares
    of both peaks that it reached; below a tenth, neither bandwidth nor arithmetic is what it waits for.
    """
    names = {row["operator"] for row in watched}
    times: dict[str, float] = defaultdict(float)
    for event in trace.operators:
        outer = [above.name for above in event.ancestors() if above.name in names]
        if outer:
            times[outer[-1]] += own_us(event, trace)
    ridge = peaks["flops_per_second"] / peaks["bytes_per_second"]
    rows = []
    for row in watched:
        seconds = times[row["operator"]] / 1e6 / trace.num_steps
        if seconds <= 0 or not (row["flops"] or row["bytes"]):
            continue
        flop_rate, byte_rate = row["flops"] / seconds, row["bytes"] / seconds
        of_roof = max(flop_rate / peaks["flops_per_second"], byte_rate / peaks["bytes_per_second"])
        side = "compute" if row["flops"] > ridge * row["bytes"] else "memory"
        rows.append(
            {
                **row,
                "ms_per_step": 1e3 * seconds,
                "gflops_per_second": flop_rate / 1e9,
                "gbytes_per_second": byte_rate / 1e9,
                "flops_per_byte": row["flops"] / row["bytes"] if row["bytes"] else None,
                "of_roof": of_roof,
                "bound": side if of_roof >= 0.1 else "overhead",
            }
        )
    return sorted(rows, key=lambda row: -row["ms_per_step"])
