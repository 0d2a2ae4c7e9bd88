"""The training step of a run, with the variants that its configuration asks for."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deit_fast.dali_pipelines.loader import TrainLoader
from deit_fast.kernels.choice import choose

from .ask_teacher import LabelReader
from .ask_teacher import Teacher as TeacherCall
from .config import IMAGENET_MEAN, IMAGENET_STD, Config
from .data import global_batch_size
from .distributed import Ranks
from .fingerprint import fingerprint
from .label_cache import CachedLabels
from .losses import build_loss
from .precision import DTYPES
from .run_log import Figures
from .run_state import RunState
from .step import TrainStep, no_teacher
from .student import compile_blocks
from .teacher import Teacher, build_teacher, teacher_runtime
from .utilisation import forward_flops, peak_flops

TeacherLike = TeacherCall | LabelReader


def build_train_step(
    config: Config, state: RunState, ranks: Ranks, precision: str, loader: TrainLoader
) -> tuple[TrainStep, TeacherLike]:
    """The step, and the teacher in it. ValueError for a teacher that does not fit the data."""
    teacher = choose_teacher(config, len(state.classes), ranks, precision, loader)
    if config.runtime.compile:
        compile_student(config, state.student)
    step = assemble_step(config, state, distributed_student(config, state.student, ranks), teacher, ranks, precision)
    return step, teacher


def compile_student(config: Config, student: nn.Module) -> None:
    """Block by block, as the runtime section wants it."""
    subset = config.model.drop_path_mode == "subset"
    compile_blocks(student, cuda_graphs=bool(config.runtime.cuda_graphs), subset=subset)


def assemble_step(
    config: Config, state: RunState, student: nn.Module, teacher: TeacherLike, ranks: Ranks, precision: str
) -> TrainStep:
    """The step of a state; student is what is called, the state's own or its `distributed_student`."""
    return TrainStep(
        config,
        student,
        model=state.student,
        teacher=teacher,
        loss=build_loss(config.distill, config.mix, config.loss, choose("distill_loss", config.runtime.kernels)),
        optimizer=state.optimizer,
        scaler=state.scaler,
        ema=state.ema,
        precision=precision,
        device=ranks.device,
        rank=ranks.rank,
    )


def distributed_student(config: Config, student: nn.Module, ranks: Ranks) -> nn.Module:
    """The student whose gradients are averaged over the ranks while the backward still runs."""
    if ranks.world_size == 1:
        return student
    return DistributedDataParallel(
        student,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # every parameter is used in every step; only no_sync, which accumulation needs, does not go with it
        static_graph=config.runtime.accumulate_steps == 1,
    )


def choose_teacher(config: Config, num_classes: int, ranks: Ranks, precision: str, loader: TrainLoader) -> TeacherLike:
    """No teacher, the teacher itself, or its labels from a cache; then the loader leaves out what the cache did."""
    if config.distill.kind == "none":
        return no_teacher
    if config.distill.label_cache is not None:
        return cached_labels(config, num_classes, ranks, precision, loader)
    return live_teacher(config, num_classes, ranks, precision)


def cached_labels(config: Config, num_classes: int, ranks: Ranks, precision: str, loader: TrainLoader) -> CachedLabels:
    """The labels of distill.label_cache; ValueError when they were made for other images or by another teacher.

    Bad files have to be those that the cache met: what is shown in their place has the labels of the cache. They are
    known from the start, and one more is an error.
    """
    assert config.distill.label_cache is not None
    wanted = fingerprint(config, loader.images, global_batch_size(config, ranks), precision, ranks.device.type)
    labels = CachedLabels(
        Path(config.distill.label_cache),
        wanted,
        epochs=config.schedule.epochs,
        steps_per_epoch=loader.sampler.steps_per_epoch,
        num_classes=num_classes,
        temperature=config.distill.temperature,
    )
    loader.substitutes.add(labels.bad_images)
    loader.bad_sample = "raise"
    return labels


def live_teacher(config: Config, num_classes: int, ranks: Ranks, precision: str) -> Teacher:
    """distill.teacher, as the runtime section wants it computed."""
    how = teacher_runtime(config.runtime, precision)
    return build_teacher(
        config.distill,
        num_classes=num_classes,
        student_mean=IMAGENET_MEAN,
        student_std=IMAGENET_STD,
        device=ranks.device,
        autocast_dtype=None if how.precision == "fp32" else DTYPES[how.precision],
        layout=how.layout,
        fold=how.fold,
        compiled=how.compile,
    )


def figures_of(config: Config, student: nn.Module, teacher: TeacherLike, ranks: Ranks) -> Figures:
    """What turns images/s into utilisation; counted only where the device's peak is known."""
    peak, distilled = peak_flops(ranks.device), config.distill.kind != "none"
    if peak is None or not ranks.is_main:
        return Figures(ranks.world_size, 0.0, None, distilled)
    flops = 3.0 * forward_flops(student, config.model.image_size_px)  # a backward is two forwards
    if isinstance(teacher, Teacher):
        flops += forward_flops(teacher.model, teacher.image_size_px or config.model.image_size_px)
    return Figures(ranks.world_size, flops, peak, distilled)
