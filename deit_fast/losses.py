"""The losses of DeiT, as the official source computes them, without building dense targets.

    (1 - alpha) * label loss(cls, mixed labels) + alpha * distillation loss(dist, teacher)

Touvron et al. 2021, section 3; `losses.py` of facebookresearch/deit; timm's `SoftTargetCrossEntropy`, `mixup_target`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from deit_fast.kernels.distill_loss import LossParts, LossTerms, distill_loss_parts
from deit_fast.kernels.registration import say_once

from .config import DistillConfig, LossConfig, MixConfig
from .mixing import MixedLabels

Output = Tensor | tuple[Tensor, Tensor]
Loss = Callable[[Output, MixedLabels, Tensor | None], LossParts]
"""(student output, labels, the teacher's answer or None) -> the loss, and how much of it is the teacher's."""


def full_precision(logits: Tensor) -> Tensor:
    """At least fp32: sums over classes lose too much below it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def label_loss(logits: Tensor, labels: MixedLabels, smoothing: float) -> Tensor:
    """Cross-entropy with the smoothed mix of two labels, meaned over the batch; fp32 scalar.

    logits [B, C]. The target is s/C everywhere, plus (1 - s) lam at label_a and (1 - s)(1 - lam) at label_b.
    """
    log_p = F.log_softmax(full_precision(logits), dim=-1)
    log_p_a = log_p.gather(1, labels.label_a[:, None])[:, 0]
    log_p_b = log_p.gather(1, labels.label_b[:, None])[:, 0]
    mixed = labels.lam * log_p_a + (1 - labels.lam) * log_p_b
    return -((1 - smoothing) * mixed + smoothing * log_p.mean(dim=-1)).mean()


def binary_label_loss(logits: Tensor, labels: MixedLabels) -> Tensor:
    """Binary cross-entropy over all classes, meaned over batch and classes; fp32 scalar (DeiT III).

    The target of a class is 1 when it has any part in the mixed image (`targets.gt(0)` in the official engine.py):
    BCE(x, t) = softplus(x) - t x, so the dense targets are not built.
    """
    logits = full_precision(logits)
    of_a = logits.gather(1, labels.label_a[:, None])[:, 0]
    of_b = logits.gather(1, labels.label_b[:, None])[:, 0]
    has_a, has_b = labels.lam > 0, (labels.lam < 1) & (labels.label_a != labels.label_b)
    # lam 0 leaves only label_b, also where both are the same class
    has_a = has_a | (labels.label_a == labels.label_b)
    positives = torch.where(has_a, of_a, 0).sum() + torch.where(has_b, of_b, 0).sum()
    return (F.softplus(logits).sum() - positives) / logits.numel()


def hard_distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's top class (equal ones: the lowest index), without smoothing; fp32 scalar."""
    return cached_distillation_loss(logits, top_class(teacher_logits))


def top_class(teacher_logits: Tensor) -> Tensor:
    """The class of the largest logit, int64 [B]; of equal ones the lowest index."""
    return teacher_logits.argmax(dim=1)


def cached_distillation_loss(logits: Tensor, teacher_labels: Tensor) -> Tensor:
    """Cross-entropy with the teacher's top class as a label cache gives it, int64 [B]; fp32 scalar."""
    return F.cross_entropy(full_precision(logits), teacher_labels)


def soft_distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float, normalization: str) -> Tensor:
    """T^2 KL(teacher / T || student / T); fp32 scalar.

    `official` divides the sum by B * C (the number of logits), `batchmean` by B alone, which is C times larger.
    """
    log_p = F.log_softmax(full_precision(logits) / temperature, dim=1)
    log_q = F.log_softmax(full_precision(teacher_logits) / temperature, dim=1)
    total = F.kl_div(log_p, log_q, reduction="sum", log_target=True) * temperature**2
    return total / (logits.numel() if normalization == "official" else len(logits))


