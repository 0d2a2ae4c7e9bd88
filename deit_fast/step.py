"""One training step: mix, teacher, student, loss, backward, clip, optimizer, moving average.

Variants (no teacher, labels from a cache, accumulation, no moving average, stochastic depth) are chosen when the step
is built, so that what runs per step has no branches and never makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deit_fast.dali_pipelines.loader import Batch
from deit_fast.dali_pipelines.philox import Stream, uniforms

from .ask_teacher import Ask, LabelReader, Teacher, build_ask
from .config import Config
from .drop_path import draw_drop_path_scale, draw_kept_samples
from .ema import Ema
from .guard import GradientGuard, spoil_gradients
from .losses import Loss
from .mixing import MixedLabels
from .model import DeiT
from .precision import autocast
from .prepare_batch import build_prepare

StudentRandomness = Callable[[int, Tensor], tuple[object, ...]]
"""(step, views [B]) -> what the student's forward takes after the images."""
SECOND_PASS = 1 << 31
"""Added to a view's number for the second pass of cosub, so that it draws another drop-path."""


def no_teacher(_images: Tensor) -> None:
    """Stands in for the teacher when there is no distillation."""
    return


def student_randomness(student: nn.Module, config: Config, device: torch.device, rank: int) -> StudentRandomness:
    """How this student's stochastic depth is drawn, as a pure function of (seed, step, view).

    timm's models draw inside their forward, from torch's generator: it is seeded for each (seed, step, rank), which
    keeps resuming exact, though not the independence of how a batch is split.
    """
    seed, rate, schedule = config.runtime.seed, config.model.drop_path_rate, config.model.drop_path_schedule
    if not isinstance(student, DeiT):

        def seed_torch(step: int, _views: Tensor) -> tuple[()]:
            torch.manual_seed(int(uniforms(seed, Stream.DROPOUT, step, np.array([rank]), 1)[0, 0] * 2**32))
            return ()

        return seed_torch
    depth = len(student.blocks)
    if rate == 0:
        return lambda _step, _views: ()
    if config.model.drop_path_mode == "subset":

        def draw_subset(step: int, views: Tensor) -> tuple[list[Tensor]]:
            size = config.mix.group_size
            kept = draw_kept_samples(seed, step, views, group_size=size, rate=rate, depth=depth, schedule=schedule)
            return ([samples.to(device, non_blocking=True) for samples in kept],)

        return draw_subset

    def draw(step: int, views: Tensor) -> tuple[Tensor]:
        scale = draw_drop_path_scale(seed, step, views, rate=rate, depth=depth, schedule=schedule)
        assert scale is not None
        return (scale.to(device, non_blocking=True),)

    return draw


class TrainStep:
    """Callable: (batch, step, global indices of the batch's mixing groups) -> detached fp32 loss on the device.

    The loss of a step that was skipped, because it or the gradients were not finite, counts as 0; `guard.take()` tells
    which these were.
    """

    def __init__(
        self,
        config: Config,
        student: nn.Module,
        *,
        model: nn.Module,
        teacher: Teacher | LabelReader,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: Ema | None,
        precision: str,
        device: torch.device,
        rank: int,
    ) -> None:
        """student is what is called (DDP or the model itself), model what holds the weights."""
        self.config, self.student, self.loss = config, student, loss
        self.optimizer, self.scaler, self.precision, self.device = optimizer, scaler, precision, device
        self.randomness = student_randomness(model, config, device, rank)
        self.ask_teacher: Ask = build_ask(teacher, device)
        teacher_looks = teacher is not no_teacher and not isinstance(teacher, LabelReader)
        self.mix = build_prepare(config, model, teacher_looks=teacher_looks, precision=precision)
        self.guard = GradientGuard(list(model.parameters()), optimizer, scaler, config.optim.clip_grad_norm)
        self.passes = second_pass if config.loss.cosub else one_pass
        self.parts = accumulation_parts(student, config.runtime.batch_size_per_device, config.runtime.accumulate_steps)
        self.begin = torch.compiler.cudagraph_mark_step_begin if config.runtime.cuda_graphs else lambda: None
        self.update_ema: Callable[[], None] = (lambda: None) if ema is None else (lambda: ema.update(model))

    def __call__(self, batch: Batch, step: int, groups: list[int]) -> Tensor:
        self.begin()
        mixed, labels = self.mix(batch, step, groups)
        answer = self.ask_teacher(mixed.teacher, batch.views, step)
        self.optimizer.zero_grad()  # to None, by torch's default and by apex's, which takes no argument
        total = torch.zeros((), device=self.device)
        distillation: Tensor | float = 0.0
        for part, gradients_stay_local in self.parts:
            with gradients_stay_local():
                output = self.forward(mixed.student[part], batch.views[part], step)
                part_labels = MixedLabels(*(values[part] for values in labels))
                found = self.loss(output, part_labels, answer(part))
                loss = found.total / len(self.parts)
                self.scaler.scale(spoil_gradients(loss)).backward()
            total += loss.detach()
            distillation += found.distillation / len(self.parts)
        loss = self.guard.apply(step, total, batch.views, distillation)
        self.update_ema()
        return loss

    def forward(self, images: Tensor, views: Tensor, step: int) -> Tensor | tuple[Tensor, Tensor]:
        """The student's logits of both heads, or of its only one; images or patches, as the student takes them."""
        images, views = self.passes(images, views)
        with autocast(self.precision, self.device):
            return self.student(images, *self.randomness(step, views))


def one_pass(images: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """Every image once."""
    return images, views


def second_pass(images: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """Every image twice, the second time with another drop-path (cosub)."""
    return torch.cat([images, images]), torch.cat([views, views + SECOND_PASS])


def accumulation_parts(
    student: nn.Module, size: int, count: int
) -> list[tuple[slice, Callable[[], AbstractContextManager[object]]]]:
    """The slices of a batch that pass one after another; gradients are reduced over ranks in the last of them."""
    local = student.no_sync if isinstance(student, DistributedDataParallel) else nullcontext
    contexts = [local] * (count - 1) + [nullcontext]
    return [(slice(i * size, (i + 1) * size), context) for i, context in enumerate(contexts)]
