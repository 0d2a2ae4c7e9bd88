"""The optimizer with the official parameter groups (timm 0.3's `create_optimizer`)."""

from __future__ import annotations

import torch
from torch import nn

from .apex import find_apex, fused_optimizer
from .config import OptimConfig
from .lamb import Lamb
from .model import DeiT

LR_REFERENCE_BATCH = 512
EPSILON = 1e-8


def scaled_lr(optim: OptimConfig, global_batch_size: int) -> float:
    """The peak learning rate: optim.lr times global batch / 512, unless optim.scale_lr is off."""
    return optim.lr * global_batch_size / LR_REFERENCE_BATCH if optim.scale_lr else optim.lr


def undecayed_names(model: nn.Module, optim: OptimConfig) -> set[str]:
    """Parameters without weight decay besides vectors and biases: positions and tokens."""
    if isinstance(model, DeiT):
        return {"pos_embed", "cls_token"} | (set() if optim.decay_dist_token else {"dist_token"})
    named_by_model = getattr(model, "no_weight_decay", None)  # timm's models
    return set(named_by_model()) if callable(named_by_model) else set()


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, object]]:
    """Two groups: with weight decay, and without (one-dimensional, biases, positions, tokens)."""
    names = undecayed_names(model, optim)
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim == 1 or name.endswith(".bias") or name in names
        (undecayed if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, optim: OptimConfig, *, global_batch_size: int) -> torch.optim.Optimizer:
    """AdamW or LAMB, eps 1e-8, betas 0.9 and 0.999; NVIDIA's apex does it where it can, else torch's fused AdamW and
    this package's LAMB."""
    lr = scaled_lr(optim, global_batch_size)
    groups = parameter_groups(model, optim)
    on_cuda = all(parameter.is_cuda for parameter in model.parameters())
    if optim.apex == "auto" and on_cuda and find_apex() == "nvidia":
        return fused_optimizer(optim.name)(groups, lr=lr, eps=EPSILON)
    if optim.name == "lamb":
        return Lamb(groups, lr=lr, eps=EPSILON)
    return torch.optim.AdamW(groups, lr=lr, eps=EPSILON, fused=True)
