"""The GELU kernels in the interpreter: output and both gradients against the reference in fp64."""

import pytest
import torch

from deit_fast.kernels.gelu_bias import gelu_bias
from deit_fast.kernels.gelu_bias.op import example_inputs

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-4, torch.float16: 1e-5}


def results(x, bias, grad_y, backend):
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = gelu_bias(x, bias, backend)
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, (x, bias), grad_y.to(y.dtype)))]


def check(x, bias, grad_y):
    truth = results(x.double(), bias.double(), grad_y, "reference")
    eager, ours = (results(x, bias, grad_y, backend) for backend in ("reference", "triton"))
    for true, plain, mine in zip(truth, eager, ours, strict=True):
        scale = max(1.0, true.abs().max().item())
        assert (mine - true).abs().max() <= 2 * (plain - true).abs().max() + FLOOR[x.dtype] * scale


@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize(("rows", "features"), [(1, 7), (37, 300), (17, 256)])
def test_output_and_gradients(rows, features, dtype):
    x, bias = example_inputs(rows, features, dtype, "cpu")
    check(x, bias, torch.randn(rows, features, generator=torch.Generator().manual_seed(1)).to(dtype))


def test_gradcheck():
    x, bias = example_inputs(5, 6, torch.float64, "cpu")
    leaves = (x.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, bias: gelu_bias(x, bias, "triton"), leaves)


@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_extreme_values(value):
    x, bias = torch.full((3, 5), value), torch.zeros(5)
    check(x, bias, torch.ones(3, 5))
    assert all(result.isfinite().all() for result in results(x, bias, torch.ones(3, 5), "triton"))


def test_any_strides_and_the_same_bits():
    x, bias = example_inputs(40, 64, torch.bfloat16, "cpu")
    grad_y = torch.ones(1, 1).expand(40, 64)
    plain = results(x, bias, grad_y.contiguous(), "triton")
    again = results(torch.cat([x, x], dim=1)[:, :64].view(8, 5, 64), bias, grad_y.view(8, 5, 64), "triton")
    assert all(torch.equal(a, b.view_as(a)) for a, b in zip(plain, again, strict=True))
