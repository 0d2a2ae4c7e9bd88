"""One training step: mix, teacher, student, loss, backward, clip, optimizer, moving average.

Variants (no teacher, no clipping, no moving average, drop-path of a timm model) are chosen when the step is built, so
that what runs per step has no branches and never makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from deit_fast.dali_pipelines.loader import Batch
from deit_fast.dali_pipelines.philox import Stream, uniforms

from .config import Config
from .ema import Ema
from .mixing import MixedLabels, draw_plan, mix_batch
from .model import DeiT, draw_drop_path_scale
from .precision import autocast

Teacher = Callable[[Tensor], Tensor | None]
Loss = Callable[[Tensor | tuple[Tensor, Tensor], MixedLabels, Tensor | None], Tensor]
StudentRandomness = Callable[[int, Tensor], tuple[Tensor, ...]]
"""(step, views [B]) -> what the student's forward takes after the images."""


def no_teacher(_images: Tensor) -> None:
    """Stands in for the teacher when there is no distillation."""
    return


def student_randomness(student: nn.Module, config: Config, device: torch.device, rank: int) -> StudentRandomness:
    """How this student's stochastic depth is drawn, as a pure function of (seed, step, view).

    timm's models draw inside their forward, from torch's generator: it is seeded for each (seed, step, rank), which
    keeps resuming exact, though not the independence of how a batch is split.
    """
    seed, rate = config.runtime.seed, config.model.drop_path_rate
    if isinstance(student, DeiT):
        if rate == 0:
            return lambda _step, _views: ()
        depth = len(student.blocks)

        def draw(step: int, views: Tensor) -> tuple[Tensor, ...]:
            scale = draw_drop_path_scale(seed, step, views, rate=rate, depth=depth)
            assert scale is not None
            return (scale.to(device, non_blocking=True),)

        return draw

    def seed_torch(step: int, _views: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(int(uniforms(seed, Stream.DROPOUT, step, np.array([rank]), 1)[0, 0] * 2**32))
        return ()

    return seed_torch


class TrainStep:
    """Callable: (batch, step, global indices of the batch's mixing groups) -> detached fp32 loss on the device."""

    def __init__(
        self,
        config: Config,
        student: nn.Module,
        *,
        model: nn.Module,
        teacher: Teacher,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: Ema | None,
        precision: str,
        device: torch.device,
        rank: int,
    ) -> None:
        """student is what is called (DDP or the model itself), model what holds the weights."""
        self.config, self.student, self.teacher, self.loss = config, student, teacher, loss
        self.optimizer, self.scaler, self.precision, self.device = optimizer, scaler, precision, device
        self.randomness = student_randomness(model, config, device, rank)
        clip_norm = config.optim.clip_grad_norm
        parameters = list(model.parameters())

        def clip(norm: float) -> None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, norm)

        self.clip: Callable[[], None] = (lambda: None) if clip_norm is None else partial(clip, clip_norm)
        self.update_ema: Callable[[], None] = (lambda: None) if ema is None else (lambda: ema.update(model))

    def __call__(self, batch: Batch, step: int, groups: list[int]) -> Tensor:
        config = self.config
        plans = [
            draw_plan(config.runtime.seed, step, group, config.mix, config.model.image_size_px) for group in groups
        ]
        images, labels = mix_batch(batch.images, batch.labels, plans, config.mix.group_size)
        teacher_logits = self.teacher(images)
        with autocast(self.precision, self.device):
            output = self.student(images, *self.randomness(step, batch.views))
        loss = self.loss(output, labels, teacher_logits)

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.update_ema()
        return loss.detach()
