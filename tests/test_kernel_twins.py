"""What of test_kernels_gpu.py does not depend on the device, with the operators' CPU kernels."""

import pytest
import torch
from far_rows import FAR_ROWS, check_far_row

from deit_fast.benchmarks.kernel_contenders import Sizes, contests
from deit_fast.benchmarks.kernels import forward_backward, is_correct

KERNELS = ("attention", "distill_loss", "batch_prep", "add_norm", "gelu_bias")


def contest(name, dtype=torch.bfloat16):
    sizes = Sizes(batch=2, tokens=9, heads=2, classes=100, image_size_px=32)
    return next(c for c in contests(sizes, dtype, "cpu") if c.name == name)


@pytest.mark.parametrize("name", KERNELS)
def test_compiled_without_a_break(name):
    found = contest(name)
    torch.compiler.reset()
    assert is_correct(found, torch.compile(found.run("triton"), fullgraph=True, backend="aot_eager"))


@pytest.mark.parametrize("name", KERNELS)
def test_the_same_bits_every_time(name):
    found = contest(name)
    call = forward_backward(found.run("triton"), found.inputs, found.leaves)
    assert all(torch.equal(a, b) for a, b in zip(call(), call(), strict=True))


@pytest.mark.parametrize("name", FAR_ROWS)
def test_the_last_rows_of_a_batch(name):
    check_far_row(name, 2**18, "cpu")
