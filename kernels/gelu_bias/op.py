"""gelu(x + bias) as one differentiable function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deit_fast.kernels.registration import check_backend, kernel_op, say_once, why_not_on

from .cpu import backward_on_cpu, forward_on_cpu
from .reference import gelu_bias_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@kernel_op("gelu_bias_forward", forward_on_cpu)
def gelu_bias_forward(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias), [..., F]."""
    from .triton import forward

    return forward(x, bias)


@gelu_bias_forward.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape)


@kernel_op("gelu_bias_backward", backward_on_cpu)
def gelu_bias_backward(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, of its dtype, and of the bias, fp32 [F]."""
    from .triton import backward

    return backward(grad_y, x, bias)


@gelu_bias_backward.register_fake
def _(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape), x.new_empty(x.shape[-1], dtype=torch.promote_types(x.dtype, torch.float32))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    grad_x, grad_bias = gelu_bias_backward(grad_y, x, bias)
    return grad_x, grad_bias.to(bias.dtype)


gelu_bias_forward.register_autograd(_differentiate, setup_context=_save)


def gelu_bias(x: Tensor, bias: Tensor, backend: str = "reference") -> Tensor:
    """gelu(x + bias), the exact form: x [..., F] is a linear's output without its bias [F] -> x's shape and dtype.

    backend: reference, or triton, which leaves inputs it does not take to the reference and says so once.
    ValueError for an unknown backend or shapes that do not match.
    """
    check_backend(backend)
    if bias.shape != x.shape[-1:] or x.ndim < 2:
        raise ValueError(f"gelu_bias takes x [..., F] and a bias [F], got {tuple(x.shape)} and {tuple(bias.shape)}")
    if backend == "triton" and _triton_takes(x):
        return gelu_bias_forward(x, bias)
    return gelu_bias_reference(x, bias)


def _triton_takes(x: Tensor) -> bool:
    if why := why_not_on(x.device):
        say_once(f"gelu_bias: the Triton kernel does not take {why}: reference")
        return False
    if x.device.type == "cuda" and x.dtype not in DTYPES:
        say_once(f"gelu_bias: the Triton kernel does not take {x.dtype}: reference")
        return False
    return True


def example_inputs(rows: int, features: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """x and bias, always the same; for tests and benchmarks."""
    generator = torch.Generator().manual_seed(features)
    x, bias = (2 * torch.randn(shape, generator=generator) for shape in ((rows, features), (features,)))
    return x.to(device, dtype), bias.to(device, torch.promote_types(dtype, torch.float32))
