"""DeiT's loss and its gradient in one pass over the logits, a program a sample; formulas: `reference.py`.

    d ce / d cls = softmax(cls) - q          d bce / d cls = sigmoid(cls) - [q > 0]
    d hard / d dist = softmax(dist) - e_j    d KL / d dist = (softmax(dist / T) - softmax(teacher / T)) / T

Two launches in all. The forward reads each logit once; its bytes are those of cls, dist and teacher, and of both
gradients (14 a class and sample in bf16). Gradients are kept in fp32, times weight / B: in bf16 they would be rounded
twice, which failed the test against eager. The backward multiplies them by the incoming gradient.

Every program writes its sample's share of the loss and counts itself; the last one to do so adds the shares up, by
sample, so that the sum has the same bits on every run. Equal teacher logits: the lowest class, as torch.argmax.

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
SHARES_AT_A_TIME = 1024


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
    teacher,  # [B, C], rows teacher_stride apart; with CACHED its top classes [B]
    label_a,  # [B]
    label_b,  # [B]
    lam,  # [B]
    shares,  # [2, B]: of the loss, of its distillation
    finished,  # [1], 0 before and after
    loss,  # []
    distillation,  # []
    grad_cls,  # [B, C]
    grad_dist,  # [B, C]
    B,
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
    CACHED: tl.constexpr,
    BCE: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (B,); the weights are divided by B.

    Strides are known to the compiler: 1,000 classes are a multiple of 8, not of 16, so that it would else load 2 bytes
    at a time.
    """
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
    taught = tl.zeros([], SUM)
    share = label_weight * tl.sum(tl.where(valid, terms_C, 0.0), 0)
    tl.store(grad_cls + sample * C + c, (label_weight * gradient_C).to(grad_cls.dtype.element_ty), mask=valid)
    if KIND != "none":
        z_C = tl.load(dist + sample * dist_stride + c, mask=valid, other=float("-inf")).to(SUM) / temperature
        shifted_C, log_total, p_C = softmax_row(z_C)
        if KIND == "hard":
            if CACHED:
                top = tl.load(teacher + sample)
            else:
                top = tl.argmax(tl.load(teacher + sample * teacher_stride + c, mask=valid, other=float("-inf")), 0)
            terms_C = tl.where(c == top, log_total - shifted_C, 0.0)
            gradient_C = p_C - tl.where(c == top, 1.0, 0.0)
        else:
            t_C = tl.load(teacher + sample * teacher_stride + c, mask=valid, other=float("-inf")).to(SUM) / temperature
            teacher_shifted_C, teacher_log_total, target_C = softmax_row(t_C)
            terms_C = target_C * ((teacher_shifted_C - teacher_log_total) - (shifted_C - log_total))
            gradient_C = (p_C - target_C) / temperature
        taught = distill_weight * tl.sum(tl.where(valid, terms_C, 0.0), 0)
        tl.store(grad_dist + sample * C + c, (distill_weight * gradient_C).to(grad_dist.dtype.element_ty), mask=valid)
    tl.store(shares + sample, share + taught)
    tl.store(shares + B + sample, taught)
    # acquire and release: who counts last sees what all others wrote before they counted
    if tl.atomic_add(finished, 1, sem="acq_rel", scope="gpu") == B - 1:
        total_BLOCK = tl.zeros([BLOCK], SUM)
        taught_BLOCK = tl.zeros([BLOCK], SUM)
        for start in range(0, B, BLOCK):
            i = start + tl.arange(0, BLOCK)
            total_BLOCK += tl.load(shares + i, mask=i < B, other=0.0, cache_modifier=".cg")
            taught_BLOCK += tl.load(shares + B + i, mask=i < B, other=0.0, cache_modifier=".cg")
        tl.store(loss, tl.sum(total_BLOCK, 0))
        tl.store(distillation, tl.sum(taught_BLOCK, 0))
        tl.store(finished, 0)