def build_label_loss(loss: LossConfig, mix: MixConfig) -> Callable[[Tensor, MixedLabels], Tensor]:
    """(logits, labels) -> fp32 scalar."""
    if loss.label == "bce":
        return binary_label_loss
    return partial(label_loss, smoothing=mix.label_smoothing)


def cosub_loss(logits: Tensor, labels: MixedLabels, on_labels: Callable[[Tensor, MixedLabels], Tensor]) -> Tensor:
    """Co-training of two submodels (Touvron et al. 2022, arXiv 2212.04884): logits [2B, C] of two passes.

    A quarter each: both passes on the labels, and each on the other's probabilities, by binary cross-entropy.
    """
    one, other = full_precision(logits).chunk(2)
    taught_by_other = F.binary_cross_entropy_with_logits(one, other.detach().sigmoid())
    taught_by_one = F.binary_cross_entropy_with_logits(other, one.detach().sigmoid())
    return 0.25 * (on_labels(one, labels) + on_labels(other, labels) + taught_by_other + taught_by_one)


def build_loss(
    distill: DistillConfig, mix: MixConfig, loss: LossConfig | None = None, backend: str = "reference"
) -> Loss:
    """The loss of a run, fp32 scalars on the device; the variant is chosen here.

    The teacher's answer is its logits [B, C], or, for hard distillation from a label cache, its top classes, int64 [B].
    backend: reference, or triton, which has no cosub: that stays with the reference. ValueError for alpha outside
    [0, 1] or a temperature that is not positive.
    """
    if not 0 <= distill.alpha <= 1:
        raise ValueError(f"distill.alpha must be in [0, 1], got {distill.alpha}")
    if not distill.temperature > 0:
        raise ValueError(f"distill.temperature must be above 0, got {distill.temperature}")
    loss = loss or LossConfig()
    if backend == "triton" and not loss.cosub:
        return build_fused_loss(distill, mix, loss)
    if backend == "triton":
        say_once("runtime.kernels: loss.cosub has no distill_loss in Triton: reference")
    on_labels = build_label_loss(loss, mix)
    if distill.kind == "none":
        if loss.cosub:
            return lambda output, labels, _teacher: LossParts(cosub_loss(_single(output), labels, on_labels), 0.0)
        return lambda output, labels, _teacher: LossParts(on_labels(_single(output), labels), 0.0)
    on_teacher = build_distillation_loss(distill)
    alpha = distill.alpha

    def distilled(output: Output, labels: MixedLabels, answer: Tensor | None) -> LossParts:
        cls, dist = _both(output)
        assert answer is not None
        distillation = alpha * on_teacher(dist, answer)
        return LossParts((1 - alpha) * on_labels(cls, labels) + distillation, distillation.detach())

    return distilled


def build_fused_loss(distill: DistillConfig, mix: MixConfig, loss: LossConfig) -> Loss:
    """The same as one kernel forward and one backward."""
    terms = LossTerms(
        distill.kind, loss.label, mix.label_smoothing, distill.alpha, distill.temperature, distill.soft_normalization
    )
    if distill.kind == "none":
        return lambda output, labels, _teacher: distill_loss_parts(_single(output), *labels, terms, backend="triton")

    def distilled(output: Output, labels: MixedLabels, answer: Tensor | None) -> LossParts:
        cls, dist = _both(output)
        return distill_loss_parts(cls, *labels, terms, dist, answer, backend="triton")

    return distilled


def build_distillation_loss(distill: DistillConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits of the distillation token, the teacher's answer) -> fp32 scalar."""
    if distill.kind == "soft":
        return partial(
            soft_distillation_loss, temperature=distill.temperature, normalization=distill.soft_normalization
        )
    return hard_distillation_loss if distill.label_cache is None else cached_distillation_loss


def _single(output: Output) -> Tensor:
    assert not isinstance(output, tuple)
    return output


def _both(output: Output) -> tuple[Tensor, Tensor]:
    assert isinstance(output, tuple)
    return output
