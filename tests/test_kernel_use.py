"""Around the kernels: what import needs, what they leave to the reference, and how wrong use is named."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deit_fast.kernels import registration
from deit_fast.kernels.add_norm import add_norm, branch_slots
from deit_fast.kernels.add_norm import op as add_norm_op
from deit_fast.kernels.attention import attention
from deit_fast.kernels.attention import op as attention_op
from deit_fast.kernels.batch_prep import batch_prep
from deit_fast.kernels.batch_prep import op as batch_prep_op
from deit_fast.kernels.distill_loss import LossTerms, distill_loss
from deit_fast.kernels.distill_loss import op as distill_loss_op
from deit_fast.kernels.gelu_bias import gelu_bias
from deit_fast.kernels.gelu_bias import op as gelu_bias_op

KERNELS = ["attention", "distill_loss", "add_norm", "batch_prep", "gelu_bias"]
HARD = LossTerms("hard", smoothing=0.1)


def test_import_needs_neither_triton_nor_a_gpu():
    """In a process where triton cannot be imported and any look at CUDA raises."""
    program = """
import sys, torch
sys.modules["triton"] = None
def no_cuda(*_a, **_k): raise AssertionError("CUDA was asked for at import")
for name in ("_lazy_init", "is_available", "device_count", "get_device_capability"):
    setattr(torch.cuda, name, no_cuda)
import deit_fast.kernels.attention as a, deit_fast.kernels.add_norm, deit_fast.kernels.batch_prep
import deit_fast.kernels.distill_loss, deit_fast.kernels.gelu_bias
x = torch.randn(1, 3, 3, 1, 16, requires_grad=True)
a.attention(x, "triton").sum().backward()
assert x.grad.isfinite().all()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_what_a_kernel_does_not_take_is_said_once(monkeypatch):
    monkeypatch.setattr(registration, "_said", set())
    qkv = attention_op.example_inputs(4, torch.float32, "cpu", head_dim=24)
    with pytest.warns(UserWarning, match="Triton kernel does not take head dimension 24"):
        out = attention(qkv, "triton")
    assert torch.equal(out, attention(qkv, "sdpa"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention(qkv, "triton")


def test_it_is_said_while_compiling_too(monkeypatch):
    monkeypatch.setattr(registration, "_said", set())
    qkv = attention_op.example_inputs(4, torch.float32, "cpu", head_dim=40)
    with pytest.warns(UserWarning, match="head dimension 40"):
        out = torch.compile(lambda x: attention(x, "triton"), fullgraph=True, backend="eager")(qkv)
    assert torch.allclose(out, attention(qkv, "reference"), atol=1e-6)


def test_too_many_classes_and_channels_go_to_the_reference(monkeypatch):
    monkeypatch.setattr(registration, "_said", set())
    inputs = distill_loss_op.example_inputs(2, 9000, torch.float32, "cpu")
    with pytest.warns(UserWarning, match="up to 8192 classes, not 9000"):
        value = distill_loss(**inputs, terms=HARD, backend="triton")
    assert torch.equal(value, distill_loss(**inputs, terms=HARD))
    inputs = add_norm_op.example_inputs(1, 2, 4096, torch.float32, "cpu")
    with pytest.warns(UserWarning, match="up to 2048 channels, not 4096"):
        add_norm(**inputs, backend="triton")


def fallbacks_on_a_gpu(architecture, dtype, monkeypatch):
    """What the kernels say of inputs on a GPU of that architecture, asked for twice; fake tensors stand for them."""
    monkeypatch.setattr(registration, "_said", set())
    monkeypatch.setattr(registration, "_architecture", lambda _index: architecture)
    qkv = attention_op.example_inputs(4, dtype, "cpu", head_dim=16)
    loss = distill_loss_op.example_inputs(2, 5, dtype, "cpu")
    norm = add_norm_op.example_inputs(1, 2, 24, dtype, "cpu")
    prep = batch_prep_op.example_inputs(2, 16, torch.float32, "cpu")
    gelu = gelu_bias_op.example_inputs(2, 8, dtype, "cpu")
    with warnings.catch_warnings(record=True) as said, FakeTensorMode() as fakes:
        warnings.simplefilter("always")

        def on_gpu(tensor):
            return fakes.from_tensor(tensor).to("cuda")

        for _ in range(2):
            attention(on_gpu(qkv), "triton")
            distill_loss(**{name: on_gpu(value) for name, value in loss.items()}, terms=HARD, backend="triton")
            add_norm(**{name: on_gpu(value) for name, value in norm.items()}, backend="triton")
            batch_prep(**{name: on_gpu(value) for name, value in prep.items()}, dtype=dtype, backend="triton")
            gelu_bias(*map(on_gpu, gelu), "triton")
    return [str(warning.message) for warning in said]


def test_each_kernel_leaves_an_old_gpu_to_the_reference_and_says_so_once(monkeypatch):
    said = fallbacks_on_a_gpu(75, torch.float16, monkeypatch)
    assert [message.split(":")[0] for message in said] == KERNELS
    assert all("does not take a GPU of compute capability 7.5 (at least 8.0)" in message for message in said)


def test_each_kernel_leaves_fp64_on_a_gpu_to_the_reference_and_says_so_once(monkeypatch):
    said = fallbacks_on_a_gpu(90, torch.float64, monkeypatch)
    assert [message.split(":")[0] for message in said] == KERNELS
    assert all("torch.float64" in message for message in said)


def test_a_gpu_that_the_kernels_run_on_hears_nothing(monkeypatch):
    assert fallbacks_on_a_gpu(90, torch.bfloat16, monkeypatch) == []


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"kind": "warm"}, "distill.kind must be none, hard or soft, got warm"),
        ({"alpha": 1.5}, r"distill.alpha must be in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "distill.temperature must be above 0, got 0.0"),
        ({"smoothing": 1.0}, r"mix.label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_loss": "bce", "smoothing": 0.1}, "mix.label_smoothing must be 0 with the bce loss, got 0.1"),
    ],
)
def test_wrong_terms_are_named(terms, message):
    with pytest.raises(ValueError, match=message):
        LossTerms(**terms)


