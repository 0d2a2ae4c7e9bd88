"""What a step costs without the loader: teacher, student, and the whole step, on one batch of synthetic images.

Weights are random, since speed does not depend on them; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch

from deit_fast.config import Config
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.data import image_dtype
from deit_fast.distributed import Ranks
from deit_fast.ema import Ema
from deit_fast.losses import build_loss
from deit_fast.optim import build_optimizer
from deit_fast.precision import DTYPES, autocast, choose_precision, gradient_scaler
from deit_fast.step import TrainStep, no_teacher
from deit_fast.student import build_student, compile_blocks
from deit_fast.teacher import Teacher, full_name

from .timing import OURS, Contender, Prepare, Timing, time_in_turns

NUM_CLASSES = 1000
WHOLE = "whole step"


def synthetic_batch(config: Config, device: torch.device, dtype: torch.dtype) -> Batch:
    """A batch as the loader gives it: channels-last images of normal noise, labels of ImageNet's number.

    `data.image_dtype` is the loader's.
    """
    count, size = config.runtime.batch_size_per_device, config.model.image_size_px
    generator = torch.Generator().manual_seed(config.runtime.seed)
    images = torch.randn(count, 3, size, size, generator=generator).to(dtype)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return Batch(
        images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device), torch.arange(count)
    )


def random_teacher(config: Config, device: torch.device, dtype: torch.dtype | None) -> Teacher:
    """distill.teacher with its first weights, at the student's resolution."""
    model = timm.create_model(full_name(config.distill.teacher), pretrained=False, num_classes=NUM_CLASSES)
    return Teacher(model, image_size_px=None, scale=None, shift=None, device=device, autocast_dtype=dtype)


def synchronised(work: Callable[[], object], images: int, device: torch.device) -> Prepare:
    """A turn that ends when the device has done the work."""

    def turn() -> int:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return images

    return lambda: turn


def time_step(config: Config, ranks: Ranks, *, turns: int) -> dict[Contender, Timing]:
    """Times the teacher's forward, the student's forward and backward, and the whole step; a turn is one batch."""
    device, precision = ranks.device, choose_precision(config.runtime.precision, ranks.device)
    dtype = DTYPES[precision]
    batch = synthetic_batch(config, device, image_dtype(precision))
    student = build_student(config, NUM_CLASSES).to(device).train()
    if config.runtime.compile:
        compile_blocks(student)
    distilled = config.distill.kind != "none"
    teacher = random_teacher(config, device, None if precision == "fp32" else dtype) if distilled else no_teacher
    loss = build_loss(config.distill, config.mix)
    step = TrainStep(
        config,
        student,
        model=student,
        teacher=teacher,
        loss=loss,
        optimizer=build_optimizer(student, config.optim, global_batch_size=len(batch.labels)),
        scaler=gradient_scaler(precision, device),
        ema=Ema(student, config.optim.ema_decay) if config.optim.ema_decay is not None else None,
        precision=precision,
        device=device,
        rank=0,
    )
    groups = list(range(len(batch.labels) // config.mix.group_size))

    def forward_backward() -> None:
        with autocast(precision, device):
            output = student(batch.images, *step.randomness(0, batch.views))
        sum(logits.float().mean() for logits in (output if isinstance(output, tuple) else (output,))).backward()
        student.zero_grad(set_to_none=True)

    works: dict[str, Callable[[], object]] = {"student forward + backward": forward_backward}
    if distilled:
        works["teacher forward"] = lambda: teacher(batch.images)
    works[WHOLE] = lambda: step(batch, 0, groups)
    contenders = {Contender(name, OURS): synchronised(work, len(batch.labels), device) for name, work in works.items()}
    return time_in_turns(contenders, turns)
