"""What this device can do, measured: arithmetic of a matrix product, and bandwidth of a copy."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}
"""Several times the last cache (an H100's L2: 50 MB; a server's L3: some tens), so that it is memory that answers."""


def measure_peaks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of a square product in `dtype`, and bytes/s (read + written) of a copy; the best of several each."""
    side = MATRIX_SIDE[device.type]
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(COPIED_BYTES[device.type], device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "flops_per_second": 2 * side**3 / shortest_s(lambda: a @ b, device),
        "bytes_per_second": 2 * source.numel() / shortest_s(lambda: target.copy_(source), device),
    }


def shortest_s(work: Callable[[], object], device: torch.device, turns: int = 3) -> float:
    """Seconds of the fastest of some turns, after one that is not counted."""
    shortest = float("inf")
    for turn in range(turns + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        if turn:
            shortest = min(shortest, time.perf_counter() - start)
    return shortest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
