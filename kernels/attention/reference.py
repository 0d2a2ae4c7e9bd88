"""Attention in plain torch: the truth that every other backend is compared with.

Shapes: B batch, N tokens, H heads, D head dimension. softmax(q k^T / sqrt(D)) v, per sample and head
(Vaswani et al. 2017, eq. 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_reference(qkv_BN3HD: Tensor) -> Tensor:
    """[B, N, 3, H, D] of any floating dtype -> [B, N, H*D] of the same."""
    B, N, _, H, D = qkv_BN3HD.shape
    q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    weights_BHNN = (q_BHND * D**-0.5) @ k_BHND.transpose(-2, -1)
    return (weights_BHNN.softmax(dim=-1) @ v_BHND).transpose(1, 2).reshape(B, N, H * D)


def forward_reference(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """What the Triton forward gives: the output, and lse [B, H, N] = log2 sum 2^score, at least fp32."""
    B, N, _, H, D = qkv.shape
    q_BHND, k_BHND, v_BHND = _heads(qkv)
    lse_BHN = (q_BHND @ k_BHND.transpose(-2, -1) * D**-0.5).logsumexp(dim=-1)
    out_BHND = _weights(q_BHND, k_BHND, lse_BHN) @ v_BHND
    return out_BHND.transpose(1, 2).reshape(B, N, H * D).to(qkv.dtype), lse_BHN * math.log2(math.e)


def backward_reference(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor) -> Tensor:
    """The gradient of qkv in closed form (autograd does not run inside an operator); Dao et al. 2022, appendix B."""
    B, N, _, H, D = qkv.shape
    q_BHND, k_BHND, v_BHND = _heads(qkv)
    out_BHND, grad_BHND = (t.reshape(B, N, H, D).transpose(1, 2).to(q_BHND.dtype) for t in (out, grad_out))
    p_BHNN = _weights(q_BHND, k_BHND, lse / math.log2(math.e))
    delta_BHN = (out_BHND * grad_BHND).sum(-1)
    ds_BHNN = p_BHNN * (grad_BHND @ v_BHND.transpose(-2, -1) - delta_BHN[..., None]) * D**-0.5
    grads = (ds_BHNN @ k_BHND, ds_BHNN.transpose(-2, -1) @ q_BHND, p_BHNN.transpose(-2, -1) @ grad_BHND)
    return torch.stack([grad.transpose(1, 2) for grad in grads], dim=2).to(qkv.dtype)


def _heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, D], at least fp32."""
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    q_BHND, k_BHND, v_BHND = wide.permute(2, 0, 3, 1, 4).unbind(0)
    return q_BHND, k_BHND, v_BHND


def _weights(q_BHND: Tensor, k_BHND: Tensor, lse_BHN: Tensor) -> Tensor:
    return (q_BHND @ k_BHND.transpose(-2, -1) * q_BHND.shape[-1] ** -0.5 - lse_BHN[..., None]).exp()
