"""What the models of a run ask for, counted on tensors without numbers: parameters, FLOPs, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deit_fast.activations import Activations, count_activations, count_inference
from deit_fast.config import Config, DistillConfig, RuntimeConfig
from deit_fast.fold_batch_norm import what_remains
from deit_fast.model import DeiT, create_student
from deit_fast.student import checkpoint_activations
from deit_fast.teacher import NORMS, check_name, create_teacher, full_name, teacher_runtime
from deit_fast.utilisation import forward_flops


@dataclass(frozen=True)
class StudentCosts:
    """The student; `recomputed`: activations with runtime.checkpoint_activations, None where the model cannot."""

    name: str
    embed_dim: int
    """0 for a ConvNet."""
    parameters: int
    forward_flops: int
    passes: int
    """Forwards of each image in a step: 2 with cosub."""
    kept: Activations
    recomputed: Activations | None


@dataclass(frozen=True)
class TeacherCosts:
    """The teacher, which only runs forward."""

    name: str
    image_size_px: int
    parameters: int
    bytes_per_parameter: int
    forward_flops: int
    peak_bytes_per_image: int


def count_student(config: Config, num_classes: int, precision: str) -> StudentCosts:
    """ValueError for an unknown model or an image size that its patches do not tile."""
    model_config = config.model
    with torch.device("meta"):
        student = create_student(
            model_config.name,
            num_classes=num_classes,
            image_size_px=model_config.image_size_px,
            drop_path_rate=model_config.drop_path_rate,
            attention=config.runtime.attention,
        )
    size = model_config.image_size_px
    kept = count_activations(student, size, precision)
    try:
        checkpoint_activations(student, model_config.name)
        recomputed = count_activations(student, size, precision)
    except ValueError:
        if config.runtime.checkpoint_activations:
            raise
        recomputed = None
    return StudentCosts(
        model_config.name,
        _embed_dim(student),
        sum(parameter.numel() for parameter in student.parameters()),
        forward_flops(student, size),
        2 if config.loss.cosub else 1,
        kept,
        recomputed,
    )


def _embed_dim(model: nn.Module) -> int:
    """Width of a transformer; 0 for a model without positions, a ConvNet."""
    positions = getattr(model, "pos_embed", None)
    return positions.shape[-1] if isinstance(positions, Tensor) else 0


def count_teacher(
    distill: DistillConfig, runtime: RuntimeConfig, student_size_px: int, num_classes: int, precision: str
) -> TeacherCosts | None:
    """None without distillation, and with labels from a cache. ValueError for an unknown model.

    precision: the student's. The teacher's checkpoint is not read, which need not be here.
    """
    if distill.kind == "none" or distill.label_cache is not None:
        return None
    check_name(distill)
    how = teacher_runtime(runtime, precision)
    with torch.device("meta"):
        teacher = create_teacher(distill, num_classes, distill.teacher_image_size_px).eval()
    size = distill.teacher_image_size_px or _trained_at(teacher) or student_size_px
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    if how.fold:
        _leave_batch_norms_out(teacher)
    halved = how.precision != "fp32" and not any(isinstance(module, NORMS) for module in teacher.modules())
    return TeacherCosts(
        full_name(distill.teacher),
        size,
        parameters,
        2 if halved else 4,
        forward_flops(teacher, size),
        count_inference(teacher, size, how.precision),
    )


def _trained_at(teacher: nn.Module) -> int | None:
    """The side of the images that a DeiT has positions for, or that timm states; None for neither."""
    if isinstance(teacher, DeiT):
        return teacher.shape.image_size_px
    trained_with = getattr(teacher, "pretrained_cfg", {}).get("input_size")
    return trained_with[-1] if trained_with else None


def _leave_batch_norms_out(model: nn.Module) -> None:
    """As folding does where it can; here without numbers, so without looking whether it can."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, what_remains(child))
