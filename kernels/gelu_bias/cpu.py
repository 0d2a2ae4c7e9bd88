"""GELU after a bias on a CPU: compiled loops, with one exponential for value and slope; else the reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deit_fast.kernels.cpu import library

from .reference import gelu_bias_backward_reference, gelu_bias_reference


def forward_on_cpu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias), [..., F]."""
    if not (library.takes_rows(x) and library.takes_vectors(bias)):
        return gelu_bias_reference(x, bias)
    y = torch.empty(x.shape, dtype=x.dtype)
    library.call("gelu_bias", _task(x), {"x": x, "bias": bias, "y": y}, backward=False)
    return y


def backward_on_cpu(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, of its dtype, and of the bias, fp32 [F]."""
    if not (library.takes_rows(grad_y, x) and library.takes_vectors(bias)) or grad_y.dtype != x.dtype:
        return gelu_bias_backward_reference(grad_y, x, bias)
    task, grad_x = _task(x), torch.empty(x.shape, dtype=x.dtype)
    sums = library.partial_sums(task.rows, task.width)
    tensors = {"grad_y": grad_y, "x": x, "bias": bias, "grad_x": grad_x, "sums": sums}
    library.call("gelu_bias", task, tensors, backward=True)
    return grad_x, sums.sum(0)


def _task(x: Tensor) -> library.GeluBias:
    width = x.shape[-1]
    return library.GeluBias(
        rows=math.prod(x.shape[:-1]), width=width, dtype=library.DTYPES[x.dtype], level=library.best_level()
    )
