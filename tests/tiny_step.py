"""One training step of a tiny DeiT, with every kernel or with none: for Triton's interpreter and for a GPU."""

from dataclasses import replace

import torch

from deit_fast.config import Config, DistillConfig, MixConfig
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.kernels.choice import choose, triton_kernels
from deit_fast.losses import build_loss
from deit_fast.model import DeiT
from deit_fast.precision import gradient_scaler
from deit_fast.step import TrainStep
from deit_fast.student import compile_blocks
from deit_fast.variants import DeiTShape

SHAPE = DeiTShape(32, 3, 2, 8, 32, distilled=True, layer_scale_init=0.5)


def teach(images):
    """The mean of each channel, weighed for each of five classes."""
    return images.float().mean(dim=(2, 3)) @ torch.ones(3, 5, device=images.device).triu()


def build_tiny_step(kernels, precision, *, device="cpu", mode="independent", compiled=False):
    """A step whose weights do not move, and its student."""
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
    student = DeiT(SHAPE, image_size_px=32, num_classes=5, attention=attention, kernels=triton_kernels(kernels)).to(
        device
    )
    if compiled:
        compile_blocks(student, subset=mode == "subset")
    step = TrainStep(
        run, student, model=student, teacher=teach,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.0, fused=True),  # skips on the device, as training's
        loss=build_loss(run.distill, run.mix, run.loss, choose("distill_loss", kernels)),
        scaler=gradient_scaler(precision, torch.device(device)), ema=None, precision=precision,
        device=torch.device(device), rank=0,
    )  # fmt: skip
    return step, student


def tiny_batch(device="cpu"):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images.to(device), torch.arange(4).to(device), torch.arange(4))


def loss_and_gradients(kernels, precision, **options):
    """By name, in fp64 on the CPU."""
    step, student = build_tiny_step(kernels, precision, **options)
    loss = step(tiny_batch(options.get("device", "cpu")), 1, [0, 1])
    found = {"loss": loss, **{name: parameter.grad for name, parameter in student.named_parameters()}}
    return {name: value.double().cpu() for name, value in found.items()}


def check_against_reference(precision, floor, **options):
    """With every kernel a step is at most twice as far from plain torch in fp32 as plain torch is in `precision`."""
    device = options.get("device", "cpu")
    exact = loss_and_gradients("reference", "fp32", device=device, mode=options.get("mode", "independent"))
    plain, ours = (loss_and_gradients(kernels, precision, **options) for kernels in ("reference", "triton"))
    for name, true in exact.items():
        error, allowed = (ours[name] - true).norm(), 2 * (plain[name] - true).norm() + floor * true.norm() + 1e-6
        assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"
