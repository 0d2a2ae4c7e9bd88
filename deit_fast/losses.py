"""The losses of DeiT, as the official source computes them, without building dense targets.

    (1 - alpha) * label loss(cls, mixed labels) + alpha * distillation loss(dist, teacher)

Touvron et al. 2021, section 3; `losses.py` of facebookresearch/deit; timm's `SoftTargetCrossEntropy`, `mixup_target`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import DistillConfig, MixConfig
from .mixing import MixedLabels

Output = Tensor | tuple[Tensor, Tensor]
Loss = Callable[[Output, MixedLabels, Tensor | None], Tensor]


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


def hard_distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's top class (equal ones: the lowest index), without smoothing; fp32 scalar."""
    return F.cross_entropy(full_precision(logits), teacher_logits.argmax(dim=1))


def soft_distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float, normalization: str) -> Tensor:
    """T^2 KL(teacher / T || student / T); fp32 scalar.

    `official` divides the sum by B * C (the number of logits), `batchmean` by B alone, which is C times larger.
    """
    log_p = F.log_softmax(full_precision(logits) / temperature, dim=1)
    log_q = F.log_softmax(full_precision(teacher_logits) / temperature, dim=1)
    total = F.kl_div(log_p, log_q, reduction="sum", log_target=True) * temperature**2
    return total / (logits.numel() if normalization == "official" else len(logits))


def build_loss(distill: DistillConfig, mix: MixConfig) -> Loss:
    """(student output, labels, teacher logits or None) -> fp32 scalar on the device; the variant is chosen here.

    ValueError for alpha outside [0, 1] or a temperature that is not positive.
    """
    if not 0 <= distill.alpha <= 1:
        raise ValueError(f"distill.alpha must be in [0, 1], got {distill.alpha}")
    if not distill.temperature > 0:
        raise ValueError(f"distill.temperature must be above 0, got {distill.temperature}")
    smoothing, alpha = mix.label_smoothing, distill.alpha
    if distill.kind == "none":
        return lambda output, labels, _teacher: label_loss(_single(output), labels, smoothing)

    def distilled(output: Output, labels: MixedLabels, teacher_logits: Tensor | None) -> Tensor:
        assert isinstance(output, tuple)
        assert teacher_logits is not None
        cls, dist = output
        if distill.kind == "hard":
            distillation = hard_distillation_loss(dist, teacher_logits)
        else:
            distillation = soft_distillation_loss(dist, teacher_logits, distill.temperature, distill.soft_normalization)
        return (1 - alpha) * label_loss(cls, labels, smoothing) + alpha * distillation

    return distilled


def _single(output: Output) -> Tensor:
    assert not isinstance(output, tuple)
    return output
