"""What a step costs without the loader: teacher, student, and the whole step, on one batch of synthetic images.

Weights are random, since speed does not depend on them; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import timm
import torch

from deit_fast.config import Config
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.data import image_dtype
from deit_fast.distributed import Ranks
from deit_fast.ema import Ema
from deit_fast.kernels.choice import choose
from deit_fast.losses import build_loss
from deit_fast.optim import build_optimizer
from deit_fast.precision import DTYPES, choose_precision, gradient_scaler
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
    runtime = config.runtime
    return Teacher(
        model, image_size_px=None, scale=None, shift=None, device=device, autocast_dtype=dtype,
        layout=runtime.teacher_layout, fold=runtime.teacher_fold, compiled=runtime.teacher_compile,
    )  # fmt: skip


class RandomLabels:
    """Stands in for a label cache: what it costs to read one is nothing beside a step."""

    def read(self, _step: int, views: torch.Tensor) -> torch.Tensor:
        """A label for each view."""
        return views % NUM_CLASSES


def synchronised(work: Callable[[], object], images: int, device: torch.device) -> Prepare:
    """A turn that ends when the device has done the work."""

    def turn() -> int:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return images

    return lambda: turn


def time_step(config: Config, ranks: Ranks, *, turns: int) -> dict[Contender, Timing]:
    """Times the parts of a step, and the whole with the teacher and with its labels from a cache; a turn is a batch."""
    device, precision = ranks.device, choose_precision(config.runtime.precision, ranks.device)
    batch = synthetic_batch(config, device, image_dtype(precision))
    student = build_student(config, NUM_CLASSES).to(device).train()
    optimizer = build_optimizer(student, config.optim, global_batch_size=len(batch.labels))
    ema = Ema(student, config.optim.ema_decay) if config.optim.ema_decay is not None else None
    if config.runtime.compile:
        compile_blocks(student, cuda_graphs=config.runtime.cuda_graphs)
    distilled = config.distill.kind != "none"
    dtype = None if precision == "fp32" else DTYPES[precision]
    teacher = random_teacher(config, device, dtype) if distilled else no_teacher

    def build(config: Config, teacher: Teacher | RandomLabels | Callable[[torch.Tensor], None]) -> TrainStep:
        return TrainStep(
            config,
            student,
            model=student,
            teacher=teacher,
            loss=build_loss(config.distill, config.mix, config.loss, choose("distill_loss", config.runtime.kernels)),
            optimizer=optimizer,
            scaler=gradient_scaler(precision, device),
            ema=ema,
            precision=precision,
            device=device,
            rank=0,
        )

    step = build(config, teacher)
    groups = list(range(len(batch.labels) // config.mix.group_size))

    def forward_backward() -> None:
        output = step.forward(batch.images, batch.views, 0)
        logits = torch.cat(output) if isinstance(output, tuple) else output
        logits.float().mean().backward()

    def update() -> None:
        step.guard.apply(0, torch.zeros((), device=device), batch.views)
        step.update_ema()
        step.guard.take()

    def whole(step: TrainStep) -> Callable[[], object]:
        return lambda: (step(batch, 0, groups), step.guard.take())

    works: dict[str, Callable[[], object]] = {
        "mixing": lambda: step.mix(batch, 0, groups),
        "student forward + backward": forward_backward,
        "optimizer + moving average": update,
    }
    if distilled:
        works["teacher forward"] = lambda: teacher(batch.images)
    works[WHOLE] = whole(step)
    if distilled and config.distill.kind == "hard":
        cached = replace(config, distill=replace(config.distill, label_cache="random labels"))
        works[f"{WHOLE}, cached labels"] = whole(build(cached, RandomLabels()))
    contenders = {Contender(name, OURS): synchronised(work, len(batch.labels), device) for name, work in works.items()}
    return time_in_turns(contenders, turns)
