"""GELU after a bias in plain torch: the truth that the kernel is compared with.

    y = z Phi(z), z = x + bias;    dx = dy (Phi(z) + z phi(z));    dbias = column sums of dx

Hendrycks & Gimpel 2016, the exact form (erf), as DeiT has it. Shapes: F features (4 C), any number of rows before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """At least fp32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gelu_bias_reference(x: Tensor, bias: Tensor) -> Tensor:
    """x [..., F] without its linear's bias, bias [F] -> [..., F] of x's dtype."""
    return F.gelu(wide(x) + bias).to(x.dtype)


def gelu_bias_backward_reference(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, of its dtype, and of the bias, at least fp32; in closed form."""
    z = wide(x) + bias
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    grad = wide(grad_y) * (torch.special.ndtr(z) + z * density)
    return grad.to(x.dtype), grad.flatten(0, -2).sum(0)
