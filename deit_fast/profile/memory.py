"""Memory of a step: what it holds, how it grows and falls, and what is lost to gaps."""

from __future__ import annotations

import resource
from typing import Any

import torch
from torch import nn

from deit_fast.memory import DeviceMemory
from deit_fast.run_state import RunState

from .trace import PHASE, Trace

TIMELINE_POINTS = 400
DEVICE_TYPES = {"cpu": 0, "cuda": 1}
"""As a trace numbers them."""


def tensor_bytes(tensors: Any) -> int:
    """Bytes of tensors, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def held_bytes(state: RunState, teacher: nn.Module | None) -> dict[str, int]:
    """What stays between two steps, by category."""
    parameters = list(state.student.parameters())
    moments = [
        value
        for values in state.optimizer.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    ]
    return {
        "weights": tensor_bytes([*parameters, *state.student.buffers()]),
        "gradients": tensor_bytes([parameter.grad for parameter in parameters if parameter.grad is not None]),
        "optimizer": tensor_bytes(moments),
        "moving average": tensor_bytes(state.ema.state_dict().values()) if state.ema else 0,
        "teacher": tensor_bytes([*teacher.parameters(), *teacher.buffers()]) if teacher is not None else 0,
    }


def timeline(trace: Trace, device: torch.device) -> list[tuple[float, int, str]]:
    """(ms from the first phase, bytes allocated, phase), at most TIMELINE_POINTS: of each stretch its highest.

    On a CPU what was allocated before the trace began is not counted.
    """
    begin, end = trace.window_us
    points = sorted(
        (float(entry["ts"]), int(entry["args"]["Total Allocated"]))
        for entry in trace.memory
        if entry["args"].get("Device Type") == DEVICE_TYPES[device.type] and begin <= float(entry["ts"]) <= end
    )
    phases = sorted((event.start_us, event.name.removeprefix(PHASE)) for event in trace.phases)
    highest: dict[int, tuple[float, int, str]] = {}
    at = 0
    for stamp, allocated in points:
        while at + 1 < len(phases) and phases[at + 1][0] <= stamp:
            at += 1
        stretch = int((stamp - begin) / max(1e-9, end - begin) * (TIMELINE_POINTS - 1))
        if stretch not in highest or allocated > highest[stretch][1]:
            highest[stretch] = (stamp - begin) / 1e3, allocated, phases[at][1] if phases else ""
    return [highest[stretch] for stretch in sorted(highest)]


def device_memory(on_device: DeviceMemory) -> dict[str, Any]:
    """What a GPU holds and held so far, in bytes: torch's allocator, DALI's pools, others; None each on a CPU."""
    allocator = None
    if on_device.device.type == "cuda":
        stats = torch.cuda.memory_stats(on_device.device)
        allocator = {
            "allocated_peak": stats["allocated_bytes.all.peak"],
            "reserved_peak": stats["reserved_bytes.all.peak"],
            "inactive_split_peak": stats["inactive_split_bytes.all.peak"],
            "fragmentation": fragmentation(stats["allocated_bytes.all.peak"], stats["reserved_bytes.all.peak"]),
            "retries": stats["num_alloc_retries"],
        }
    return {
        "allocator": allocator,
        "dali_on_device": _bytes(on_device.dali_gib),
        "others_on_device": _bytes(on_device.other_gib),
    }


def memory_record(
    trace: Trace, state: RunState, teacher: nn.Module | None, device: torch.device, on_device: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the report says of memory; sizes in bytes. on_device: of `device_memory`."""
    points = timeline(trace, device)
    low, high = min((p[1] for p in points), default=0), max((p[1] for p in points), default=0)
    held = held_bytes(state, teacher)
    return {
        "held": held,
        "activations_and_temporaries": high - low,
        "peak_phase": max(points, key=lambda point: point[1])[2] if points else None,
        "timeline": [list(point) for point in points],
        "process_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **on_device,
    }


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def fragmentation(allocated: int, reserved: int) -> float:
    """Share of what the allocator took from the device that no tensor could use when it mattered most."""
    return 1 - allocated / reserved if reserved else 0.0
