"""What happens to a step's gradients: checked, clipped, applied; a step that is not finite is skipped on the device.

The host does not wait to learn whether a step was skipped: the optimizer gets the answer as a tensor, and the trainer
reads it at the next log step together with the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StepRecord:
    """What a step was, read at a log step."""

    step: int
    loss: float
    """This rank's loss; not finite when it was this rank that spoilt the step, as a rule."""
    gradient_norm: float
    """Of all ranks' mean gradient, before clipping."""
    views: Tensor
    """int64 [B], this rank's."""
    distillation_loss: float = 0.0
    """The part of the loss that is the teacher's: alpha times the distillation loss."""

    @property
    def skipped(self) -> bool:
        """Whether the gradients were not finite, so that the weights stayed as they were."""
        return not torch.isfinite(torch.tensor(self.gradient_norm)).item()


def spoil_gradients(loss: Tensor) -> Tensor:
    """The same loss, whose gradients are not finite where it is not.

    An infinite cross-entropy may have finite gradients; only these are summed over the ranks, and now tell all to skip.
    """
    return loss * (1 + 0 * loss.detach())  # 0 times infinity is not a number


class GradientGuard:
    """Applies gradients unless they are not finite; after an all-reduce all ranks have the same, so all agree."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        clip_grad_norm: float | None,
    ) -> None:
        self.parameters, self.optimizer, self.scaler = parameters, optimizer, scaler
        self.clip: Callable[[Tensor], None] = lambda _norm: None
        if clip_grad_norm is not None:
            self.clip = lambda norm: nn.utils.clip_grads_with_norm_(self.parameters, clip_grad_norm, norm)
        skips_on_device = getattr(optimizer, "_step_supports_amp_scaling", False)
        self._apply = self._apply_on_device if skips_on_device else self._apply_on_host
        self._recent: list[tuple[int, Tensor, Tensor | float, Tensor, Tensor]] = []

    @torch.no_grad()
    def apply(self, step: int, loss: Tensor, views: Tensor, distillation: Tensor | float = 0.0) -> Tensor:
        """Unscales, checks, clips and applies the gradients; returns the loss, or 0 for a skipped step."""
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(norm)
        self.clip(norm)
        self._apply(finite)
        self._recent.append((step, loss, distillation, norm, views))
        return torch.where(finite & torch.isfinite(loss), loss, 0)

    def _apply_on_device(self, finite: Tensor) -> None:
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)  # with fp16 the scaler sets found_inf itself
        self.scaler.update()

    def _apply_on_host(self, finite: Tensor) -> None:
        """For optimizers that cannot skip on the device (apex's): the host waits."""
        if finite.item():
            self.optimizer.step()
        self.scaler.update()

    def take(self) -> list[StepRecord]:
        """The steps since the last call; waits for the device."""
        recent, self._recent = self._recent, []
        if not recent:
            return []
        steps, losses, parts, norms, views = zip(*recent, strict=True)
        numbers = torch.stack([_column(values, norms[0].device) for values in (losses, norms, parts)])
        return [
            StepRecord(step, loss, norm, view, part)
            for step, view, (loss, norm, part) in zip(steps, views, numbers.T.tolist(), strict=True)
        ]


def _column(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in values])
