"""How every kernel here becomes an operator of torch, and how one that does not apply says so.

Operators are `torch.library.custom_op`, not `triton_op`: the latter asks for a GPU driver when it is traced, also
where its CPU kernel would run. An operator's body imports triton, so importing this package needs neither it nor a GPU.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .launch import INTERPRETED

HAS_TRITON = importlib.util.find_spec("triton") is not None
OLDEST_ARCHITECTURE = 80
"""On older GPUs the kernels compile, for a minute each, to code that spills or does not fit the shared memory."""


def kernel_op(name: str, on_cpu: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorates the Triton launcher of operator `deit_fast::name`; CPU tensors go to `on_cpu`.

    In Triton's interpreter there is no other kernel than Triton's, so that CPU tensors really run it.
    """

    def register(launcher: Callable[..., Any]) -> Any:
        device_types = None if INTERPRETED else "cuda"
        op = torch.library.custom_op(f"deit_fast::{name}", launcher, mutates_args=(), device_types=device_types)
        if not INTERPRETED:
            op.register_kernel("cpu")(on_cpu)
        return op

    return register


def why_not_on(device: torch.device) -> str | None:
    """What keeps the Triton kernels from running on a device; None: nothing. On a CPU their operators do without."""
    if device.type != "cuda":
        return None
    if not HAS_TRITON:
        return "a machine without the package triton"
    architecture = _architecture(device.index)
    if architecture is not None and architecture < OLDEST_ARCHITECTURE:
        return f"a GPU of compute capability {architecture / 10} (at least {OLDEST_ARCHITECTURE / 10})"
    return None


@torch.compiler.assume_constant_result
def _architecture(index: int | None) -> int | None:
    """Compute capability times ten; None for a fake tensor's GPU, where there is none."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@torch.compiler.assume_constant_result
def say_once(message: str) -> None:
    """A warning that is given once, in eager mode and while torch.compile traces."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=3)


_said: set[str] = set()


def check_backend(backend: str) -> None:
    """ValueError for anything but reference and triton."""
    if backend not in ("reference", "triton"):
        raise ValueError(f"unknown kernel backend {backend}; the backends are reference, triton")
