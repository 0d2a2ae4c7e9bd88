"""The transformer blocks with their element-wise work in Triton kernels: the same weights under the same names.

To add a residual branch and to normalise the sum is one kernel, so a block hands on both, x and its norm y, and is told
which norm comes next: the following block's first, or the model's last. Linears are called without their bias where the
kernel behind them adds it, because its gradient, a sum over all tokens, comes along in that kernel's backward.

Shapes: B batch, N tokens, K of them that are asked for, C embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_fast.kernels.add_norm import add_norm, branch_slots
from deit_fast.kernels.gelu_bias import gelu_bias

from .blocks import Block, CallBlock, DropPath, LayerScale, Mlp


class FusedMlp(Mlp):
    """GELU together with the bias before it."""

    def hidden(self, x_BNC: Tensor) -> Tensor:
        return gelu_bias(F.linear(x_BNC, self.fc1.weight), self.fc1.bias, "triton")


class FusedBlock(Block):
    """A block that hands on the sum and its norm."""

    def forward(  # type: ignore[override]
        self,
        x_BNC: Tensor,
        y_BNC: Tensor,
        next_norm: nn.LayerNorm,
        drop_attention: Tensor | None = None,
        drop_mlp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x, y = norm1(x) [B, N, C] -> x' and next_norm(x') [B, K, C]; stochastic depth as `add_branch` takes it."""
        x_BKC = x_BNC if self.num_queries is None else x_BNC[:, : self.num_queries]
        x_BKC, y_BKC = self.add_attention(x_BKC, y_BNC, drop_attention)
        return self.add_mlp(x_BKC, y_BKC, drop_mlp, next_norm)

    def add_attention(self, x_BKC: Tensor, y_BNC: Tensor, drop_path: Tensor | None) -> tuple[Tensor, Tensor]:
        """x' = x + the attention of y, and norm2(x')."""
        return add_branch_and_norm(x_BKC, y_BNC, self.attn.heads, self.attn.proj, self.ls1, drop_path, self.norm2)

    def add_mlp(
        self, x_BKC: Tensor, y_BKC: Tensor, drop_path: Tensor | None, next_norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor]:
        """x' = x + the MLP of y, and next_norm(x')."""
        return add_branch_and_norm(x_BKC, y_BKC, self.mlp.hidden, self.mlp.fc2, self.ls2, drop_path, next_norm)


def add_branch_and_norm(
    x_BKC: Tensor,
    y_BNC: Tensor,
    branch: Callable[[Tensor], Tensor],
    last: nn.Linear,
    layer_scale: nn.Module,
    drop_path: Tensor | None,
    norm: nn.LayerNorm,
) -> tuple[Tensor, Tensor]:
    """x' = x + drop_path * layer_scale(last(branch(y))), and norm(x'); drop_path as `add_branch` takes it."""
    slot, scale = None, drop_path
    if drop_path is not None and drop_path.dtype == torch.int64:
        slot = branch_slots(drop_path, len(x_BKC))
        scale = torch.full_like(slot, 1, dtype=torch.float32) * (len(x_BKC) / len(drop_path))
        y_BNC = y_BNC[drop_path]
    return add_norm(
        x_BKC,
        F.linear(branch(y_BNC), last.weight),
        norm.weight,
        norm.bias,
        bias=last.bias,
        layer_scale=layer_scale.gamma if isinstance(layer_scale, LayerScale) else None,
        drop_path_scale=scale,
        branch_slot=slot,
        eps=norm.eps,
        backend="triton",
    )


def run_fused_blocks(
    blocks: nn.ModuleList, norm: nn.LayerNorm, x_BNC: Tensor, drop_path: DropPath | None, call: CallBlock
) -> Tensor:
    """Block after block, each with the norm that follows it."""
    y_BNC = blocks[0].norm1(x_BNC)  # type: ignore[operator]
    next_norms = [*(block.norm1 for block in blocks[1:]), norm]
    for i, (block, next_norm) in enumerate(zip(blocks, next_norms, strict=True)):
        drops = () if drop_path is None else (drop_path[2 * i], drop_path[2 * i + 1])
        x_BNC, y_BNC = call(block, x_BNC, y_BNC, next_norm, *drops)
    return y_BNC
