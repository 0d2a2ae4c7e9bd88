"""The teacher's forward on synthetic images: checked by its logits against plain fp32."""

from __future__ import annotations

import copy

import timm
import torch
from torch import Tensor, nn

from deit_fast.benchmarks.step import synthetic_batch
from deit_fast.config import Config
from deit_fast.data import image_dtype
from deit_fast.distributed import Ranks
from deit_fast.precision import DTYPES, choose_precision
from deit_fast.teacher import Teacher, TeacherRuntime, full_name, teacher_runtime

from .question import CandidateError, Repeat
from .step_workload import CHECKED_IMAGES, IMAGES_ON_CPU, with_batch_size

LARGEST_ERROR = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}
"""Of the logits, relative in the Euclidean norm: rounding adds up over a hundred layers."""
PLAIN = TeacherRuntime("fp32", "contiguous", fold=False, compile=False)


class TeacherWorkload:
    """distill.teacher with weights that are not its own: neither speed nor rounding depends on them."""

    def __init__(self, ranks: Ranks, num_classes: int) -> None:
        self.ranks, self.num_classes = ranks, num_classes
        self.model: nn.Module | None = None
        self.truth: Tensor | None = None

    def check(self, config: Config) -> float:
        """Logits of a few images against fp32 as timm computes them."""
        config = with_batch_size(config, CHECKED_IMAGES)
        if self.truth is None:
            self.truth = self._build(config, plain=True)(self._images(config).float()).float()
        logits = self._build(config)(self._images(config)).float()
        error = ((logits - self.truth).norm() / self.truth.norm()).item()
        allowed = LARGEST_ERROR[self._how(config).precision]
        if not error <= allowed:  # nor NaN
            raise CandidateError(f"its logits are off by {error:.2g} of their norm, {allowed:.2g} is allowed")
        return error

    def ready(self, config: Config) -> Repeat:
        """The run's batch; on a CPU no more than some images of it."""
        device = self.ranks.device
        if device.type == "cpu":
            config = with_batch_size(config, min(IMAGES_ON_CPU, config.runtime.batch_size_per_device))
        teacher, images = self._build(config), self._images(config)

        def turn(count: int) -> int:
            for _ in range(count):
                teacher(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return count * len(images)

        return lambda count: lambda: lambda: turn(count)

    def _images(self, config: Config) -> Tensor:
        dtype = image_dtype(choose_precision(config.runtime.precision, self.ranks.device))
        return synthetic_batch(config, self.ranks.device, dtype).images

    def _build(self, config: Config, plain: bool = False) -> Teacher:
        if self.model is None:
            name = full_name(config.distill.teacher)
            self.model = lively(
                timm.create_model(name, pretrained=False, num_classes=self.num_classes), config.model.image_size_px
            )
        how = PLAIN if plain else self._how(config)
        return Teacher(
            copy.deepcopy(self.model),
            image_size_px=config.distill.teacher_image_size_px,
            scale=None,
            shift=None,
            device=self.ranks.device,
            autocast_dtype=None if how.precision == "fp32" else DTYPES[how.precision],
            layout=how.layout,
            fold=how.fold,
            compiled=how.compile,
        )

    def _how(self, config: Config) -> TeacherRuntime:
        return teacher_runtime(config.runtime, choose_precision(config.runtime.precision, self.ranks.device))


@torch.no_grad()
def lively(model: nn.Module, image_size_px: int) -> nn.Module:
    """Batch norms as if trained: the first ones pass their input on unscaled, or are 0 and hide a whole branch."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
        norm.bias.copy_(0.1 * torch.randn(norm.bias.shape, generator=generator))
        norm.momentum = 1.0  # one batch decides the statistics
    size = min(image_size_px, 128)
    model.train()(torch.randn(2, 3, size, size, generator=generator))
    return model.eval()
