"""x + drop_path * gamma * (branch + bias), and its LayerNorm, as one differentiable function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deit_fast.kernels.registration import check_backend, kernel_op, say_once, why_not_on

from .cpu import backward_on_cpu, forward_on_cpu
from .reference import add_norm_reference

MAX_EMBED_DIM = 2048
"""A program has two rows in registers, in fp32."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@kernel_op("add_norm_forward", forward_on_cpu)
def add_norm_forward(
    x: Tensor, branch: Tensor, weight: Tensor, shift: Tensor, bias: Tensor | None, gamma: Tensor | None,
    drop_path: Tensor | None, slot: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x' [B, N, C], y [B, N, C], mean and 1 / standard deviation [B, N]."""
    from .triton import forward

    return forward(x, branch, weight, shift, bias, gamma, drop_path, slot, eps)


@add_norm_forward.register_fake
def _(x: Tensor, branch: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(x.shape[:2], dtype=sums) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=branch.dtype), mean, rstd


@kernel_op("add_norm_backward", backward_on_cpu)
def add_norm_backward(
    grad_total: Tensor | None, grad_y: Tensor, total: Tensor, mean: Tensor, rstd: Tensor, branch: Tensor | None,
    weight: Tensor, bias: Tensor | None, gamma: Tensor | None, drop_path: Tensor | None, slot: Tensor | None,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x and of the branch's `kept` samples, and [4, C] of weight, shift, bias and gamma."""
    from .triton import backward

    return backward(grad_total, grad_y, total, mean, rstd, branch, weight, bias, gamma, drop_path, slot, kept)


@add_norm_backward.register_fake
def _(
    grad_total: Tensor | None,  # noqa: ARG001
    grad_y: Tensor,
    total: Tensor,
    mean: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_branch = grad_y.new_empty(rest[-1], *total.shape[1:])
    return total.new_empty(total.shape), grad_branch, mean.new_empty(4, total.shape[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, branch, weight, shift, bias, gamma, drop_path, slot, _ = inputs
    total, _, mean, rstd = output
    # only the gradient of LayerScale reads the branch; without it, it need not stay in memory
    kept_branch = None if gamma is None else branch
    ctx.save_for_backward(total, mean, rstd, kept_branch, weight, bias, gamma, drop_path, slot)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    # len() would make a symbolic size a constant, and every count of kept samples a graph of its own
    ctx.kept, ctx.branch_dtype = branch.shape[0], branch.dtype
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (weight, shift, bias, gamma)]


def _differentiate(
    ctx: Any, grad_total: Tensor | None, grad_y: Tensor | None, *_grads: Any
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    if grad_y is None:  # nobody read y
        grad_y = torch.zeros_like(saved[0], dtype=ctx.branch_dtype)
    grad_x, grad_branch, columns = add_norm_backward(grad_total, grad_y, *saved, ctx.kept)
    grads = [None if dtype is None else column.to(dtype) for column, dtype in zip(columns, ctx.dtypes, strict=True)]
    return grad_x, grad_branch, *grads, None, None, None


add_norm_forward.register_autograd(_differentiate, setup_context=_save)


def add_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    shift: Tensor,
    *,
    bias: Tensor | None = None,
    layer_scale: Tensor | None = None,
    drop_path_scale: Tensor | None = None,
    branch_slot: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "reference",
) -> tuple[Tensor, Tensor]:
    """x' = x + drop_path_scale * layer_scale * (branch + bias), of x's dtype, and LayerNorm(x'), of the branch's.

    x [B, N, C], branch [B, N, C] without the bias [C] of its linear; weight and shift [C] of the norm; layer_scale [C];
    drop_path_scale fp32 [B], each 0 or 1 / keep probability. With branch_slot int32 [B] (`branch_slots`) the branch is
    [K, N, C] and holds only the samples kept, at least one. backend: reference, or triton, which leaves inputs it does
    not take to the reference and says so once. drop_path_scale gets no gradient. ValueError for shapes that do not fit.
    """
    check_backend(backend)
    if (
        x.ndim != 3
        or branch.shape[1:] != x.shape[1:]
        or (branch_slot is None and branch.shape != x.shape)
        or not len(branch)
    ):
        raise ValueError(
            f"add_norm takes x [B, N, C] and a branch of the same shape, or [K, N, C] with branch_slot; got "
            f"{tuple(x.shape)} and {tuple(branch.shape)}"
        )
    _check_vectors(x, channels=(weight, shift, bias, layer_scale), samples=(drop_path_scale, branch_slot))
    arguments = (x, branch, weight, shift, bias, layer_scale, drop_path_scale, branch_slot, eps)
    if backend == "reference" or not _triton_takes(x, branch):
        return add_norm_reference(*arguments)
    total, y, _, _ = add_norm_forward(*arguments)
    return total, y


def _check_vectors(x: Tensor, channels: tuple[Tensor | None, ...], samples: tuple[Tensor | None, ...]) -> None:
    """ValueError unless they have one value for each channel, or for each sample."""
    for vectors, wanted in ((channels, x.shape[-1:]), (samples, x.shape[:1])):
        for vector in vectors:
            if vector is not None and vector.shape != wanted:
                raise ValueError(f"add_norm takes vectors of {tuple(wanted)} with this x, got {tuple(vector.shape)}")


def branch_slots(kept: Tensor, batch_size: int) -> Tensor:
    """Where each sample stands among those kept: kept int64 [K], without doubles -> int32 [B], -1 for the others."""
    slots = torch.full((batch_size,), -1, dtype=torch.int32, device=kept.device)
    slots[kept] = torch.arange(len(kept), dtype=torch.int32, device=kept.device)
    return slots


def _triton_takes(x: Tensor, branch: Tensor) -> bool:
    if x.shape[-1] > MAX_EMBED_DIM:
        say_once(f"add_norm: the Triton kernel takes up to {MAX_EMBED_DIM} channels, not {x.shape[-1]}: reference")
        return False
    if why := why_not_on(x.device):
        say_once(f"add_norm: the Triton kernel does not take {why}: reference")
        return False
    if x.device.type == "cuda" and not (x.dtype in DTYPES and branch.dtype in DTYPES):
        say_once(f"add_norm: the Triton kernel does not take {x.dtype} with {branch.dtype}: reference")
        return False
    return True


def example_inputs(
    batch: int,
    tokens: int,
    embed_dim: int,
    dtype: torch.dtype,
    device: str,
    *,
    residual_dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Everything that `add_norm` takes but the subset, always the same; for tests and benchmarks."""
    generator = torch.Generator().manual_seed(embed_dim)
    residual = residual_dtype or torch.promote_types(dtype, torch.float32)
    shape = (batch, tokens, embed_dim)
    x, branch = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, shift, bias, layer_scale = torch.randn(4, embed_dim, generator=generator)
    keep = torch.arange(batch) % 3 != 1
    return {
        "x": x.to(device, residual),
        "branch": branch.to(device, dtype),
        **{name: value.to(device, residual) for name, value in (("weight", 1 + weight / 4), ("shift", shift))},
        **{name: value.to(device, residual) for name, value in (("bias", bias), ("layer_scale", layer_scale))},
        "drop_path_scale": (keep / 0.75).to(device, torch.promote_types(residual, torch.float32)),
    }
