"""Bytes that the kernels load and store, counted in the interpreter: those that are promised, and each but once."""

from collections import Counter

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from deit_fast.kernels.add_norm import triton as norm
from deit_fast.kernels.attention import triton as attention
from deit_fast.kernels.batch_prep import triton as prep
from deit_fast.kernels.batch_prep.op import example_inputs
from deit_fast.kernels.distill_loss import LossTerms
from deit_fast.kernels.distill_loss import op as loss_op
from deit_fast.kernels.distill_loss import triton as loss
from deit_fast.kernels.gelu_bias import triton as gelu

BF16 = torch.bfloat16


class Traffic:
    """`moved`: bytes of all loads and stores; `touched`: of those at different places."""

    def __init__(self):
        self.moved, self.places = Counter(), {"load": set(), "store": set()}

    def note(self, way, pointers, mask):
        size = pointers.get_element_ty().primitive_bitwidth // 8
        at = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
        self.moved[way] += at.size * size
        self.places[way].update(zip(at.ravel().tolist(), [size] * at.size, strict=True))

    def touched(self, way):
        return sum(size for _, size in self.places[way])


@pytest.fixture
def traffic(monkeypatch):
    found = Traffic()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def noted_load(self, pointers, mask, *rest):
        found.note("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def noted_store(self, pointers, value, mask, *rest):
        found.note("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", noted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", noted_store)
    return found


def check(traffic, loads, stores, slack=0.02):
    """Not less than promised, and no more but what columns and rows add."""
    for way, promised in (("load", loads), ("store", stores)):
        assert promised <= traffic.moved[way] <= (1 + slack) * promised, (way, traffic.moved[way] / promised)


@pytest.mark.parametrize("tokens", [50, pytest.param(198, marks=pytest.mark.slow)])
def test_attention_touches_4u_and_8u(traffic, tokens):
    """HBM: a head's tiles of queries share its keys and values in L2; the short backward reads all but once."""
    qkv = torch.randn(1, tokens, 3, 2, 64, dtype=BF16)
    u = 2 * tokens * 128
    out, lse = attention.forward(qkv)
    assert traffic.touched("load") == 3 * u
    assert traffic.touched("store") == traffic.moved["store"] == u + 4 * lse.numel()
    traffic.__init__()
    attention.backward(qkv, out, lse, torch.randn_like(out))
    check(traffic, 5 * u, 3 * u)


def test_add_norm_moves_6u_and_8u(traffic):
    B, N, C = 2, 33, 768
    x, branch = torch.randn(B, N, C), torch.randn(B, N, C, dtype=BF16)
    column, u = torch.randn(C), 2 * B * N * C
    total, y, mean, rstd = norm.forward(x, branch, column, column, None, None, torch.ones(B), None, 1e-6)
    # weight and shift are two columns for two rows, from the first cache
    assert traffic.touched("load") < 3.1 * u
    assert 3 * u <= traffic.moved["store"] < 3.02 * u
    traffic.__init__()
    norm.backward(x, y, total, mean, rstd, None, column, column, None, torch.ones(B), None, B)
    assert 5 * u <= traffic.touched("load") < 5.1 * u
    sums = 4 * 4 * norm.PROGRAMS_PER_SM * 2 * C  # of each program, in the interpreter on two multiprocessors
    assert traffic.moved["store"] == 3 * u + sums


def test_without_layer_scale_the_backward_leaves_the_branch_alone(traffic):
    x, branch, column = torch.randn(2, 3, 16), torch.randn(2, 3, 16), torch.ones(16)
    total, y, mean, rstd = norm.forward(x, branch, column, column, column, None, None, None, 1e-6)
    traffic.__init__()
    norm.backward(x, y, total, mean, rstd, branch, column, column, None, None, None, 2)
    start, end = branch.data_ptr(), branch.data_ptr() + branch.nbytes
    assert not [place for place, _ in traffic.places["load"] if start <= place < end]


@pytest.mark.parametrize(("source", "bytes_a_value"), [(torch.uint8, 5), (BF16, 6)])
def test_batch_prep_reads_each_byte_once(traffic, source, bytes_a_value):
    inputs = example_inputs(4, 64, source, "cpu")
    scale = torch.ones(3) if source == torch.uint8 else None
    prep.prepare(*inputs.values(), scale, scale, BF16, True, 16)
    values = inputs["images"].numel()
    check(traffic, (bytes_a_value - 4) * values, 4 * values, slack=0.03)


def test_gelu_moves_two_and_three_passes(traffic):
    x, bias = torch.randn(64, 256, dtype=BF16), torch.randn(256)
    gelu.forward(x, bias)
    check(traffic, x.nbytes, x.nbytes, slack=0.3)  # the bias for every 8 rows, from the first cache
    assert traffic.touched("load") == x.nbytes + bias.nbytes
    traffic.__init__()
    gelu.backward(x, x.clone(), bias)
    assert traffic.touched("load") == 2 * x.nbytes + bias.nbytes
    assert traffic.moved["load"] < 2.2 * x.nbytes + 16 * bias.nbytes


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_loss_reads_each_logit_once(traffic, kind):
    inputs = loss_op.example_inputs(3, 1000, BF16, "cpu")
    cls, dist, teacher = (inputs[name] for name in ("cls", "dist", "teacher"))
    *_, grad_cls, grad_dist = loss.forward(
        cls, inputs["label_a"], inputs["label_b"], inputs["lam"], LossTerms(kind, smoothing=0.1), dist, teacher
    )
    check(traffic, 3 * cls.nbytes, 2 * grad_cls.nbytes)
    traffic.__init__()
    loss.backward(grad_cls, grad_dist, torch.ones(()), BF16)
    check(traffic, 2 * grad_cls.nbytes, 2 * cls.nbytes)