def test_wrong_use_is_named():
    loss = distill_loss_op.example_inputs(2, 5, torch.float32, "cpu")
    with pytest.raises(ValueError, match="needs the logits of the distillation token and of the teacher"):
        distill_loss(loss["cls"], loss["label_a"], loss["label_b"], loss["lam"], HARD)
    with pytest.raises(ValueError, match="unknown kernel backend cuda"):
        gelu_bias(torch.zeros(2, 3), torch.zeros(3), "cuda")
    with pytest.raises(ValueError, match=r"a bias \[F\], got \(2, 3\) and \(4,\)"):
        gelu_bias(torch.zeros(2, 3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"got \(2, 3, 8\) and \(1, 3, 8\)"):
        add_norm(torch.zeros(2, 3, 8), torch.zeros(1, 3, 8), torch.ones(8), torch.zeros(8))
    prep = batch_prep_op.example_inputs(2, 16, torch.float32, "cpu")
    with pytest.raises(ValueError, match="patches of 5 px do not tile images of 16 x 16 px"):
        batch_prep(**prep, dtype=torch.float32, patch_size_px=5)
    with pytest.raises(ValueError, match="partner must be its own inverse"):
        batch_prep(**(prep | {"partner": torch.tensor([1, 1])}), dtype=torch.float32)
    with pytest.raises(ValueError, match="bytes are normalised by mean and std"):
        batch_prep(**batch_prep_op.example_inputs(2, 16, torch.uint8, "cpu"), dtype=torch.float32)


def test_slots_of_a_subset():
    assert branch_slots(torch.tensor([3, 0]), 4).tolist() == [1, -1, -1, 0]
