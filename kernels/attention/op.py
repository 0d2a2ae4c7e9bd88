"""One attention function, several backends; which one is fastest differs by device and is not assumed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import attention_reference


def attention_sdpa(qkv_BN3HD: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention; never with a mask: some fused backwards got it wrong (pytorch #196678)."""
    B, N, _, H, D = qkv_BN3HD.shape
    q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND).transpose(1, 2).reshape(B, N, H * D)


def attention_auto(qkv_BN3HD: Tensor) -> Tensor:
    """sdpa, but plain products for bf16 on a CPU, where sdpa's backward takes 1.25 times as long (batch 16, N 198)."""
    if qkv_BN3HD.device.type == "cpu" and qkv_BN3HD.dtype == torch.bfloat16:
        return attention_reference(qkv_BN3HD)
    return attention_sdpa(qkv_BN3HD)


BACKENDS = {"auto": attention_auto, "reference": attention_reference, "sdpa": attention_sdpa}


def attention(qkv: Tensor, backend: str = "auto") -> Tensor:
    """Self-attention of packed qkv [B, N, 3, H, D] -> [B, N, H*D], same dtype; scale D^-0.5, no mask, no dropout.

    ValueError for an unknown backend or another number of dimensions.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend}; the backends are {', '.join(BACKENDS)}")
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"attention takes qkv of shape [B, N, 3, H, D], got {tuple(qkv.shape)}")
    return BACKENDS[backend](qkv)
