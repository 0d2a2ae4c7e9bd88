"""LAMB in a handful of launches for all parameters, skippable on the device (You et al. 2020).

The numbers are those of timm's `Lamb` and of apex's `FusedLAMB` with their defaults: gradients scaled to a global norm
of at most 1, Adam's update with bias correction plus decayed weights, times ||w|| / ||update|| where weights decay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MAX_GRAD_NORM = 1.0


class Lamb(torch.optim.Optimizer):
    """LAMB. `found_inf` (fp32 [1] on the device, as GradScaler sets it): 1 leaves weights and state as they are."""

    _step_supports_amp_scaling = True  # GradScaler then sets found_inf instead of waiting for the device
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which leaves the number of steps where the checkpoint was read: on the CPU."""
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            state["step"] = state["step"].to(p.device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        assert closure is None
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        # Unscaled by GradScaler.unscale_ already when grad_scale is None
        scale = 1.0 if self.grad_scale is None else 1 / self.grad_scale
        norm = torch.nn.utils.get_total_norm(gradients) * scale
        factor = scale / (norm / MAX_GRAD_NORM).clamp(min=1)
        keep = torch.ones_like(norm) if self.found_inf is None else 1 - self.found_inf.reshape(()).to(norm.dtype)
        for group in self.param_groups:
            self._step_group(group, factor, keep)

    def _step_group(self, group: dict[str, Any], factor: Tensor, keep: Tensor) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        beta1, beta2 = group["betas"]
        torch._foreach_add_([s["step"] for s in states], [keep] * len(states))
        step = states[0]["step"]
        scaled = torch._foreach_mul([p.grad for p in params], factor)
        # 0 times infinity is not a number: what a skipped step would add has to be replaced, not multiplied away
        gradients = [torch.where(keep > 0, g, 0) for g in scaled]
        torch._foreach_mul_(means, 1 - (1 - beta1) * keep)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, 1 - (1 - beta2) * keep)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)

        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, (1 - beta2**step).sqrt())
        torch._foreach_add_(denominators, group["eps"])
        updates = list(torch._foreach_div(means, 1 - beta1**step))
        torch._foreach_div_(updates, denominators)
        factors = [-group["lr"] * keep] * len(params)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            factors = [f * _trust(w, u) for f, w, u in zip(factors, *_norms(params, updates), strict=True)]
        torch._foreach_mul_(updates, factors)
        # in the first step, when it is skipped, the update is 0 / 0
        torch._foreach_add_(params, [torch.where(keep > 0, update, 0) for update in updates])


def _norms(params: list[Tensor], updates: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return list(torch._foreach_norm(params)), list(torch._foreach_norm(updates))


def _trust(weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """||w|| / ||update||, and 1 where either is 0."""
    return torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
