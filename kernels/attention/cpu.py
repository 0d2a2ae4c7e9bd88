"""Attention on a CPU: a compiled kernel for bf16 on processors that multiply it; else the reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deit_fast.kernels.cpu import library

from .reference import backward_reference, forward_reference


def forward_on_cpu(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """qkv [B, N, 3, H, D] -> out [B, N, H*D] of its dtype, lse [B, H, N] at least fp32 in base 2."""
    if not kernel_takes(qkv):
        return forward_reference(qkv)
    B, N, _, H, D = qkv.shape
    out, lse = torch.empty(B, N, H * D, dtype=qkv.dtype), torch.empty(B, H, N, dtype=torch.float32)
    _call(qkv, {"out": out, "lse": lse}, backward=False)
    return out, lse


def backward_on_cpu(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor) -> Tensor:
    """grad_out [B, N, H*D], of any strides -> grad_qkv [B, N, 3, H, D]."""
    if not kernel_takes(qkv):
        return backward_reference(qkv, out, lse, grad_out)
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype)
    tensors = {"out": out, "lse": lse, "grad_out": grad_out, "grad_qkv": grad_qkv}
    _call(qkv, tensors, backward=True)
    return grad_qkv


def kernel_takes(qkv: Tensor) -> bool:
    """Whether the compiled kernel is there and takes this: bf16, D a multiple of 16."""
    return library.runs_attention() and qkv.dtype == torch.bfloat16 and qkv.shape[-1] % 16 == 0


def _call(qkv: Tensor, tensors: Mapping[str, Tensor | None], *, backward: bool) -> None:
    B, N, _, H, D = qkv.shape
    task = library.Attention(batch=B, tokens=N, heads=H, head_dim=D)
    library.call("attention", task, {"qkv": qkv, **tensors}, backward=backward)
