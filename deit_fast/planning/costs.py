"""What the models of a run ask for, counted on tensors without numbers: parameters, FLOPs, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from deit_fast.activations import Activations, count_activations, count_inference
from deit_fast.config import Config, DistillConfig, RuntimeConfig
from deit_fast.fold_batch_norm import what_remains
from deit_fast.model import create_student
from deit_fast.student import checkpoint_activations
from deit_fast.teacher import NORMS, full_name
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
    """None without distillation, and with labels from a cache. ValueError for an unknown model."""
    if distill.kind == "none" or distill.label_cache is not None:
        return None
    name = full_name(distill.teacher)
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"unknown distill.teacher {distill.teacher}: not a model of timm")
    with torch.device("meta"):
        teacher = timm.create_model(name, pretrained=False, num_classes=num_classes).eval()
    trained_with = teacher.pretrained_cfg.get("input_size")
    size = distill.teacher_image_size_px or (trained_with[-1] if trained_with else student_size_px)
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    if runtime.teacher_fold is not False:
        _leave_batch_norms_out(teacher)
    halved = precision != "fp32" and not any(isinstance(module, NORMS) for module in teacher.modules())
    return TeacherCosts(
        name,
        size,
        parameters,
        2 if halved else 4,
        forward_flops(teacher, size),
        count_inference(teacher, size, precision),
    )


def _leave_batch_norms_out(model: nn.Module) -> None:
    """As folding does where it can; here without numbers, so without looking whether it can."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, what_remains(child))
