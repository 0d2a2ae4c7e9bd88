"""What a checkout of facebookresearch/deit needs today, put on from outside; nothing of it is copied or edited.

It was written for timm 0.3.2 and torch 1.7; with torch 2.14, timm 1.0.31 and Pillow 13 its main.py does not start.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm.data.transforms
import timm.models.vision_transformer
import torch
from PIL import Image, ImageOps
from torch.utils.data import RandomSampler

ENDLESS = 1 << 40
"""Images of an epoch. ImageNet's has 20,000 steps; that of a small set would end, and start new workers, in a turn."""


class CpuAutocast(torch.autocast):
    """What its `torch.cuda.amp.autocast()`, which does nothing on a CPU, would be there."""

    def __init__(self) -> None:
        super().__init__("cpu", dtype=torch.bfloat16)


def apply_patches(*, bf16: bool) -> None:
    """Before its modules are imported. bf16: its autocast gets a meaning on a CPU."""
    timm_names()
    pretrained_arguments()
    posterize_to_no_bits()
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_args: None  # engine.py calls it in every step
    if bf16:
        torch.cuda.amp.autocast = CpuAutocast  # type: ignore[misc, assignment]
    torch.utils.data.RandomSampler = partial(RandomSampler, num_samples=ENDLESS)  # type: ignore[misc, assignment]


def timm_names() -> None:
    """augment.py imports a function of timm 0.3, and calls it only for 3-Augment."""
    if not hasattr(timm.data.transforms, "_pil_interp"):
        timm.data.transforms._pil_interp = timm.data.transforms.str_to_pil_interp


def pretrained_arguments() -> None:
    """timm 1.x hands a model's function arguments that models.py passes on to a class that does not take them."""
    model = timm.models.vision_transformer.VisionTransformer
    construct = model.__init__

    def without_them(self: Any, *args: Any, **named: Any) -> None:
        for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            named.pop(name, None)
        construct(self, *args, **named)

    model.__init__ = without_them  # type: ignore[method-assign]


def posterize_to_no_bits() -> None:
    """timm asks for 0 bits in 0.15 % of images: black until Pillow 12, an error in Pillow 13."""
    posterize = ImageOps.posterize

    def with_none(image: Image.Image, bits: int) -> Image.Image:
        return posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)

    ImageOps.posterize = with_none
