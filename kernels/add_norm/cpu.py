"""Residual add and LayerNorm on a CPU: compiled loops, a row at a time in the nearest cache; else the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from deit_fast.kernels.cpu import library

from .reference import add_norm_backward_reference, add_norm_reference, statistics


def forward_on_cpu(
    x: Tensor, branch: Tensor, weight: Tensor, shift: Tensor, bias: Tensor | None, gamma: Tensor | None,
    drop_path: Tensor | None, slot: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x' [B, N, C], y [B, N, C], mean and 1 / standard deviation [B, N]."""
    if not _takes(x, branch, slot, weight, shift, bias, gamma, drop_path):
        total, y = add_norm_reference(x, branch, weight, shift, bias, gamma, drop_path, slot, eps)
        return total, y, *statistics(total, eps)
    total, y = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=branch.dtype)
    mean, rstd = (torch.empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    tensors = {"x": x, "branch": branch, "weight": weight, "shift": shift, "drop_path": drop_path, "slot": slot}
    tensors |= {**_bias_and_gamma(bias, gamma, weight), "total": total, "y": y, "mean": mean, "rstd": rstd}
    library.call("add_norm", _task(x, branch.dtype, eps), tensors, backward=False)
    return total, y, mean, rstd


def backward_on_cpu(
    grad_total: Tensor | None, grad_y: Tensor, total: Tensor, mean: Tensor, rstd: Tensor, branch: Tensor | None,
    weight: Tensor, bias: Tensor | None, gamma: Tensor | None, drop_path: Tensor | None, slot: Tensor | None,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x and of the branch's `kept` samples, and [4, C] of weight, shift, bias and gamma."""
    grad_total = None if grad_total is None else grad_total.to(total.dtype)
    if not _takes(total, grad_y, slot, weight, bias, gamma, drop_path):
        return add_norm_backward_reference(
            grad_total, grad_y, total, mean, rstd, branch, weight, bias, gamma, drop_path, slot, kept
        )
    task = _task(total, grad_y.dtype, eps=0.0)
    grad_x, grad_branch = (
        torch.empty(total.shape, dtype=total.dtype),
        torch.empty(kept, *total.shape[1:], dtype=grad_y.dtype),
    )
    sums = library.partial_sums(task.rows, 4, task.width)
    tensors = {"grad_total": grad_total, "grad_y": grad_y, "total": total, "mean": mean, "rstd": rstd, "slot": slot}
    tensors |= {**_bias_and_gamma(bias, gamma, weight), "weight": weight, "drop_path": drop_path, "sums": sums}
    tensors |= {"branch": None if gamma is None else branch, "grad_x": grad_x, "grad_branch": grad_branch}
    library.call("add_norm", task, tensors, backward=True)
    return grad_x, grad_branch, sums.sum(0)


def _task(x: Tensor, branch_dtype: torch.dtype, eps: float) -> library.AddNorm:
    batch, tokens, width = x.shape
    return library.AddNorm(
        rows=batch * tokens,
        tokens=tokens,
        width=width,
        eps=eps,
        dtype=library.DTYPES[x.dtype],
        branch_dtype=library.DTYPES[branch_dtype],
        level=library.best_level(),
    )


def _bias_and_gamma(bias: Tensor | None, gamma: Tensor | None, like: Tensor) -> dict[str, Tensor | None]:
    """With a neutral vector where there is none, so that the loops have no case for it."""
    return {
        "bias": torch.zeros_like(like) if bias is None else bias,
        "gamma": torch.ones_like(like) if gamma is None else gamma,
    }


def _takes(residual: Tensor, branch: Tensor, slot: Tensor | None, *vectors: Tensor | None) -> bool:
    """Residuals in fp32 with a branch in either dtype, or both in bf16."""
    return (
        library.takes_rows(residual, branch)
        and library.takes_vectors(*vectors)
        and residual.shape[-1] <= library.MAX_NORM_WIDTH
        and residual.dtype in (torch.float32, branch.dtype)
        and (slot is None or slot.dtype == torch.int32)
    )
