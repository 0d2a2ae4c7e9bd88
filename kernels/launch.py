"""How every Triton kernel here is launched, and how a launch is written down without a GPU.

`launch` starts a kernel on CUDA tensors (or in Triton's interpreter, on CPU tensors). Inside `recording`, launchers are
called with meta tensors and their launches are noted instead: kernel, grid, arguments and options, exactly as a GPU of
that architecture would get them. `resources.py` compiles what was noted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs kernels in its interpreter, on CPU tensors; the variable has to be set before triton is imported."""
PLANNED_SMS = {80: 108, 90: 132, 100: 148, 120: 170}
"""Multiprocessors of an A100, an H100 SXM, a B200 and an RTX 5090; for launches that are only written down."""


@dataclass(frozen=True)
class Launch:
    """One launch, in the caller's words."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        return self.kernel.__name__


_recorder: tuple[int, list[Launch]] | None = None


@contextmanager
def recording(architecture: int) -> Iterator[list[Launch]]:
    """Launches on meta tensors are appended to the list, as for `architecture` (80, 90, 100, 120)."""
    global _recorder
    assert _recorder is None, "one recording at a time"
    launches: list[Launch] = []
    _recorder = (architecture, launches)
    try:
        yield launches
    finally:
        _recorder = None


def architecture_of(tensor: Tensor) -> int:
    """Compute capability times ten of the tensor's device; 80 in the interpreter."""
    if _recorder is not None:
        return _recorder[0]
    if tensor.device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def multiprocessors_of(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device; 2 in the interpreter, so that sums over programs are tested."""
    if _recorder is not None:
        return PLANNED_SMS[_recorder[0]]
    if tensor.device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, num_stages: int = 1, **constants: Any
) -> None:
    """Starts the kernel; under `recording`, notes the launch."""
    if _recorder is not None:
        _recorder[1].append(Launch(kernel, grid, arguments, constants, num_warps, num_stages))
        return
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    if device.type != "cuda":  # the interpreter
        kernel[grid](*arguments, **constants)
        return
    with torch.cuda.device(device):  # Triton launches on the current device, which need not be the tensors'
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)
