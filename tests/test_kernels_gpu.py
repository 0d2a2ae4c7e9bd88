"""On a CUDA device: the same kernels on the device, at the sizes of training, and the same bits on every run.

Races: compute-sanitizer --tool racecheck python -m pytest tests/test_kernels_gpu.py -k small (docs/kernels.md).
None of these tests was run yet; what of them does not depend on the device is run on a CPU, by test_kernel_twins.py.
"""

import pytest
import torch
from far_rows import FAR_ROWS, check_far_row
from tiny_step import build_tiny_step, check_against_reference, tiny_batch

from deit_fast.benchmarks.kernel_contenders import Sizes, contests
from deit_fast.benchmarks.kernels import forward_backward, is_correct
from deit_fast.kernels.attention import BACKENDS, attention
from deit_fast.kernels.attention.op import example_inputs
from deit_fast.kernels.attention.reference import attention_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KERNELS = ("attention", "distill_loss", "batch_prep", "add_norm", "gelu_bias")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def contest(name, sizes, dtype, device="cuda"):
    return next(c for c in contests(sizes, dtype, device) if c.name == name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_small(name, dtype):
    found = contest(name, Sizes(batch=2, heads=2, classes=100, image_size_px=64), dtype)
    assert is_correct(found, found.run("triton"))


@pytest.mark.parametrize("name", KERNELS)
def test_at_the_sizes_of_training(name):
    found = contest(name, Sizes(batch=16), torch.bfloat16)
    assert is_correct(found, found.run("triton"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7, 17, 197, 198, 256, 257, 577, 578, 1026])
def test_attention_of_any_length(tokens, dtype):
    found = contest("attention", Sizes(batch=3, tokens=tokens, heads=2), dtype)
    assert is_correct(found, found.run("triton"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_attention_backend_is_finite_and_right(backend):
    qkv = example_inputs(198, torch.bfloat16, "cuda", batch=4).requires_grad_()
    out = attention(qkv, backend)
    (grad,) = torch.autograd.grad(out.sum(), qkv)
    assert grad.isfinite().all()
    assert torch.allclose(out.double(), attention_reference(qkv.double()), atol=2e-2)


@pytest.mark.parametrize("name", KERNELS)
def test_the_same_bits_every_time(name):
    found = contest(name, Sizes(batch=16), torch.bfloat16)
    call = forward_backward(found.run("triton"), found.inputs, found.leaves)
    first, second = call(), call()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_compiled_on_the_device(name):
    found = contest(name, Sizes(batch=2, heads=2, classes=100, image_size_px=64), torch.bfloat16)
    assert is_correct(found, torch.compile(found.run("triton"), fullgraph=True))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mode", ["independent", "subset"])
@pytest.mark.parametrize(("precision", "floor"), [("fp32", 1e-3), ("bf16", 2e-2), ("fp16", 5e-3)])
def test_a_whole_step_small(precision, floor, mode, compiled):
    """Mixing, student, loss and backward, against plain torch; fp32 products may run in TF32 in attention."""
    torch._dynamo.reset()
    check_against_reference(precision, floor, device="cuda", mode=mode, compiled=compiled)


def test_a_step_does_not_wait_for_the_device():
    step, _ = build_tiny_step("triton", "bf16", device="cuda")
    batch = tiny_batch("cuda")
    step(batch, 0, [0, 1])  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch, 1, [0, 1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", KERNELS)
def test_on_another_device_than_the_current_one(name):
    assert torch.cuda.current_device() == 0
    found = contest(name, Sizes(batch=2, heads=2, classes=100, image_size_px=64), torch.bfloat16, "cuda:1")
    assert is_correct(found, found.run("triton"))


@pytest.mark.parametrize("name", FAR_ROWS)
def test_values_that_32_bits_do_not_count(name):
    """The last image of a batch of more than 2^31 values gets the bits that it gets alone."""
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of free memory")
    check_far_row(name, 2**31, "cuda")
