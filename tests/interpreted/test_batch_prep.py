"""The batch preparation kernel in the interpreter, against the reference and against the product's own mixing."""

import pytest
import torch

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD
from deit_fast.kernels.batch_prep import batch_prep
from deit_fast.kernels.batch_prep.op import example_inputs
from deit_fast.mixing import MixPlan, mix_batch

ULP = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
BYTES = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@pytest.mark.parametrize("dtype", ULP)
@pytest.mark.parametrize("source", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("batch", "size", "patch"), [(3, 32, 8), (4, 21, 7), (1, 16, 16)])
def test_images_and_patches(batch, size, patch, source, dtype):
    inputs = example_inputs(batch, size, source, "cpu")
    options = {"dtype": dtype, "patch_size_px": patch, **(BYTES if source == torch.uint8 else {})}
    ours, plain = batch_prep(**inputs, **options, backend="triton"), batch_prep(**inputs, **options)
    truth = batch_prep(**inputs, **(options | {"dtype": torch.float64}))
    assert ours.images.is_contiguous(memory_format=torch.channels_last)
    for mine, eager, true in zip(ours, plain, truth, strict=True):
        error, allowed = (mine.double() - true).abs().max(), 2 * (eager.double() - true).abs().max() + 1e-6
        assert error <= allowed


@pytest.mark.parametrize(("channels_last", "patch"), [(True, None), (False, 8)])
def test_only_what_is_asked_for(channels_last, patch):
    inputs = example_inputs(2, 16, torch.float32, "cpu")
    options = {"dtype": torch.float32, "channels_last": channels_last, "patch_size_px": patch}
    ours, plain = batch_prep(**inputs, **options, backend="triton"), batch_prep(**inputs, **options)
    assert (ours.images is None, ours.patches is None) == (not channels_last, patch is None)
    for mine, expected in zip(ours, plain, strict=True):
        assert mine is expected is None or torch.allclose(mine, expected, atol=1e-6)


def test_mixes_as_the_trainer_does():
    """Two groups of 4: Mixup and CutMix, by deit_fast.mixing, whose oracle is timm."""
    images = example_inputs(8, 24, torch.float32, "cpu")["images"]
    plans = [MixPlan(lam=0.3), MixPlan(lam=0.75, box=(2, 14, 5, 17))]
    expected, _ = mix_batch(images, torch.arange(8), plans, group_size=4)
    partner = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    lam = torch.tensor([plan.lam for plan in plans]).repeat_interleave(4)
    box = torch.tensor([plan.box or (0, 0, 0, 0) for plan in plans], dtype=torch.int32).repeat_interleave(4, 0)
    ours = batch_prep(images, partner, lam, box, dtype=torch.float32, backend="triton").images
    assert torch.allclose(ours, expected, atol=1e-6)


def test_an_image_may_stay_alone():
    inputs = example_inputs(3, 16, torch.float32, "cpu")
    inputs |= {"partner": torch.tensor([0, 2, 1]), "lam": torch.tensor([0.5, 1.0, 0.0]), "box": torch.zeros(3, 4).int()}
    ours = batch_prep(**inputs, dtype=torch.float32, backend="triton").images
    images = inputs["images"]
    assert torch.equal(ours, images[[0, 1, 1]])


def test_any_strides():
    inputs = example_inputs(2, 16, torch.float32, "cpu")
    plain = batch_prep(**inputs, dtype=torch.float32, backend="triton").images
    wide = torch.cat([inputs["images"]] * 2, dim=3)[..., :16]
    for images in (inputs["images"].contiguous(), wide):
        assert torch.equal(
            batch_prep(**(inputs | {"images": images}), dtype=torch.float32, backend="triton").images, plain
        )
