"""A run's parts, built as the trainer builds them, for whoever times them one by one.

Weights are random where no file is given, since speed does not depend on them: nothing is downloaded. The learning rate
is 0, so that the weights stay as they are and every turn does the same work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from deit_fast.ask_teacher import LabelReader
from deit_fast.build_step import TeacherLike, assemble_step, compile_student, distributed_student, live_teacher
from deit_fast.config import Config
from deit_fast.config_rules import check_config
from deit_fast.distributed import Ranks
from deit_fast.precision import choose_precision
from deit_fast.run_state import RunState, first_state
from deit_fast.step import TrainStep, no_teacher
from deit_fast.teacher import Teacher, random_teacher
from deit_fast.utilisation import forward_flops


class RandomLabels:
    """Stands in for a label cache: what it costs to read one is nothing beside a step."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def read(self, _step: int, views: torch.Tensor) -> torch.Tensor:
        """A label for each view."""
        return views % self.num_classes


@dataclass(frozen=True)
class Assembled:
    """What a step is made of, and the arithmetic of an image."""

    config: Config
    ranks: Ranks
    precision: str
    state: RunState
    student: nn.Module
    """What is called: the state's, or its distributed form."""
    own: RunState
    """Of this rank by itself: a state of its own where DDP's hooks, which stay on, would wait for the other ranks."""
    teacher: TeacherLike
    student_flops: int
    """Of the student's forward of an image, which cosub passes twice."""
    teacher_flops: int
    """Of the teacher's forward of an image; 0 without one."""

    @property
    def described(self) -> str:
        """For a title: what has another speed is another measurement. `deit_tiny_patch16_224, bf16, no teacher`."""
        distill = self.config.distill
        teacher = "no teacher" if distill.kind == "none" else f"teacher {distill.teacher}"
        return f"{self.config.model.name}, {self.precision}, {teacher}"

    def step(self, teacher: TeacherLike) -> TrainStep:
        """The step of all ranks, with this teacher."""
        config = reading(self.config, teacher)
        return assemble_step(config, self.state, self.student, teacher, self.ranks, self.precision)

    def step_alone(self, teacher: TeacherLike) -> TrainStep:
        """The step of this rank by itself, which averages no gradients with others."""
        config = reading(self.config, teacher)
        return assemble_step(config, self.own, self.own.student, teacher, by_itself(self.ranks), self.precision)

    def step_flops(self, teacher: TeacherLike) -> int:
        """Of an image in a step with this teacher: the student's backward is two forwards."""
        return 3 * self.student_flops + (self.teacher_flops if isinstance(teacher, Teacher) else 0)


def reading(config: Config, teacher: TeacherLike) -> Config:
    """The configuration whose loss takes what this teacher gives: labels of a cache are no logits."""
    cache = (config.distill.label_cache or "random labels") if isinstance(teacher, LabelReader) else None
    return replace(config, distill=replace(config.distill, label_cache=cache))


def assemble(config: Config, classes: tuple[str, ...], ranks: Ranks) -> Assembled:
    """Builds all; ValueError for what the trainer would refuse too."""
    check_config(config)
    precision = choose_precision(config.runtime.precision, ranks.device)
    state = still_state(config, classes, ranks, precision)
    own = state if ranks.world_size == 1 else still_state(config, classes, by_itself(ranks), precision)
    teacher = bench_teacher(config, len(classes), ranks, precision)
    size = config.model.image_size_px
    student_flops = forward_flops(state.student, size) * (2 if config.loss.cosub else 1)
    teacher_flops = forward_flops(teacher.model, teacher.image_size_px or size) if isinstance(teacher, Teacher) else 0
    student = distributed_student(config, state.student, ranks)
    return Assembled(config, ranks, precision, state, student, own, teacher, student_flops, teacher_flops)


def by_itself(ranks: Ranks) -> Ranks:
    """This process as the only one."""
    return replace(ranks, rank=0, world_size=1)


def still_state(config: Config, classes: tuple[str, ...], ranks: Ranks, precision: str) -> RunState:
    """The first state of a run, whose steps leave the weights as they are."""
    state = first_state(config, classes, ranks, precision)
    for group in state.optimizer.param_groups:
        group["lr"] = 0.0
    if config.runtime.compile:
        compile_student(config, state.student)
    return state


def bench_teacher(config: Config, num_classes: int, ranks: Ranks, precision: str) -> TeacherLike:
    """distill.teacher as a run has it, with random weights unless distill.teacher_checkpoint gives others."""
    if config.distill.kind == "none":
        return no_teacher
    with random_teacher(config.distill, num_classes) as distill:
        return live_teacher(replace(config, distill=distill), num_classes, ranks, precision)
