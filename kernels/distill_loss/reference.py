"""The loss in plain torch: the truth that the kernel is compared with.

    q = (1 - s) (lam e_a + (1 - lam) e_b) + s / C                              (two labels, smoothed)
    ce   = -sum q log softmax(cls)            bce = mean over classes of BCE(cls, q > 0)
    hard = -log softmax(dist)[argmax teacher] soft = T^2 KL(softmax(teacher / T) || softmax(dist / T)) / C
    loss = mean over the batch of (1 - alpha) (ce or bce) + alpha (hard or soft)

Touvron et al. 2021, section 3; `losses.py` of facebookresearch/deit (its soft loss divides by B * C, hence the C above;
`batchmean` leaves it out); timm's `SoftTargetCrossEntropy`; BCE: Touvron et al. 2022 (DeiT III).

Shapes: B batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .terms import LossParts, LossTerms


def wide(logits: Tensor) -> Tensor:
    """At least fp32: sums over classes lose too much below it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def mixed_targets(label_a: Tensor, label_b: Tensor, lam: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """q [B, C], dense; timm's `mixup_target`."""
    one_hot_a, one_hot_b = (F.one_hot(label, num_classes).to(lam.dtype) for label in (label_a, label_b))
    mixed = lam[:, None] * one_hot_a + (1 - lam[:, None]) * one_hot_b
    return (1 - smoothing) * mixed + smoothing / num_classes


def top_class(teacher: Tensor) -> Tensor:
    """int64 [B]: of logits [B, C] the largest, of equal ones the lowest; labels [B] as they are."""
    return teacher if teacher.ndim == 1 else teacher.argmax(dim=1)


def loss_parts_reference(
    cls: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    lam: Tensor,
    terms: LossTerms,
    dist: Tensor | None = None,
    teacher: Tensor | None = None,
) -> LossParts:
    """cls, dist, teacher [B, C] (hard: or its top classes, int64 [B]); label_a, label_b int64 [B]; lam [B]."""
    targets = mixed_targets(label_a, label_b, lam, cls.shape[1], terms.smoothing)
    if terms.label_loss == "ce":
        label_term = F.cross_entropy(wide(cls), targets.to(wide(cls).dtype))
    else:
        label_term = F.binary_cross_entropy_with_logits(wide(cls), (targets > 0).to(wide(cls).dtype))
    if terms.kind == "none":
        return LossParts(label_term, 0.0)
    assert dist is not None
    assert teacher is not None
    if terms.kind == "hard":
        distillation = F.cross_entropy(wide(dist), top_class(teacher))
    else:
        T = terms.temperature
        log_p, log_q = F.log_softmax(wide(dist) / T, dim=1), F.log_softmax(wide(teacher) / T, dim=1)
        reduced = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * T**2
        distillation = reduced / cls.shape[1] if terms.soft_normalization == "official" else reduced
    weighted = terms.alpha * distillation
    return LossParts((1 - terms.alpha) * label_term + weighted, weighted.detach())


def gradients_reference(
    cls: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    lam: Tensor,
    terms: LossTerms,
    dist: Tensor | None,
    teacher: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What the kernel keeps for the backward: gradients of the loss in cls and dist, [B, C], at least fp32.

    Closed form, since autograd does not run inside an operator. The second is empty without distillation.
    """
    label_weight, distill_weight = (weight / len(cls) for weight in terms.weights(cls.shape[1]))
    targets = mixed_targets(label_a, label_b, lam, cls.shape[1], terms.smoothing)
    if terms.label_loss == "ce":
        grad_cls = wide(cls).softmax(dim=1) - targets
    else:
        grad_cls = wide(cls).sigmoid() - (targets > 0).to(lam.dtype)
    grad_cls = label_weight * grad_cls
    if terms.kind == "none":
        return grad_cls, grad_cls.new_empty(0)
    assert dist is not None
    assert teacher is not None
    if terms.kind == "hard":
        grad_dist = wide(dist).softmax(dim=1) - F.one_hot(top_class(teacher), cls.shape[1])
    else:
        T = terms.temperature
        grad_dist = ((wide(dist) / T).softmax(dim=1) - (wide(teacher) / T).softmax(dim=1)) / T
    return grad_cls, distill_weight * grad_dist
