"""The parts of a vision transformer: patch embedding, attention, MLP, and the residual block around them.

Shapes: B batch, N tokens, K of them that are asked for, C embedding, H heads, D = C / H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deit_fast.kernels.attention import attention

DropPath = Tensor | Sequence[Tensor]
"""Stochastic depth of a forward: 2 * depth rows or tensors, one for each residual branch; see `add_branch`."""

CallBlock = Callable[..., Any]
"""(block, its inputs) -> what the block gives."""
RunBlocks = Callable[[nn.ModuleList, nn.LayerNorm, Tensor, DropPath | None, CallBlock], Tensor]
"""(blocks, last norm, x [B, N, C], stochastic depth, ...) -> the normed tokens that the heads read, [B, K, C]."""


def cut_patches(images: Tensor, patch_size_px: int) -> Tensor:
    """[B, 3, H, W] -> [B, patches, P * P * 3], row by row, each patch as NHWC: rows of P * 3 values stay together.

    For channels-last images it is one copy in long runs (48 values of a 16 px patch), without a transposition.
    """
    B, channels, height, width = images.shape
    P = patch_size_px
    rows = images.permute(0, 2, 3, 1).reshape(B, height // P, P, width // P, P, channels)
    return rows.transpose(2, 3).reshape(B, (height // P) * (width // P), P * P * channels)


class PatchEmbed(nn.Module):
    """Cuts images [B, 3, H, W] into patches and projects each: [B, patches, C].

    One matrix product on NHWC patches instead of a convolution; the weight keeps the convolution's name and shape.
    Patches that are cut already, [B, patches, P * P * 3] in the order of `cut_patches`, are taken as they are.
    """

    def __init__(self, patch_size_px: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size_px = patch_size_px
        self.proj = nn.Conv2d(3, embed_dim, patch_size_px, patch_size_px)
        # `forward` permutes the weight, and so the gradient: DDP would copy it into its bucket at every step, and warn
        self.proj.weight.register_hook(torch.Tensor.contiguous)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        patches = images if images.ndim == 3 else cut_patches(images, self.patch_size_px)
        if patches.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
            patches = patches.to(weight.dtype)  # the loader's float16 images with an fp32 student
        return F.linear(patches, weight, self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with packed qkv."""

    def __init__(self, embed_dim: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def heads(self, x_BNC: Tensor) -> Tensor:
        """What the heads find, beside one another, before the projection."""
        B, N, C = x_BNC.shape
        qkv_BN3HD = self.qkv(x_BNC).view(B, N, 3, self.num_heads, C // self.num_heads)
        return attention(qkv_BN3HD, self.backend)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.proj(self.heads(x_BNC))


class PrefixAttention(Attention):
    """Attention of the first K tokens to all: what the last block has to compute, since the heads read no others.

    Exact: keys and values of all tokens, queries and projection of K only (6.9 % of DeiT-B's linear work at 224 px).
    """

    def __init__(self, embed_dim: int, num_heads: int, backend: str, num_queries: int) -> None:
        super().__init__(embed_dim, num_heads, backend)
        self.num_queries = num_queries

    def heads(self, x_BNC: Tensor) -> Tensor:
        """Of the first K tokens: [B, N, C] -> [B, K, C]."""
        B, N, C = x_BNC.shape
        K, H, D = self.num_queries, self.num_heads, C // self.num_heads
        weight_q, weight_kv = self.qkv.weight.split([C, 2 * C])
        bias_q, bias_kv = self.qkv.bias.split([C, 2 * C])
        q_BHKD = F.linear(x_BNC[:, :K], weight_q, bias_q).view(B, K, H, D).transpose(1, 2)
        kv_BN2HD = F.linear(x_BNC, weight_kv, bias_kv).view(B, N, 2, H, D)
        k_BHND, v_BHND = kv_BN2HD.permute(2, 0, 3, 1, 4).unbind(0)
        # plain products: fused attention works on tiles of 64 or 128 queries, of which 1 or 2 would be used
        weights_BHKN = ((q_BHKD * D**-0.5) @ k_BHND.transpose(-2, -1)).softmax(dim=-1)
        out_BHKD = weights_BHKN.to(v_BHND.dtype) @ v_BHND
        return out_BHKD.transpose(1, 2).reshape(B, K, C)


class Mlp(nn.Module):
    """Two linears with exact GELU between them; hidden size 4C."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, 4 * embed_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * embed_dim, embed_dim)

    def hidden(self, x_BNC: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, 4C], what the second linear reads."""
        return self.act(self.fc1(x_BNC))

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.fc2(self.hidden(x_BNC))


class LayerScale(nn.Module):
    """One learnt factor per channel on a residual branch (Touvron et al. 2021, "Going deeper with image
    transformers")."""

    def __init__(self, embed_dim: int, first_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), first_value))

    def forward(self, x_BNC: Tensor) -> Tensor:
        return x_BNC * self.gamma


