"""What is trained: two teachers, and the students that tell the claims of DeiT's paper apart.

Students have the demo's size and recipe (`demo_student`, `demo_student_distilled`); all of them see the same images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deit_fast.config import Config, DistillConfig
from deit_fast.config_file import add_config_arguments, config_parser, parse_config

CONVNET, VIT = "resnet10t", "deit_mini_patch8_32"
TeacherName = Literal["ConvNet", "ConvNet, early", "ViT"]


@dataclass(frozen=True)
class Variant:
    """A way to train the student."""

    name: str
    kind: Literal["none", "soft", "hard"]
    teacher: TeacherName | None = None

    @property
    def folder(self) -> str:
        """Its name as part of a path."""
        return self.name.replace(", ", "_").replace(" ", "_")


NONE = Variant("no distillation", "none")
SOFT = Variant("soft, ConvNet", "soft", "ConvNet")
HARD = Variant("hard, ConvNet", "hard", "ConvNet")
HARD_EARLY = Variant("hard, early ConvNet", "hard", "ConvNet, early")
HARD_VIT = Variant("hard, ViT", "hard", "ViT")
VARIANTS = (NONE, SOFT, HARD, HARD_EARLY, HARD_VIT)

CLAIMS: Sequence[tuple[str, Variant, Variant]] = (
    ("hard distillation is better than none (paper, DeiT-B on ImageNet: 83.0 and 81.8 %)", HARD, NONE),
    ("hard distillation is better than soft (paper: 83.0 and 81.8 %)", HARD, SOFT),
    ("a ConvNet teaches better than a ViT of its accuracy (paper, section 5.2)", HARD_EARLY, HARD_VIT),
)
"""Claim, the variant that should be better, and the one it is held against."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the whole experiment; the defaults take less than an hour on two cores (docs/accuracy.md)."""

    images: int = 5_000
    val_images: int = 5_000
    epochs: int = 16
    teacher_epochs: int = 12
    vit_teacher_epochs: int = 40
    seeds: int = 5


@functools.cache
def recipe(name: str) -> Config:
    """A packaged recipe."""
    parser = config_parser("bench accuracy", "")
    add_config_arguments(parser)
    return parse_config(parser, ["--config", name])[0]


def teacher_config(model: str, plan: Plan, data: Path, folder: Path) -> Config:
    """A teacher's run: the ConvNet keeps every epoch, since one of them becomes the ViT's equal."""
    config = recipe("demo_teacher" if model == CONVNET else "demo_student")
    epochs = plan.teacher_epochs if model == CONVNET else plan.vit_teacher_epochs
    every = 1 if model == CONVNET else epochs
    config = _here(config, data, folder, seed=0, epochs=epochs)
    return replace(
        config,
        optim=replace(config.optim, ema_decay=None),  # the weights themselves teach
        eval=replace(config.eval, every_epochs=every),
        checkpoint=replace(config.checkpoint, keep_last=epochs if model == CONVNET else 1),
    )


def student_config(variant: Variant, plan: Plan, data: Path, folder: Path, seed: int, teacher: Path | None) -> Config:
    """A student's run; `teacher`: the checkpoint that it learns from."""
    config = recipe("demo_student" if variant.kind == "none" else "demo_student_distilled")
    return replace(_here(config, data, folder, seed, plan.epochs), distill=distillation(variant, teacher))


def distillation(variant: Variant, teacher: Path | None) -> DistillConfig:
    """Hard as the recipe has it; soft by the paper's formula and figures: a mean over the batch, T = 3, weight 0.1."""
    if variant.kind == "none":
        return DistillConfig()
    name = VIT if variant.teacher == "ViT" else CONVNET
    distill = DistillConfig(kind=variant.kind, teacher=name, teacher_checkpoint=str(teacher))
    if variant.kind == "soft":
        return replace(distill, alpha=0.1, temperature=3.0, soft_normalization="batchmean")
    return distill


def _here(config: Config, data: Path, folder: Path, seed: int, epochs: int) -> Config:
    return replace(
        config,
        data=replace(config.data, path=str(data)),
        augment=replace(config.augment, flip_probability=0.5),  # a mirrored shoe is a shoe, unlike a digit
        schedule=replace(config.schedule, epochs=epochs, warmup_epochs=min(config.schedule.warmup_epochs, epochs - 1)),
        eval=replace(config.eval, every_epochs=epochs),
        # the same figures on every CPU; and bf16 took 1.3 times the CPU time on one with AVX512-BF16 but no AMX
        runtime=replace(config.runtime, seed=seed, precision="fp32"),
        checkpoint=replace(config.checkpoint, dir=str(folder), resume="auto", keep_last=1, keep_best=False),
    )
