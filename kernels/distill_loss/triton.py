"""DeiT's loss and its gradient in one pass over the logits, a program a sample; formulas: `reference.py`.

    d ce / d cls = softmax(cls) - q          d bce / d cls = sigmoid(cls) - [q > 0]
    d hard / d dist = softmax(dist) - e_j    d KL / d dist = (softmax(dist / T) - softmax(teacher / T)) / T

Each logit is read once: bytes are those of cls, dist and teacher, and of both gradients (14 a class and sample in
bf16). Gradients are kept in fp32, before weights and 1/B: in bf16 they would be rounded twice, which failed the test
against eager. The backward multiplies them by weight * incoming gradient / B in one launch. No atomics: a program
writes its sample's loss, a second launch adds them up. Equal teacher logits: the lowest class, as torch.argmax.

Shapes: B batch, C classes, C_POW2 the next power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deit_fast.kernels.launch import launch

from .terms import LossTerms

ELEMENTS_PER_PROGRAM = 4096


@triton.jit
def softmax_row(logits_C):
    """Logits minus their maximum, the log of the sum of their exponentials, and the softmax; -inf counts as absent."""
    shifted_C = logits_C - tl.max(logits_C, 0)
    exp_C = tl.exp(shifted_C)
    total = tl.sum(exp_C, 0)
    return shifted_C, tl.log(total), exp_C / total


@triton.jit
def loss_and_gradients(
    cls,  # [B, C], rows cls_stride apart
    dist,  # [B, C], rows dist_stride apart
    teacher,  # [B, C], rows teacher_stride apart
    label_a,  # [B]
    label_b,  # [B]
    lam,  # [B]
    losses,  # [B]
    grad_cls,  # [B, C]
    grad_dist,  # [B, C]
    smoothing,
    temperature,
    label_weight,
    distill_weight,
    cls_stride: tl.constexpr,
    dist_stride: tl.constexpr,
    teacher_stride: tl.constexpr,
    C: tl.constexpr,
    C_POW2: tl.constexpr,
    KIND: tl.constexpr,
    BCE: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (B,). Strides are known to the compiler: 1,000 classes are a multiple of 8, not of 16, so that it would else
    load 2 bytes at a time."""
    sample = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, C_POW2)
    valid = c < C
    x_C = tl.load(cls + sample * cls_stride + c, mask=valid, other=float("-inf")).to(SUM)
    a = tl.load(label_a + sample)
    b = tl.load(label_b + sample)
    lam_a = tl.load(lam + sample)
    q_C = tl.where(c == a, lam_a, 0.0) + tl.where(c == b, 1 - lam_a, 0.0)
    if BCE:
        target_C = tl.where(q_C > 0, 1.0, 0.0)
        abs_exp_C = tl.exp(-tl.abs(x_C))
        terms_C = tl.maximum(x_C, 0.0) - x_C * target_C + tl.log(1 + abs_exp_C)
        gradient_C = tl.where(x_C > 0, 1.0, abs_exp_C) / (1 + abs_exp_C) - target_C
    else:
        q_C = (1 - smoothing) * q_C + smoothing / C
        shifted_C, log_total, p_C = softmax_row(x_C)
        terms_C = q_C * (log_total - shifted_C)
        gradient_C = p_C - q_C
    loss = label_weight * tl.sum(tl.where(valid, terms_C, 0.0), 0)
    tl.store(grad_cls + sample * C + c, gradient_C.to(grad_cls.dtype.element_ty), mask=valid)
    if KIND != "none":
        z_C = tl.load(dist + sample * dist_stride + c, mask=valid, other=float("-inf")).to(SUM) / temperature
        t_C = tl.load(teacher + sample * teacher_stride + c, mask=valid, other=float("-inf")).to(SUM) / temperature
        shifted_C, log_total, p_C = softmax_row(z_C)
        if KIND == "hard":
            is_top_C = c == tl.argmax(t_C, 0)
            terms_C = tl.where(is_top_C, log_total - shifted_C, 0.0)
            gradient_C = p_C - tl.where(is_top_C, 1.0, 0.0)
        else:
            teacher_shifted_C, teacher_log_total, target_C = softmax_row(t_C)
            terms_C = target_C * ((teacher_shifted_C - teacher_log_total) - (shifted_C - log_total))
            gradient_C = (p_C - target_C) / temperature
        loss += distill_weight * tl.sum(tl.where(valid, terms_C, 0.0), 0)
        tl.store(grad_dist + sample * C + c, gradient_C.to(grad_dist.dtype.element_ty), mask=valid)
    tl.store(losses + sample, loss)


