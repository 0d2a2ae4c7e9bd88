"""Every attention backend against the reference in fp64, forward and backward."""

import pytest
import torch

from deit_fast.kernels.attention import BACKENDS, attention
from deit_fast.kernels.attention.reference import attention_reference

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


# A CPU has neither SDPA's cuDNN nor its efficient backend, and Triton takes no heads of 8: they are said to fall back.
pytestmark = pytest.mark.filterwarnings("ignore:attention:UserWarning")


def packed(dtype, tokens=13, head_dim=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, tokens, 3, 3, head_dim, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("head_dim", [8, 16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_error_is_at_most_twice_that_of_eager(backend, head_dim, dtype):
    qkv = packed(dtype, head_dim=head_dim)
    truth = attention_reference(qkv.double())
    error = (attention(qkv, backend).double() - truth).abs().max()
    eager = (attention_reference(qkv).double() - truth).abs().max()
    assert error <= 2 * eager + FLOOR[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    qkv = packed(torch.float64, tokens=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention(x, backend), qkv)


def test_reference_is_torchs_attention():
    qkv = packed(torch.float64)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 13, 24)
    assert torch.allclose(attention_reference(qkv), theirs, atol=1e-12)


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="unknown attention backend flash9; the backends are"):
        attention(packed(torch.float32), "flash9")
    with pytest.raises(ValueError, match=r"\[B, N, 3, H, D\], got \(2, 13, 72\)"):
        attention(torch.zeros(2, 13, 72))
