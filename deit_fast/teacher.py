"""The teacher of distillation: a frozen ConvNet of timm, or a DeiT, that sees the student's mixed images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import IMAGENET_MEAN, IMAGENET_STD, DistillConfig, RuntimeConfig
from .fold_batch_norm import fold_batch_norms
from .model import DeiT
from .variants import DEIT_VARIANTS
from .weights import load_weights, num_classes, read_weights

OFFICIAL_WEIGHTS = {"regnety_160": "regnety_160.deit_in1k"}
"""timm's default weights of this name are others than those that taught DeiT."""
PROBE_SIZE_PX = 64
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""What autocast keeps in fp32, so that a model with any of them stays in fp32 itself."""


def full_name(name: str) -> str:
    """timm's name with the tag of the weights meant; their normalisation and resolution hang on it."""
    return OFFICIAL_WEIGHTS.get(name, name)


class TeacherRuntime(NamedTuple):
    """How the teacher is computed: what runtime.teacher_* comes to."""

    precision: str
    layout: str
    fold: bool
    compile: bool


def teacher_runtime(runtime: RuntimeConfig, precision: str) -> TeacherRuntime:
    """The choices that were left open are those of a run that was not tuned; precision is the student's."""
    return TeacherRuntime(
        precision if runtime.teacher_precision == "auto" else runtime.teacher_precision,
        "channels_last" if runtime.teacher_layout == "auto" else runtime.teacher_layout,
        runtime.teacher_fold is not False,
        bool(runtime.teacher_compile),
    )


