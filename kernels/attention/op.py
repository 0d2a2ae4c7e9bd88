"""One attention function, several backends; which one is fastest differs by device and is not assumed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

from deit_fast.kernels.launch import INTERPRETED
from deit_fast.kernels.registration import kernel_op, say_once, why_not_on

from .cpu import backward_on_cpu, forward_on_cpu
from .reference import attention_reference

MAX_TOKENS = 1026
"""Rows up to here are tested: 512 px in patches of 16, with [CLS] and distillation token."""
HEAD_DIMS = (16, 32, 64)
HALF = (torch.bfloat16, torch.float16)
SDPA_DTYPES: dict[str, dict[SDPBackend, tuple[torch.dtype, ...]]] = {
    "cuda": {
        SDPBackend.FLASH_ATTENTION: HALF,
        SDPBackend.CUDNN_ATTENTION: HALF,
        SDPBackend.EFFICIENT_ATTENTION: (*HALF, torch.float32),
        SDPBackend.MATH: (*HALF, torch.float32, torch.float64),
    },
    "cpu": dict.fromkeys((SDPBackend.FLASH_ATTENTION, SDPBackend.MATH), (*HALF, torch.float32, torch.float64)),
}
"""What each backend of scaled_dot_product_attention takes; torch raises "no available kernel" for the rest."""


@kernel_op("attention_forward", forward_on_cpu)
def attention_forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """qkv [B, N, 3, H, D] -> out [B, N, H*D] of its dtype, lse [B, H, N] fp32 in base 2."""
    from .triton import forward

    return forward(qkv)


@attention_forward.register_fake
def _(qkv: Tensor) -> tuple[Tensor, Tensor]:
    B, N, _, H, D = qkv.shape
    return qkv.new_empty(B, N, H * D), qkv.new_empty(B, H, N, dtype=torch.promote_types(qkv.dtype, torch.float32))


@kernel_op("attention_backward", backward_on_cpu)
def attention_backward(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor) -> Tensor:
    """grad_out [B, N, H*D], of any strides -> grad_qkv [B, N, 3, H, D]."""
    from .triton import backward

    return backward(qkv, out, lse, grad_out)


@attention_backward.register_fake
def _(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor) -> Tensor:  # noqa: ARG001
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad_out: Tensor, _grad_lse: Tensor) -> Tensor:
    return attention_backward(*ctx.saved_tensors, grad_out)


attention_forward.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.deit_fast.attention_forward)
def _(qkv_shape: torch.Size, **_shapes: Any) -> int:
    """Scores and weighted sum, 2 FLOPs a multiply-add, so that utilisation counts what sdpa's would count."""
    B, N, _, H, D = qkv_shape
    return 4 * B * H * N * N * D


@register_flop_formula(torch.ops.deit_fast.attention_backward)
def _(qkv_shape: torch.Size, *_shapes: Any, **_out: Any) -> int:
    """Five products, as FlopCounterMode counts sdpa's backward: the scores are computed again."""
    B, N, _, H, D = qkv_shape
    return 10 * B * H * N * N * D


def attention_sdpa(qkv_BN3HD: Tensor, sdpa_backend: SDPBackend | None = None) -> Tensor:
    """torch's scaled_dot_product_attention; never with a mask: some fused backwards got it wrong (pytorch #196678)."""
    B, N, _, H, D = qkv_BN3HD.shape
    q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    if sdpa_backend is None or qkv_BN3HD.device.type not in SDPA_DTYPES:  # meta: arithmetic is counted, not done
        return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND).transpose(1, 2).reshape(B, N, H * D)
    if qkv_BN3HD.dtype not in SDPA_DTYPES[qkv_BN3HD.device.type].get(sdpa_backend, ()):
        say_once(
            f"attention: {sdpa_backend.name} does not take {qkv_BN3HD.dtype} on {qkv_BN3HD.device.type}; "
            "sdpa chooses its backend itself"
        )
        return attention_sdpa(qkv_BN3HD)
    with sdpa_kernel(sdpa_backend):
        return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND).transpose(1, 2).reshape(B, N, H * D)


def attention_triton(qkv_BN3HD: Tensor) -> Tensor:
    """The Triton kernels; sdpa, said once, for what they do not take."""
    why = triton_unsupported(qkv_BN3HD)
    if why is not None:
        say_once(f"attention: the Triton kernel does not take {why}; sdpa is used instead")
        return attention_sdpa(qkv_BN3HD)
    return attention_forward(qkv_BN3HD)[0]


def triton_unsupported(qkv_BN3HD: Tensor) -> str | None:
    """What about this input the Triton kernels do not take; None: they take it."""
    _, N, _, _, D = qkv_BN3HD.shape
    if N > MAX_TOKENS:
        return f"{N} tokens (at most {MAX_TOKENS})"
    if D not in HEAD_DIMS:
        return f"head dimension {D} (one of {', '.join(map(str, HEAD_DIMS))})"
    if why := why_not_on(qkv_BN3HD.device):
        return why
    if qkv_BN3HD.dtype not in (*HALF, torch.float32) and qkv_BN3HD.device.type == "cuda" and not INTERPRETED:
        return str(qkv_BN3HD.dtype)
    return None


def attention_auto(qkv_BN3HD: Tensor) -> Tensor:
    """sdpa, but plain products for bf16 on a CPU, where sdpa's backward takes 1.25 times as long (batch 16, N 198)."""
    if qkv_BN3HD.device.type == "cpu" and qkv_BN3HD.dtype == torch.bfloat16:
        return attention_reference(qkv_BN3HD)
    return attention_sdpa(qkv_BN3HD)


BACKENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "auto": attention_auto,
    "reference": attention_reference,
    "sdpa": attention_sdpa,
    "sdpa_flash": partial(attention_sdpa, sdpa_backend=SDPBackend.FLASH_ATTENTION),
    "sdpa_efficient": partial(attention_sdpa, sdpa_backend=SDPBackend.EFFICIENT_ATTENTION),
    "sdpa_cudnn": partial(attention_sdpa, sdpa_backend=SDPBackend.CUDNN_ATTENTION),
    "sdpa_math": partial(attention_sdpa, sdpa_backend=SDPBackend.MATH),
    "triton": attention_triton,
}


def attention(qkv: Tensor, backend: str = "auto") -> Tensor:
    """Self-attention of packed qkv [B, N, 3, H, D] -> [B, N, H*D], same dtype; scale D^-0.5, no mask, no dropout.

    ValueError for an unknown backend or another number of dimensions.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend}; the backends are {', '.join(BACKENDS)}")
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"attention takes qkv of shape [B, N, 3, H, D], got {tuple(qkv.shape)}")
    return BACKENDS[backend](qkv)


def example_inputs(
    tokens: int, dtype: torch.dtype, device: str, *, batch: int = 2, heads: int = 2, head_dim: int = 64
) -> Tensor:
    """Packed qkv of normal noise, always the same; for tests and benchmarks."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(batch, tokens, 3, heads, head_dim, generator=generator).to(device, dtype)