@triton.jit
def scale_gradients(
    grad_cls,  # [n]
    grad_dist,  # [n]
    grad_loss,  # []
    scaled_cls,  # [n]
    scaled_dist,  # [n]
    n,
    label_weight,
    distill_weight,
    BLOCK: tl.constexpr,
    DISTILLED: tl.constexpr,
):
    """Grid (cdiv(n, BLOCK),): both gradients times their weight and the incoming gradient."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    incoming = tl.load(grad_loss)
    cls = tl.load(grad_cls + i, mask=i < n)
    tl.store(scaled_cls + i, (cls * (incoming * label_weight)).to(scaled_cls.dtype.element_ty), mask=i < n)
    if DISTILLED:
        dist = tl.load(grad_dist + i, mask=i < n)
        tl.store(scaled_dist + i, (dist * (incoming * distill_weight)).to(scaled_dist.dtype.element_ty), mask=i < n)


def forward(
    cls: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    lam: Tensor,
    terms: LossTerms,
    dist: Tensor | None,
    teacher: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and the gradients of cls and dist before their weights."""
    B, C = cls.shape
    sums = torch.promote_types(cls.dtype, torch.float32)
    losses = cls.new_empty(B, dtype=sums)
    grad_cls = cls.new_empty(B, C, dtype=sums)
    grad_dist = cls.new_empty((0,) if dist is None else (B, C), dtype=sums)
    cls, other, taught = (rows_of(t) for t in (cls, cls if dist is None else dist, cls if teacher is None else teacher))
    label_weight, distill_weight = terms.weights(C)
    launch(
        loss_and_gradients, (B,), cls, other, taught, label_a.contiguous(), label_b.contiguous(), lam.contiguous(),
        losses, grad_cls, grad_dist if dist is not None else grad_cls, terms.smoothing,
        1.0 if terms.kind == "hard" else terms.temperature, label_weight, distill_weight, cls_stride=cls.stride(0),
        dist_stride=other.stride(0), teacher_stride=taught.stride(0), C=C, C_POW2=triton.next_power_of_2(C),
        KIND=terms.kind, BCE=terms.label_loss == "bce", SUM=tl.float64 if sums == torch.float64 else tl.float32,
        num_warps=4 if C <= 2048 else 8,
    )  # fmt: skip
    return losses.mean(), grad_cls, grad_dist


def backward(
    grad_cls: Tensor,
    grad_dist: Tensor,
    grad_loss: Tensor,
    label_weight: float,
    distill_weight: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Both gradients times their weight and the incoming gradient, in the logits' dtype."""
    scaled_cls, scaled_dist = (torch.empty_like(grad, dtype=dtype) for grad in (grad_cls, grad_dist))
    distilled = grad_dist.numel() > 0
    other, scaled_other = (grad_dist, scaled_dist) if distilled else (grad_cls, scaled_cls)
    n = grad_cls.numel()
    launch(
        scale_gradients, (triton.cdiv(n, ELEMENTS_PER_PROGRAM),), grad_cls, other, grad_loss, scaled_cls, scaled_other,
        n, label_weight, distill_weight, BLOCK=ELEMENTS_PER_PROGRAM, DISTILLED=distilled, num_warps=8,
    )  # fmt: skip
    return scaled_cls, scaled_dist


def rows_of(logits: Tensor) -> Tensor:
    """As it is if classes are adjacent, whatever the distance of rows; else a copy."""
    return logits if logits.stride(1) == 1 else logits.contiguous()
