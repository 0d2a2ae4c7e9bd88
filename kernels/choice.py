"""Which fused kernels a run takes: what `runtime.kernels` says, read once when the trainer is built."""

from __future__ import annotations

import torch

from .attention import BACKENDS
from .cpu import library
from .registration import why_not_on

FUSED = ("batch_prep", "add_norm", "gelu_bias", "distill_loss")
"""What `runtime.kernels` names, in the order of a step; attention has a key of its own, `runtime.attention`."""
TUNABLE = ("attention", *FUSED)


def candidates(kernel: str) -> tuple[str, ...]:
    """What may be measured and chosen for a kernel."""
    assert kernel in TUNABLE
    return tuple(name for name in BACKENDS if name != "auto") if kernel == "attention" else ("reference", "triton")


def has_kernel(kernel: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether backend `triton` is more than plain torch there: Triton's kernel on a GPU, a compiled one on a CPU."""
    assert kernel in TUNABLE
    if device.type == "cuda":
        return why_not_on(device) is None
    if kernel == "attention":
        return library.runs_attention() and dtype == torch.bfloat16
    return kernel in ("add_norm", "gelu_bias") and bool(library.levels()) and dtype in library.DTYPES


def triton_kernels(asked: str) -> tuple[str, ...]:
    """The kernels of FUSED that `runtime.kernels` wants fused; ValueError for a name that is none of them.

    asked: reference (none), triton (all), some of FUSED separated by commas, or auto: none, since torch.compile fuses
    plain torch too; on a machine that was tuned, the names measured there have taken its place.
    """
    if asked in ("auto", "reference", "triton"):
        return FUSED if asked == "triton" else ()
    names = [name.strip() for name in asked.split(",")]
    unknown = [name for name in names if name not in FUSED]
    if "attention" in unknown:
        raise ValueError("runtime.kernels names attention, which is chosen by --runtime.attention triton")
    if unknown:
        raise ValueError(
            f"runtime.kernels names {unknown[0] or 'nothing'}; it takes auto, reference, triton, or some of "
            f"{', '.join(FUSED)}, separated by commas"
        )
    return tuple(name for name in FUSED if name in names)


def choose(kernel: str, asked: str) -> str:
    """The backend of one kernel of FUSED, triton or reference, as `runtime.kernels` asks."""
    assert kernel in FUSED
    return "triton" if kernel in triton_kernels(asked) else "reference"
