"""Exponential moving average of the whole state dict, parameters and buffers (timm's `ModelEma`, as DeiT uses it)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """average <- decay * average + (1 - decay) * model, after every step; `module` is that model, in eval mode."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """ValueError unless decay is in [0, 1)."""
        if not 0 <= decay < 1:
            raise ValueError(f"optim.ema_decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the model's weights in: two launches for all floating-point tensors, not two per tensor."""
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        averages = [average for average, _ in pairs if average.is_floating_point()]
        values = [value for average, value in pairs if average.is_floating_point()]
        torch._foreach_lerp_(averages, values, 1 - self.decay)
        for average, value in pairs:
            if not average.is_floating_point():  # counters of batch norm
                average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, under the model's names."""
        return self.module.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Takes up averaged weights."""
        self.module.load_state_dict(state_dict)