@triton.jit
def scale_gradients(
    grad_cls,  # [n]
    grad_dist,  # [n]
    grad_loss,  # []
    scaled_cls,  # [n]
    scaled_dist,  # [n]
    n,
    BLOCK: tl.constexpr,
    DISTILLED: tl.constexpr,
):
    """Grid (cdiv(n, BLOCK),): both gradients times the incoming one."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    incoming = tl.load(grad_loss)
    cls = tl.load(grad_cls + i, mask=i < n)
    tl.store(scaled_cls + i, (cls * incoming).to(scaled_cls.dtype.element_ty), mask=i < n)
    if DISTILLED:
        dist = tl.load(grad_dist + i, mask=i < n)
        tl.store(scaled_dist + i, (dist * incoming).to(scaled_dist.dtype.element_ty), mask=i < n)


def forward(
    cls: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    lam: Tensor,
    terms: LossTerms,
    dist: Tensor | None,
    teacher: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, what of it is distillation, and the loss's gradients in cls and dist."""
    B, C = cls.shape
    sums = torch.promote_types(cls.dtype, torch.float32)
    loss, part, shares = (cls.new_empty(shape, dtype=sums) for shape in ((), (), (2, B)))
    grad_cls = cls.new_empty(B, C, dtype=sums)
    grad_dist = cls.new_empty((0,) if dist is None else (B, C), dtype=sums)
    cls, other, taught = (rows_of(t) for t in (cls, cls if dist is None else dist, cls if teacher is None else teacher))
    label_weight, distill_weight = terms.weights(C)
    launch(
        loss_and_gradients, (B,), cls, other, taught, label_a.contiguous(), label_b.contiguous(), lam.contiguous(),
        shares, finished_counter(cls), loss, part, grad_cls, grad_dist if dist is not None else grad_cls, B,
        terms.smoothing, 1.0 if terms.kind == "hard" else terms.temperature, label_weight / B, distill_weight / B,
        cls_stride=cls.stride(0), dist_stride=other.stride(0), teacher_stride=taught.stride(0), C=C,
        C_POW2=triton.next_power_of_2(C), KIND=terms.kind, CACHED=taught.ndim == 1, BCE=terms.label_loss == "bce",
        SUM=tl.float64 if sums == torch.float64 else tl.float32, BLOCK=SHARES_AT_A_TIME,
        num_warps=4 if C <= 2048 else 8,
    )  # fmt: skip
    return loss, part, grad_cls, grad_dist


def backward(grad_cls: Tensor, grad_dist: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both gradients times the incoming one, in the logits' dtype."""
    scaled_cls, scaled_dist = (torch.empty_like(grad, dtype=dtype) for grad in (grad_cls, grad_dist))
    distilled = grad_dist.numel() > 0
    other, scaled_other = (grad_dist, scaled_dist) if distilled else (grad_cls, scaled_cls)
    n = grad_cls.numel()
    launch(
        scale_gradients, (triton.cdiv(n, ELEMENTS_PER_PROGRAM),), grad_cls, other, grad_loss, scaled_cls, scaled_other,
        n, BLOCK=ELEMENTS_PER_PROGRAM, DISTILLED=distilled, num_warps=8,
    )  # fmt: skip
    return scaled_cls, scaled_dist


def rows_of(logits: Tensor) -> Tensor:
    """As it is if classes are adjacent, whatever the distance of rows; else a copy."""
    return logits if logits.stride(-1) == 1 else logits.contiguous()


_counters: dict[tuple[torch.device, int], Tensor] = {}


def finished_counter(like: Tensor) -> Tensor:
    """The count of finished programs, int32 [1]: kept, since the last program sets it back to 0, which saves a launch.

    One for each stream: launches of a stream follow one another, those of two streams may run side by side.
    """
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.device.type == "cuda" else 0
    key = like.device, stream
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=like.device)
    return _counters[key]