def add_branch(x: Tensor, source: Tensor, branch: Callable[[Tensor], Tensor], drop_path: Tensor | None) -> Tensor:
    """x + drop_path * branch(source), by the kind of stochastic depth: x [B, K, C], source [B, N, C].

    drop_path: None; a factor for each sample, floating [B] (0, or 1 / keep probability); or the samples that are kept,
    int64 [kept]: the others cost nothing, and the kept ones are scaled by B / kept.
    """
    if drop_path is None:
        return x + branch(source)
    if drop_path.dtype == torch.int64:
        update = branch(source[drop_path]).to(x.dtype)
        return x.index_add(0, drop_path, update, alpha=len(x) / len(drop_path))
    return x + drop_path[:, None, None].to(x.dtype) * branch(source)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)), with LayerScale and stochastic depth.

    num_queries: the block computes its first tokens only, [B, N, C] -> [B, num_queries, C]; None: all of them.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attention_backend: str,
        *,
        layer_scale_init: float | None = None,
        num_queries: int | None = None,
        build_mlp: Callable[[int], Mlp] = Mlp,
    ) -> None:
        super().__init__()

        def layer_scale() -> nn.Module:
            return nn.Identity() if layer_scale_init is None else LayerScale(embed_dim, layer_scale_init)

        self.num_queries = num_queries
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        if num_queries is None:
            self.attn = Attention(embed_dim, num_heads, attention_backend)
        else:
            self.attn = PrefixAttention(embed_dim, num_heads, attention_backend, num_queries)
        self.ls1 = layer_scale()
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = build_mlp(embed_dim)
        self.ls2 = layer_scale()

    def forward(self, x_BNC: Tensor, drop_attention: Tensor | None = None, drop_mlp: Tensor | None = None) -> Tensor:
        """drop_attention, drop_mlp: stochastic depth of the two branches, as `add_branch` takes it."""
        x_BKC = x_BNC if self.num_queries is None else x_BNC[:, : self.num_queries]
        x_BKC = add_branch(x_BKC, x_BNC, self._attention_branch, drop_attention)
        return add_branch(x_BKC, x_BKC, self._mlp_branch, drop_mlp)

    def _attention_branch(self, x_BNC: Tensor) -> Tensor:
        return self.ls1(self.attn(self.norm1(x_BNC)))

    def _mlp_branch(self, x_BKC: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x_BKC)))


def call_block(block: nn.Module, *inputs: Any) -> Any:
    """The backward finds what the forward kept."""
    return block(*inputs)


def recompute_block(block: nn.Module, *inputs: Any) -> Any:
    """The backward computes the block again from its inputs (Chen et al. 2016, arXiv 1604.06174)."""
    # a block draws nothing (stochastic depth is an argument), so there is no generator to set back
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def run_blocks(
    blocks: nn.ModuleList, norm: nn.LayerNorm, x_BNC: Tensor, drop_path: DropPath | None, call: CallBlock
) -> Tensor:
    """Block after block, and the last norm."""
    for i, block in enumerate(blocks):
        drops = () if drop_path is None else (drop_path[2 * i], drop_path[2 * i + 1])
        x_BNC = call(block, x_BNC, *drops)
    return norm(x_BNC)
