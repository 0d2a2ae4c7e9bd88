"""The Triton attention in the interpreter: against the reference in fp64, at sizes that no tile divides."""

import pytest
import torch

from deit_fast.kernels.attention import attention
from deit_fast.kernels.attention.op import attention_backward, attention_forward, example_inputs
from deit_fast.kernels.attention.reference import attention_reference

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 2e-3, torch.float16: 2e-4}
HALF = (torch.bfloat16, torch.float16)


def value_and_gradient(function, qkv, grad_out):
    qkv = qkv.detach().requires_grad_()
    out = function(qkv)
    out.backward(grad_out.to(out.dtype))
    return out.detach().double(), qkv.grad.double()


def check(qkv, grad_out, floor_scale=1.0):
    """Output and gradient of the kernel are at most twice as far from the truth as eager torch in the same dtype."""
    truth = value_and_gradient(attention_reference, qkv.double(), grad_out.double())
    eager = value_and_gradient(attention_reference, qkv, grad_out)
    ours = value_and_gradient(lambda x: attention(x, "triton"), qkv, grad_out)
    for what, true, plain, mine in zip(("output", "gradient"), truth, eager, ours, strict=True):
        error, allowed = (mine - true).abs().max(), 2 * (plain - true).abs().max() + FLOOR[qkv.dtype] * floor_scale
        assert error <= allowed, f"{what}: {error:.2e}, allowed {allowed:.2e}"


def inputs(tokens, dtype, *, batch=1, heads=1, head_dim=16):
    qkv = example_inputs(tokens, dtype, "cpu", batch=batch, heads=heads, head_dim=head_dim)
    generator = torch.Generator().manual_seed(1)
    return qkv, torch.randn(batch, tokens, heads * head_dim, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize(("tokens", "batch", "heads"), [(1, 3, 1), (7, 1, 2), (17, 3, 1), (198, 1, 1)])
def test_short_rows(tokens, batch, heads, dtype):
    check(*inputs(tokens, dtype, batch=batch, heads=heads))


@pytest.mark.parametrize(("tokens", "dtype"), [(197, torch.bfloat16), (256, torch.float16)])
def test_short_rows_of_deit(tokens, dtype):
    check(*inputs(tokens, dtype, head_dim=64))


def test_a_short_forward_and_a_long_backward(monkeypatch):
    """What a GPU of little shared memory takes between 225 and 256 tokens; here between 17 and 256."""
    from deit_fast.kernels.attention import triton as kernels

    monkeypatch.setattr(kernels, "_short_backward_tokens", lambda _qkv: 16)
    check(*inputs(50, torch.bfloat16, batch=3))


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_tiles_of_every_architecture(head_dim, rows, monkeypatch):
    from deit_fast.kernels.attention import triton as kernels

    monkeypatch.setattr(kernels, "_backward_short_tiles", lambda _qkv: kernels.Tiles(rows, 8, 2))
    check(*inputs(50, torch.bfloat16, head_dim=head_dim))


@pytest.mark.parametrize(
    ("tokens", "dtype", "batch"),
    [
        pytest.param(257, torch.float32, 3, marks=pytest.mark.slow),
        (577, torch.bfloat16, 1),
        (578, torch.float16, 1),
        (1026, torch.bfloat16, 1),
    ],
)
def test_long_rows(tokens, dtype, batch):
    check(*inputs(tokens, dtype, batch=batch))


@pytest.mark.parametrize("tokens", [5, pytest.param(260, marks=pytest.mark.slow)])
def test_gradcheck(tokens):
    qkv = inputs(tokens, torch.float64)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention(x, "triton"), qkv, fast_mode=True)


@pytest.mark.parametrize("scale", [30.0, 0.0])
def test_extreme_scores(scale):
    """Scores of several thousands (one weight is 1, the others 0), and of nothing but zeros (all weights are equal)."""
    qkv, grad_out = inputs(33, torch.float32)
    check(qkv * scale, grad_out, floor_scale=max(1.0, scale**2))  # scores, and their rounding, grow with its square


def test_large_negative_scores_stay_finite():
    """lse far below 0: what stands for the missing keys of the last chunk must not overflow into the gradient."""
    qkv, grad_out = inputs(17, torch.float32)
    qkv[:, :, 0], qkv[:, :, 1] = 40.0, -40.0
    out, grad = value_and_gradient(lambda x: attention(x, "triton"), qkv, grad_out)
    assert out.isfinite().all()
    assert grad.isfinite().all()


def test_strides_of_the_inputs_do_not_matter():
    qkv, grad_out = inputs(19, torch.float32, batch=2, heads=2)
    wide = torch.cat([qkv, qkv], dim=1)
    transposed = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    plain = value_and_gradient(lambda x: attention(x, "triton"), qkv, grad_out)
    for other in (wide[:, :19], transposed):
        assert not other.is_contiguous()
        for a, b in zip(value_and_gradient(lambda x: attention(x, "triton"), other, grad_out), plain, strict=True):
            assert torch.equal(a, b)
    out, lse = attention_forward(qkv)
    expanded = torch.ones(1, 1, 1).expand_as(out)
    assert torch.equal(
        attention_backward(qkv, out, lse, expanded), attention_backward(qkv, out, lse, torch.ones_like(out))
    )
    expanded_qkv = qkv[:1].expand(2, -1, -1, -1, -1)
    assert torch.equal(attention_forward(expanded_qkv)[0], attention_forward(expanded_qkv.clone())[0])


def test_the_same_bits_every_time():
    qkv, grad_out = inputs(33, torch.bfloat16, heads=2)
    first, second = (value_and_gradient(lambda x: attention(x, "triton"), qkv, grad_out) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_a_wrong_kernel_is_found(monkeypatch):
    """The check can fail: with the scale off by 2 % the error is beyond what is allowed."""
    from deit_fast.kernels.attention import triton as kernels

    monkeypatch.setattr(kernels, "LOG2E", kernels.LOG2E * 1.02)
    with pytest.raises(AssertionError, match="output"):
        check(*inputs(17, torch.bfloat16))
