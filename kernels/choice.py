"""Which implementation of a kernel a run uses: as the user says, else as measured on this GPU, else plain torch."""

from __future__ import annotations

from collections.abc import Mapping

from .attention import BACKENDS

TUNABLE = ("attention", "batch_prep", "add_norm", "gelu_bias", "distill_loss")


def candidates(kernel: str) -> tuple[str, ...]:
    """What may be measured and chosen for a kernel."""
    assert kernel in TUNABLE
    return tuple(name for name in BACKENDS if name != "auto") if kernel == "attention" else ("reference", "triton")


def choose(kernel: str, asked: str, tuned: Mapping[str, str] | None = None) -> str:
    """The backend of `kernel`.

    asked: runtime.kernels, or runtime.attention for attention. `auto` takes tuned[kernel], which `deit-fast tune`
    measured on this GPU; without it, plain torch: reference, and for attention auto (sdpa). ValueError for a tuned
    backend that there is not, which a file of another version may name.
    """
    assert kernel in TUNABLE
    if asked != "auto":
        return asked
    found = (tuned or {}).get(kernel)
    if found is None:
        return "auto" if kernel == "attention" else "reference"
    if found not in candidates(kernel):
        raise ValueError(
            f"the tuned file says {found} for {kernel}, which takes {', '.join(candidates(kernel))}; "
            "run deit-fast tune again"
        )
    return found
