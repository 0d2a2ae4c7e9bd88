"""One whole training step with every kernel in the interpreter: mixing, student, loss, backward, all in Triton."""

from dataclasses import replace

import pytest
import torch

from deit_fast.config import Config, DistillConfig, MixConfig
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.kernels.choice import triton_kernels
from deit_fast.losses import build_loss
from deit_fast.model import DeiT
from deit_fast.precision import gradient_scaler
from deit_fast.step import TrainStep
from deit_fast.variants import DeiTShape

SHAPE = DeiTShape(32, 2, 2, 8, 32, distilled=True, layer_scale_init=0.5)
CPU = torch.device("cpu")


def loss_and_gradients(kernels, precision, mode):
    run = Config()
    run = replace(
        run,
        model=replace(run.model, image_size_px=32, drop_path_rate=0.6, drop_path_mode=mode),
        mix=MixConfig(group_size=2),
        distill=DistillConfig(kind="hard"),
        runtime=replace(run.runtime, kernels=kernels, batch_size_per_device=4),
    )
    torch.manual_seed(0)
    attention = "triton" if kernels == "triton" else "reference"
    student = DeiT(SHAPE, image_size_px=32, num_classes=5, attention=attention, kernels=triton_kernels(kernels))
    step = TrainStep(
        run, student, model=student, teacher=lambda images: images.float().mean(dim=(2, 3)) @ torch.ones(3, 5).triu(),
        loss=build_loss(run.distill, run.mix, run.loss, "triton" if kernels == "triton" else "reference"),
        optimizer=torch.optim.SGD(student.parameters(), lr=0.0), scaler=gradient_scaler(precision, CPU), ema=None,
        precision=precision, device=CPU, rank=0,
    )  # fmt: skip
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = step(Batch(images, torch.arange(4), torch.arange(4)), 1, [0, 1])
    return {"loss": loss, **{name: parameter.grad for name, parameter in student.named_parameters()}}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["independent", "subset"])
def test_a_whole_step_in_fp32(mode):
    plain, ours = (loss_and_gradients(kernels, "fp32", mode) for kernels in ("reference", "triton"))
    for name, expected in plain.items():
        assert (ours[name] - expected).norm() <= 2e-5 * expected.norm() + 1e-6, name


@pytest.mark.slow
def test_a_whole_step_in_bf16():
    """At most twice as far from the step in fp32 as plain torch is, in bf16 by autocast."""
    exact = loss_and_gradients("reference", "fp32", "independent")
    plain, ours = (loss_and_gradients(kernels, "bf16", "independent") for kernels in ("reference", "triton"))
    for name, true in exact.items():
        assert (ours[name] - true).norm() <= 2 * (plain[name] - true).norm() + 3e-3 * true.norm(), name
