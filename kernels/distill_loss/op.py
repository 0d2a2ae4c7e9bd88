"""DeiT's loss as one function: value and gradient in one pass on a GPU, plain torch elsewhere."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from deit_fast.kernels.registration import check_backend, kernel_op, say_once, why_not_on

from .reference import gradients_reference, loss_parts_reference
from .terms import LossParts, LossTerms

MAX_CLASSES = 8192
"""A program has a sample's three rows of logits in registers."""
HALF = (torch.bfloat16, torch.float16)


def _forward_on_cpu(
    cls: Tensor, dist: Tensor | None, teacher: Tensor | None, label_a: Tensor, label_b: Tensor, lam: Tensor,
    kind: str, label_loss: str, smoothing: float, alpha: float, temperature: float, soft_normalization: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    terms = LossTerms(kind, label_loss, smoothing, alpha, temperature, soft_normalization)  # type: ignore[arg-type]
    total, part = loss_parts_reference(cls, label_a, label_b, lam, terms, dist, teacher)
    return total, torch.zeros_like(total) + part, *gradients_reference(cls, label_a, label_b, lam, terms, dist, teacher)


@kernel_op("distill_loss_forward", _forward_on_cpu)
def distill_loss_forward(
    cls: Tensor, dist: Tensor | None, teacher: Tensor | None, label_a: Tensor, label_b: Tensor, lam: Tensor,
    kind: str, label_loss: str, smoothing: float, alpha: float, temperature: float, soft_normalization: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss fp32 [], what of it is distillation, and the loss's gradients in cls and dist, kept in fp32."""
    from .triton import forward

    terms = LossTerms(kind, label_loss, smoothing, alpha, temperature, soft_normalization)  # type: ignore[arg-type]
    return forward(cls, label_a, label_b, lam, terms, dist, teacher)


@distill_loss_forward.register_fake
def _(cls: Tensor, dist: Tensor | None, *_rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.promote_types(cls.dtype, torch.float32)
    shapes = ((), (), cls.shape, (0,) if dist is None else dist.shape)
    total, part, grad_cls, grad_dist = (cls.new_empty(shape, dtype=sums) for shape in shapes)
    return total, part, grad_cls, grad_dist


def _backward_on_cpu(
    grad_cls: Tensor, grad_dist: Tensor, grad_loss: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return (grad_cls * grad_loss).to(dtype), (grad_dist * grad_loss).to(dtype)


@kernel_op("distill_loss_backward", _backward_on_cpu)
def distill_loss_backward(
    grad_cls: Tensor, grad_dist: Tensor, grad_loss: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both gradients times the incoming one, in the logits' dtype."""
    from .triton import backward

    return backward(grad_cls, grad_dist, grad_loss, dtype)


@distill_loss_backward.register_fake
def _(
    grad_cls: Tensor,
    grad_dist: Tensor,
    grad_loss: Tensor,  # noqa: ARG001
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_cls, dtype=dtype), torch.empty_like(grad_dist, dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, part, grad_cls, grad_dist = output
    ctx.save_for_backward(grad_cls, grad_dist)
    ctx.mark_non_differentiable(part, grad_cls, grad_dist)
    ctx.dtype = inputs[0].dtype


def _differentiate(ctx: Any, grad_loss: Tensor, *_grads: Any) -> tuple[Tensor | None, ...]:
    grad_cls, grad_dist = distill_loss_backward(*ctx.saved_tensors, grad_loss, ctx.dtype)
    return grad_cls, grad_dist if grad_dist.numel() else None, *[None] * 10


distill_loss_forward.register_autograd(_differentiate, setup_context=_save)


def distill_loss(
    cls: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    lam: Tensor,
    terms: LossTerms,
    dist: Tensor | None = None,
    teacher: Tensor | None = None,
    backend: str = "reference",
) -> Tensor:
    """`distill_loss_parts`, the total alone."""
    return distill_loss_parts(cls, label_a, label_b, lam, terms, dist, teacher, backend).total


def distill_loss_parts(
    cls: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    lam: Tensor,
    terms: LossTerms,
    dist: Tensor | None = None,
    teacher: Tensor | None = None,
    backend: str = "reference",
) -> LossParts:
    """DeiT's loss, meaned over the batch: fp32 scalar on the device, differentiable in cls and dist; and its parts.

    cls, dist, teacher: logits [B, C] of any floating dtype; for hard distillation teacher may be its top classes, int64
    [B]. label_a, label_b int64 [B]; lam fp32 [B], the weight of label_a. backend: reference, or triton, which leaves
    inputs it does not take to the reference and says so once. ValueError for an unknown backend, or dist or teacher
    missing where `terms.kind` needs them.
    """
    check_backend(backend)
    if terms.kind != "none" and (dist is None or teacher is None):
        raise ValueError(f"distill.kind {terms.kind} needs the logits of the distillation token and of the teacher")
    if terms.kind == "soft" and teacher is not None and teacher.ndim == 1:
        raise ValueError("distill.kind soft needs the teacher's logits [B, C], not its top classes")
    if terms.kind == "none":
        dist = teacher = None
    if backend == "reference" or not _triton_takes(cls):
        return loss_parts_reference(cls, label_a, label_b, lam, terms, dist, teacher)
    dist = None if dist is None else dist.to(cls.dtype)
    teacher = None if teacher is None else teacher.detach()
    plain_terms = astuple(terms)  # an operator's arguments are tensors, numbers and strings
    total, part, _, _ = distill_loss_forward(cls, dist, teacher, label_a, label_b, lam, *plain_terms)
    return LossParts(total, part)


def _triton_takes(cls: Tensor) -> bool:
    if cls.shape[1] > MAX_CLASSES:
        say_once(f"distill_loss: the Triton kernel takes up to {MAX_CLASSES} classes, not {cls.shape[1]}: reference")
        return False
    if why := why_not_on(cls.device):
        say_once(f"distill_loss: the Triton kernel does not take {why}: reference")
        return False
    if cls.device.type == "cuda" and cls.dtype not in (*HALF, torch.float32):
        say_once(f"distill_loss: the Triton kernel does not take {cls.dtype}: reference")
        return False
    return True


def example_inputs(batch: int, num_classes: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Logits, labels and lam as a step has them, always the same; for tests and benchmarks."""
    generator = torch.Generator().manual_seed(num_classes)
    inputs = {name: torch.randn(batch, num_classes, generator=generator) for name in ("cls", "dist", "teacher")}
    labels = torch.randint(num_classes, (2, batch), generator=generator)
    return {
        **{name: (3 * logits).to(device, dtype) for name, logits in inputs.items()},
        "label_a": labels[0].to(device),
        "label_b": labels[1].to(device),
        "lam": torch.rand(batch, generator=generator).to(device, torch.promote_types(dtype, torch.float32)),
    }
