"""Residual add and LayerNorm in plain torch: the truth that the kernel is compared with.

    x' = x + drop_path[b] * gamma * (branch + bias);    y = LayerNorm(x') * weight + shift

Ba et al. 2016; LayerScale: Touvron et al. 2021 (CaiT); stochastic depth: Huang et al. 2016. `bias` is the linear's that
made the branch, which is then called without it, so that its gradient, a column sum, is taken here.
By batch subset (Oquab et al. 2023, DINOv2): the branch holds only the samples that are kept; slot[b] is where sample b
stands in it, -1 where it was skipped and x' = x.

Shapes: B batch, N tokens, C embedding, K samples of the branch (B without a subset).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """At least fp32: what sums and residuals are kept in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def scaled_branch(
    branch_KNC: Tensor, bias: Tensor | None, gamma: Tensor | None, drop_path: Tensor | None,
    slot: Tensor | None,
) -> Tensor:  # fmt: skip
    """What is added to x, [B, N, C], at least fp32."""
    branch = wide(branch_KNC)
    if bias is not None:
        branch = branch + bias
    if gamma is not None:
        branch = branch * gamma
    if slot is not None:
        kept = (slot >= 0)[:, None, None]
        branch = torch.where(kept, branch[slot.clamp(min=0)], 0.0)
    if drop_path is not None:
        branch = branch * drop_path[:, None, None]
    return branch


def add_norm_reference(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    shift: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    drop_path: Tensor | None,
    slot: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x' of x's dtype, and y of the branch's."""
    total = (wide(x) + scaled_branch(branch, bias, gamma, drop_path, slot)).to(x.dtype)
    normed = F.layer_norm(wide(total), total.shape[-1:], weight.to(wide(total).dtype), shift.to(wide(total).dtype), eps)
    return total, normed.to(branch.dtype)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each row, [B, N]."""
    variance, mean = torch.var_mean(wide(x), dim=-1, correction=0)
    return mean, (variance + eps).rsqrt()


def add_norm_backward_reference(
    grad_total: Tensor | None,
    grad_y: Tensor,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    drop_path: Tensor | None,
    slot: Tensor | None,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and of the branch's `kept` samples, and [4, C] of weight, shift, bias and gamma, in closed form.

    The branch itself is read for the gradient of gamma only, which is 0 without gamma.
    """
    normed = (wide(total) - mean[..., None]) * rstd[..., None]
    grad_normed = wide(grad_y) * weight
    inner = grad_normed - grad_normed.mean(-1, keepdim=True) - normed * (grad_normed * normed).mean(-1, keepdim=True)
    grad_x = inner * rstd[..., None]
    if grad_total is not None:
        grad_x = grad_x + wide(grad_total)
    # a copy, since an operator's outputs may not share memory
    scaled = grad_x.clone() if drop_path is None else grad_x * drop_path[:, None, None]
    if slot is not None:
        has_branch = slot >= 0
        gathered = scaled.new_zeros(kept, *scaled.shape[1:])
        gathered[slot[has_branch]] = scaled[has_branch]
        scaled = gathered
    grad_gamma = torch.zeros_like(scaled[0, 0])
    if gamma is not None:
        assert branch is not None
        biased = wide(branch) if bias is None else wide(branch) + bias
        grad_gamma = (scaled * biased).sum((0, 1))
        scaled = scaled * gamma
    columns = [(wide(grad_y) * normed).sum((0, 1)), wide(grad_y).sum((0, 1)), scaled.sum((0, 1)), grad_gamma]
    return grad_x.to(total.dtype), scaled.to(grad_y.dtype), torch.stack(columns)
