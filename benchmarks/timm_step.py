"""timm's model, mixing, loss, optimizer and moving average in a plain loop: what one would write without this package.

The same images, precision, batch, model, teacher and arithmetic as our step. Chosen as timm's users have them: fused
attention, Mixup in batch mode on dense targets, AdamW by `create_optimizer_v2`, ModelEmaV2, batch norms not folded, and
memory formats as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2
from torch import Tensor, nn

from deit_fast.config import Config
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.precision import autocast, gradient_scaler
from deit_fast.teacher import full_name
from deit_fast.variants import DEIT_VARIANTS

from .assembled import Assembled
from .comparable import Allowed, check_allowed
from .step import WHOLE
from .timing import Contender
from .work import Work, synchronised

TIMM = "timm"
ALLOWED: Allowed = {
    "model.drop_path_schedule": ("linear",),
    "model.drop_path_mode": ("independent",),
    "loss.cosub": (False,),
    "distill.kind": ("hard", "none"),
    "optim.clip_grad_norm": (None,),
    "runtime.accumulate_steps": (1,),
}
"""The loop below has no form of anything else."""


def timm_works(parts: Assembled, batch: Batch) -> dict[Contender, Work]:
    """timm's whole step on the same batch; ValueError for what timm has no loop for."""
    check_comparable(parts)
    step = TimmStep(parts.config, len(parts.state.classes), parts.ranks.device, parts.precision)
    images, labels = batch.images.float().contiguous(), batch.labels  # timm's loaders give fp32, NCHW
    take = synchronised(lambda: step(images, labels), len(labels), parts.ranks.device)
    return {Contender(WHOLE, TIMM): Work(take, parts.step_flops(parts.teacher), turn_is_step=True)}


def check_comparable(parts: Assembled) -> None:
    """ValueError, naming the key, where the loop below would do something else than our step."""
    if parts.ranks.world_size > 1:
        raise ValueError("--against timm is measured in one process: leave torchrun away")
    check_allowed("timm", parts.config, ALLOWED)


def timm_student(config: Config, num_classes: int) -> nn.Module:
    """timm's model of the same sizes, also of those that timm has no name for."""
    model, shape = config.model, DEIT_VARIANTS.get(config.model.name)
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "drop_path_rate": model.drop_path_rate,
        "img_size": model.image_size_px,
    }
    if shape is None:
        return timm.create_model(model.name, num_classes=num_classes, drop_path_rate=model.drop_path_rate)
    options |= {"patch_size": shape.patch_size_px, "embed_dim": shape.embed_dim, "depth": shape.depth}
    options |= {"num_heads": shape.num_heads, "init_values": shape.layer_scale_init}
    options["no_embed_class"] = not shape.positions_on_prefix
    if not shape.distilled:
        return VisionTransformer(**options)
    student = VisionTransformerDistilled(**options)
    student.set_distilled_training(True)
    return student


class TimmStep:
    """Callable: (images fp32 [B, 3, H, W], labels [B]) -> nothing; the step of a plain loop."""

    def __init__(self, config: Config, num_classes: int, device: torch.device, precision: str) -> None:
        mix, optim = config.mix, config.optim
        self.device, self.precision, self.alpha = device, precision, config.distill.alpha
        self.student = timm_student(config, num_classes).to(device).train()
        self.teacher: nn.Module | None = None
        if config.distill.kind == "hard":
            teacher = timm.create_model(full_name(config.distill.teacher), num_classes=num_classes)
            trained_with: dict[str, Any] = teacher.pretrained_cfg
            self.teacher_size_px: int = config.distill.teacher_image_size_px or trained_with["input_size"][-1]
            self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.mixup = Mixup(
            mix.mixup_alpha, mix.cutmix_alpha, prob=mix.probability, switch_prob=mix.switch_probability,
            label_smoothing=mix.label_smoothing, num_classes=num_classes,
        )  # fmt: skip
        self.loss: Callable[[Tensor, Tensor], Tensor] = SoftTargetCrossEntropy()
        if config.loss.label == "bce":
            self.loss = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)
        self.optimizer = create_optimizer_v2(self.student, optim.name, lr=0.0, weight_decay=optim.weight_decay)
        self.scaler = gradient_scaler(precision, device)
        self.ema = None if optim.ema_decay is None else ModelEmaV2(self.student, decay=optim.ema_decay)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        images, targets = self.mixup(images.clone(), labels)  # it mixes in place
        with autocast(self.precision, self.device):
            output = self.student(images)
            loss = self.loss(output[0], targets) if self.teacher else self.loss(output, targets)
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(self.for_teacher(images)).argmax(dim=1)
                loss = (1 - self.alpha) * loss + self.alpha * F.cross_entropy(output[1], taught)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.student)

    def for_teacher(self, images: Tensor) -> Tensor:
        """At the resolution that the teacher was trained with, as ours has them."""
        if images.shape[-1] == self.teacher_size_px:
            return images
        size = (self.teacher_size_px, self.teacher_size_px)
        return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
