"""Which loss is meant: its terms and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor


class LossParts(NamedTuple):
    """Scalars on the device, at least fp32: the loss, and how much of it is distillation."""

    total: Tensor
    """Differentiable in the logits."""
    distillation: Tensor | float
    """Times its weight, detached; 0 without distillation."""


@dataclass(frozen=True)
class LossTerms:
    """(1 - alpha) * label loss + alpha * distillation loss; the label loss alone without distillation.

    ValueError for a value out of its range.
    """

    kind: Literal["none", "hard", "soft"] = "none"
    label_loss: Literal["ce", "bce"] = "ce"
    smoothing: float = 0.0
    alpha: float = 0.5
    temperature: float = 1.0
    soft_normalization: Literal["official", "batchmean"] = "official"

    def __post_init__(self) -> None:
        if self.kind not in ("none", "hard", "soft"):
            raise ValueError(f"distill.kind must be none, hard or soft, got {self.kind}")
        if self.label_loss not in ("ce", "bce"):
            raise ValueError(f"label_loss must be ce or bce, got {self.label_loss}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"distill.alpha must be in [0, 1], got {self.alpha}")
        if not self.temperature > 0:
            raise ValueError(f"distill.temperature must be above 0, got {self.temperature}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"mix.label_smoothing must be in [0, 1), got {self.smoothing}")
        if self.label_loss == "bce" and self.smoothing != 0:
            raise ValueError(
                f"mix.label_smoothing must be 0 with the bce loss, got {self.smoothing}: its targets are target > 0, "
                "which smoothing would make 1 for every class"
            )

    def weights(self, num_classes: int) -> tuple[float, float]:
        """What a sample's label term (summed over classes for bce) and distillation term are multiplied by.

        The distillation term is the cross-entropy (hard) or KL(teacher / T || student / T), summed over classes (soft).
        """
        label = 1.0 if self.kind == "none" else 1 - self.alpha
        if self.label_loss == "bce":
            label /= num_classes
        if self.kind != "soft":
            return label, 0.0 if self.kind == "none" else self.alpha
        divisor = num_classes if self.soft_normalization == "official" else 1
        return label, self.alpha * self.temperature**2 / divisor