class Teacher:
    """Callable: images [B, 3, H, W], normalised for the student -> logits [B, C] without gradient.

    In evaluation mode, under autocast; images are brought to the normalisation and the resolution that the teacher was
    trained with where these differ. Batch norms are folded away where `fold` allows, the memory format is `layout`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size_px: int | None,
        scale: Tensor | None,
        shift: Tensor | None,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        layout: str = "channels_last",
        fold: bool = True,
        compiled: bool = False,
    ) -> None:
        """scale and shift [1, 3, 1, 1] turn the student's pixels into the teacher's; None: they are the same."""
        self.memory_format = torch.contiguous_format if layout == "contiguous" else torch.channels_last
        model = model.eval().requires_grad_(False)
        if fold:
            fold_batch_norms(model, image_size_px or PROBE_SIZE_PX)
        if autocast_dtype is not None and not any(isinstance(module, NORMS) for module in model.modules()):
            # autocast would cast frozen weights again in every forward: its cache holds trained ones only
            model = model.to(autocast_dtype)
        self.model = model.to(device=device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if compiled:
            self.model.compile(dynamic=False)
        self.image_size_px, self.device, self.autocast_dtype = image_size_px, device, autocast_dtype
        self.scale = None if scale is None else scale.to(device)
        self.shift = None if shift is None else shift.to(device)

    def __call__(self, images: Tensor) -> Tensor:
        enabled = self.autocast_dtype is not None
        with torch.inference_mode(), torch.autocast(self.device.type, self.autocast_dtype, enabled=enabled):
            logits = self.model(self._as_trained(images))
        return logits.clone()  # a tensor of inference mode may not enter the graph of the soft loss; B x C is small

    def _as_trained(self, images: Tensor) -> Tensor:
        if self.image_size_px is not None and images.shape[-1] != self.image_size_px:
            size = (self.image_size_px, self.image_size_px)
            images = F.interpolate(images.float(), size, mode="bicubic", align_corners=False, antialias=True)
        if self.scale is not None and self.shift is not None:
            images = torch.addcmul(self.shift.to(images.dtype), images, self.scale.to(images.dtype))
        if self.autocast_dtype is None:
            images = images.float()  # the student's may be fp16, which no autocast brings to an fp32 teacher
        return images.contiguous(memory_format=self.memory_format)


def build_teacher(
    distill: DistillConfig,
    *,
    num_classes: int,
    student_mean: tuple[float, ...],
    student_std: tuple[float, ...],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    layout: str = "channels_last",
    fold: bool = True,
    compiled: bool = False,
) -> Teacher:
    """distill.teacher with the weights of distill.teacher_checkpoint, or a model of timm with its own, downloaded.

    ValueError, naming the key, for an unknown model, weights that do not fit it, or another number of classes than the
    data's `num_classes`; RuntimeError when the weights cannot be downloaded.
    """
    check_name(distill)
    load = _load_local if distill.teacher_checkpoint else _download
    model, mean, std, image_size_px = load(distill, num_classes)
    scale = shift = None
    if (tuple(mean), tuple(std)) != (tuple(student_mean), tuple(student_std)):
        mean_s, std_s, mean_t, std_t = (
            torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            for values in (student_mean, student_std, mean, std)
        )
        scale, shift = std_s / std_t, (mean_s - mean_t) / std_t
    return Teacher(
        model,
        image_size_px=distill.teacher_image_size_px or image_size_px,
        scale=scale,
        shift=shift,
        device=device,
        autocast_dtype=autocast_dtype,
        layout=layout,
        fold=fold,
        compiled=compiled,
    )


@contextmanager
def random_teacher(distill: DistillConfig, num_classes: int) -> Iterator[DistillConfig]:
    """With first weights in a file, gone afterwards, where no distill.teacher_checkpoint is given.

    For measurements of speed, which does not depend on them: nothing is downloaded, and any number of classes will do.
    """
    if distill.kind == "none" or distill.teacher_checkpoint is not None:
        yield distill
        return
    check_name(distill)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        torch.save(create_teacher(distill, num_classes).state_dict(), weights)
        yield replace(distill, teacher_checkpoint=str(weights))


def check_name(distill: DistillConfig) -> None:
    """ValueError for a distill.teacher that is not known: a DeiT of this package needs its checkpoint."""
    ours = distill.teacher in DEIT_VARIANTS and distill.teacher_checkpoint is not None
    if not (ours or timm.is_model(distill.teacher.split(".")[0])):
        raise ValueError(f"unknown distill.teacher {distill.teacher}: not a model of timm")


def create_teacher(distill: DistillConfig, num_classes: int, image_size_px: int | None = None) -> nn.Module:
    """distill.teacher for the weights of a checkpoint, without them; image_size_px of a DeiT, default: by its name."""
    if distill.teacher in DEIT_VARIANTS and distill.teacher_checkpoint is not None:
        shape = DEIT_VARIANTS[distill.teacher]
        return DeiT(shape, image_size_px=image_size_px or shape.image_size_px, num_classes=num_classes)
    return timm.create_model(full_name(distill.teacher), pretrained=False, num_classes=num_classes)


Loaded = tuple[nn.Module, tuple[float, ...], tuple[float, ...], int | None]
"""Model, mean, std, image side in pixels."""


def _load_local(distill: DistillConfig, classes: int) -> Loaded:
    assert distill.teacher_checkpoint is not None
    weights = read_weights(distill.teacher_checkpoint)
    trained = num_classes(weights.state_dict)
    if trained is not None:
        _check_classes(trained, classes, f"distill.teacher_checkpoint {weights.path}")
    image_size_px = (weights.config or {}).get("model", {}).get("image_size_px")
    model = create_teacher(distill, classes, image_size_px)
    try:
        load_weights(model, weights)
    except ValueError as error:
        raise ValueError(
            f"distill.teacher {distill.teacher} does not fit distill.teacher_checkpoint: {error}"
        ) from error
    if weights.config is not None:  # trained by this trainer: its images are the student's
        return model, IMAGENET_MEAN, IMAGENET_STD, image_size_px
    return model, *_trained_with(getattr(model, "pretrained_cfg", {}))


def _download(distill: DistillConfig, classes: int) -> Loaded:
    name = full_name(distill.teacher)
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        raise RuntimeError(
            f"the weights of distill.teacher {name} could not be downloaded ({type(error).__name__}); "
            "give a local file with --distill.teacher_checkpoint"
        ) from error
    _check_classes(model.num_classes, classes, f"distill.teacher {name}")
    return model, *_trained_with(model.pretrained_cfg)


def _trained_with(cfg: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...], int | None]:
    """Mean, std and side by timm's pretrained_cfg; a ConvNet without one takes the images as they are."""
    size = cfg.get("input_size")
    return cfg.get("mean", IMAGENET_MEAN), cfg.get("std", IMAGENET_STD), size[-1] if size else None


def _check_classes(trained: int, wanted: int, what: str) -> None:
    if trained != wanted:
        raise ValueError(
            f"{what} knows {trained} classes, data.path has {wanted}: the teacher has to be trained on the same classes"
        )
