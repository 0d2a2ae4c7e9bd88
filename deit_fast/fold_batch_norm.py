"""Folds the batch norms of a frozen ConvNet into the convolutions before them: exact but for rounding.

In evaluation a batch norm is an affine map of each channel, which a convolution can absorb; one pass over every
activation less.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger("deit_fast")

TOLERANCE = 1e-3
"""Largest difference of the logits, relative to the largest logit, that rounding in fp32 explains."""


@torch.no_grad()
def fold_batch_norms(model: nn.Module, image_size_px: int) -> int:
    """Folds, in place, every batch norm whose input is a convolution's output; returns how many.

    model: in evaluation mode, fp32, on the CPU. Which norm follows which convolution is seen in a forward pass of one
    probe image. Where the folded model does not give the same logits (an output that is used twice), all is undone.
    """
    assert not model.training
    probe = torch.randn(1, 3, image_size_px, image_size_px, generator=torch.Generator().manual_seed(0))
    pairs, before = _trace(model, probe)
    saved = [(conv, conv.weight, conv.bias) for conv, _ in pairs]
    parents = {id(child): (parent, name) for parent in model.modules() for name, child in parent.named_children()}
    for conv, norm in pairs:
        _fold(conv, norm)
        parent, name = parents[id(norm)]
        setattr(parent, name, what_remains(norm))
    after = model(probe)
    if (after - before).abs().max() <= TOLERANCE * before.abs().max():
        return len(pairs)
    for conv, weight, bias in saved:
        conv.weight, conv.bias = weight, bias
    for _, norm in pairs:
        parent, name = parents[id(norm)]
        setattr(parent, name, norm)
    logger.warning("the teacher's batch norms cannot be folded into its convolutions; they stay")
    return 0


def _trace(model: nn.Module, probe: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """(convolution, the norm that takes its output) in order, and the logits of the probe."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, or its id could be given again
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def saw_output(module: nn.Module, _args: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        outputs[id(output)] = (module, output)

    def saw_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(args[0]) in outputs:
            pairs.append((outputs.pop(id(args[0]))[0], module))

    hooks = [m.register_forward_hook(saw_output) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(saw_input) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    logits = model(probe)
    for hook in hooks:
        hook.remove()
    return pairs, logits


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Computed in fp64: the weights are then as exact as fp32 holds them."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)


def what_remains(norm: nn.BatchNorm2d) -> nn.Module:
    """Of a norm that was folded away: timm's BatchNormAct2d also drops and activates."""
    left = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    return nn.Sequential(*left)
