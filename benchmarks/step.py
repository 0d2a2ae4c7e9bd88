"""What a step costs without the loader: its parts and the whole, a turn on one batch of synthetic images each."""

from __future__ import annotations

from collections.abc import Callable

import torch

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD, Config
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.data import batch_dtype
from deit_fast.losses import Output
from deit_fast.mixing import MixedLabels
from deit_fast.step import TrainStep
from deit_fast.teacher import Teacher

from .assembled import Assembled, RandomLabels
from .timing import OURS, Contender, Prepare, Turn
from .work import Work, synchronised, wait_for

NUM_CLASSES = 1000
CLASSES = tuple(f"class_{index:04d}" for index in range(NUM_CLASSES))
"""ImageNet's number, where there is no data set to ask."""

MIXING, TEACHER, FORWARD = "mixing", "teacher forward", "student forward"
BACKWARD, LOSS, UPDATE = "student backward", "loss", "optimizer + moving average"
PARTS = (MIXING, TEACHER, FORWARD, BACKWARD, LOSS, UPDATE)
"""Of a step, one after another."""
WHOLE = "whole step"
WHOLE_CACHED = f"{WHOLE}, cached labels"


def synthetic_batch(config: Config, device: torch.device, dtype: torch.dtype, num_classes: int = NUM_CLASSES) -> Batch:
    """A batch as the loader gives it: channels-last images of noise, the same in every dtype, and labels.

    dtype: that of the loader's images (data.batch_dtype); all but uint8 are normalised.
    """
    count = config.runtime.batch_size_per_device * config.runtime.accumulate_steps
    size = config.model.image_size_px
    generator = torch.Generator().manual_seed(config.runtime.seed)
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    if dtype != torch.uint8:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        images = images.div(255).sub_(mean).div_(std).to(dtype)
    labels = torch.randint(num_classes, (count,), generator=generator)
    return Batch(
        images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device), torch.arange(count)
    )


def batch_of(parts: Assembled) -> Batch:
    """The synthetic batch of a run's parts."""
    dtype = batch_dtype(parts.config, parts.precision)
    return synthetic_batch(parts.config, parts.ranks.device, dtype, len(parts.state.classes))


def step_works(parts: Assembled, batch: Batch) -> dict[Contender, Work]:
    """Every part of a step alone, and the whole with the teacher live or absent, and with its hard labels cached."""
    config = parts.config
    groups = list(range(len(batch.labels) // config.mix.group_size))
    works = part_works(parts, batch, groups)
    works[WHOLE] = whole_work(parts, parts.step(parts.teacher), batch, groups, parts.step_flops(parts.teacher))
    if config.distill.kind == "hard":
        labels = RandomLabels(len(parts.state.classes))
        works[WHOLE_CACHED] = whole_work(parts, parts.step(labels), batch, groups, parts.step_flops(labels))
    return {Contender(name, OURS): work for name, work in works.items()}


def whole_work(parts: Assembled, step: TrainStep, batch: Batch, groups: list[int], flops: int) -> Work:
    """A step as it is, and reading its record, which waits for the device."""
    take = synchronised(lambda: (step(batch, 0, groups), step.guard.take()), len(batch.labels), parts.ranks.device)
    return Work(take, flops, turn_is_step=True)


def part_works(parts: Assembled, batch: Batch, groups: list[int]) -> dict[str, Work]:
    """The parts of this rank's step, without averaging gradients over ranks; of several accumulated, one backward."""
    device, step = parts.ranks.device, parts.step_alone(parts.teacher)
    mixed, mixed_labels = step.mix(batch, 0, groups)
    part = slice(0, parts.config.runtime.batch_size_per_device)
    images, taught = mixed.student[part], mixed.teacher[part]
    labels, views = MixedLabels(*(values[part] for values in mixed_labels)), batch.views[part]
    count = len(images)

    def forward() -> Output:
        step.begin()
        return step.forward(images, views, 0)

    def alone(call: Callable[[], object], flops: int | None = None) -> Work:
        return Work(synchronised(call, count, device), flops)

    works = {
        MIXING: Work(synchronised(lambda: step.mix(batch, 0, groups), len(batch.labels), device)),
        FORWARD: alone(forward, parts.student_flops),
        BACKWARD: Work(backward_turn(forward, parts.own.student, count, device), 2 * parts.student_flops),
        LOSS: alone(loss_call(parts, step, forward(), labels, taught)),
        UPDATE: Work(synchronised(update_call(step, batch, device), len(batch.labels), device)),
    }
    if isinstance(teacher := parts.teacher, Teacher):
        works[TEACHER] = alone(lambda: teacher(taught), parts.teacher_flops)
    return {name: works[name] for name in PARTS if name in works}


def heads(output: Output) -> list[torch.Tensor]:
    """The logits of both heads, or of the only one."""
    return list(output) if isinstance(output, tuple) else [output]


def backward_turn(forward: Callable[[], Output], student: torch.nn.Module, count: int, device: torch.device) -> Prepare:
    """The backward alone: its forward is run before the turn."""

    def prepare() -> Turn:
        student.zero_grad(set_to_none=True)
        logits = heads(forward())
        gradients = [torch.full_like(output, 1 / output.numel()) for output in logits]
        wait_for(device)
        return synchronised(lambda: torch.autograd.backward(logits, gradients), count, device)()

    return prepare


def loss_call(
    parts: Assembled, step: TrainStep, output: Output, labels: MixedLabels, images: torch.Tensor
) -> Callable[[], object]:
    """Loss and its gradient in the logits."""
    leaves = [logits.detach().requires_grad_() for logits in heads(output)]
    given = (leaves[0], leaves[1]) if isinstance(output, tuple) else leaves[0]
    answer = parts.teacher(images) if isinstance(parts.teacher, Teacher) else None
    return lambda: torch.autograd.grad(step.loss(given, labels, answer).total, leaves)


def update_call(step: TrainStep, batch: Batch, device: torch.device) -> Callable[[], object]:
    """Check of the gradients, optimizer, moving average; the gradients are those of the last backward."""
    zero = torch.zeros((), device=device)

    def call() -> None:
        step.guard.apply(0, zero, batch.views)
        step.update_ema()
        step.guard.take()

    return call
