"""Every kernel at the lengths of rows that no tile divides, one image and three: the check of `bench kernels`."""

import pytest
import torch

from deit_fast.benchmarks.kernel_contenders import Sizes, contests
from deit_fast.benchmarks.kernels import is_correct

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROWS = [
    *((tokens, dtype) for tokens in (1, 7, 17) for dtype in DTYPES),
    *(pytest.param(tokens, torch.bfloat16, marks=pytest.mark.slow) for tokens in (197, 198, 577, 578, 1026)),
]
KERNELS = ("attention", "add_norm", "gelu_bias")


def check(name, dtype, **sizes):
    found = next(c for c in contests(Sizes(**sizes), dtype, "cpu") if c.name == name)
    assert is_correct(found, found.run("triton"))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("tokens", "dtype"), ROWS)
@pytest.mark.parametrize("name", KERNELS)
def test_rows_of_any_length(name, tokens, batch, dtype):
    check(name, dtype, batch=batch, tokens=tokens, heads=1, head_dim=16, classes=5, image_size_px=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 17, 197, 1026])
def test_any_number_of_classes(size, batch, dtype):
    check("distill_loss", dtype, batch=batch, tokens=1, heads=1, head_dim=16, classes=size, image_size_px=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_batches_of_images(batch, dtype):
    check("batch_prep", dtype, batch=batch, tokens=1, heads=1, head_dim=16, classes=5, image_size_px=48)
