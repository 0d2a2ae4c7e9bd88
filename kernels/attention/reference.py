"""Attention in plain torch: the truth that every other backend is compared with.

Shapes: B batch, N tokens, H heads, D head dimension. softmax(q k^T / sqrt(D)) v, per sample and head
(Vaswani et al. 2017, eq. 1).
"""

from __future__ import annotations

from torch import Tensor


def attention_reference(qkv_BN3HD: Tensor) -> Tensor:
    """[B, N, 3, H, D] of any floating dtype -> [B, N, H*D] of the same."""
    B, N, _, H, D = qkv_BN3HD.shape
    q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    weights_BHNN = (q_BHND * D**-0.5) @ k_BHND.transpose(-2, -1)
    return (weights_BHNN.softmax(dim=-1) @ v_BHND).transpose(1, 2).reshape(B, N, H * D)
