"""Peak memory of a turn on the device: torch's and DALI's, apart.

The host's is not read: all contenders live side by side in one process and its workers, and share what that holds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from deit_fast.memory import bytes_besides_torch


class PeakMemory(NamedTuple):
    """Bytes; None where there is no such memory."""

    torch: int | None = None
    """Most that torch's allocator held for tensors on the device."""
    dali: int | None = None
    """What others than torch use on the device, more than when the meter was made: DALI's pools, above all."""

    def merged(self, other: PeakMemory) -> PeakMemory:
        """The larger of both, part by part."""
        pairs = zip(self, other, strict=True)
        return PeakMemory(*(max((v for v in pair if v is not None), default=None) for pair in pairs))  # type: ignore[arg-type]


class MemoryMeter:
    """Reads one turn's peaks. Make it when the model is on the device and before a loader is built."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before_loaders = bytes_besides_torch(device) if device.type == "cuda" else 0

    def reset(self) -> None:
        """A turn begins."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def read(self) -> PeakMemory:
        """The peaks since the turn began."""
        if self.device.type != "cuda":
            return PeakMemory()
        dali = max(0, bytes_besides_torch(self.device) - self.before_loaders)
        return PeakMemory(torch.cuda.max_memory_allocated(self.device), dali)
