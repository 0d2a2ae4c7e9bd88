"""What a training view goes through, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainAugment:
    """Crop, flip, policy, normalisation and random erasing; the defaults are DeiT's."""

    image_size_px: int = 224
    crop: Literal["resized", "simple"] = "resized"
    """resized: torchvision's RandomResizedCrop; simple: shorter side resized, then a random crop (DeiT III's `src`)."""
    crop_scale_min: float = 0.08
    flip_probability: float = 0.5
    policy: Literal["rand", "three", "none"] = "rand"
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation; 0: none. The official code ignores it beside RandAugment."""
    geometry: Literal["exact", "bilinear"] = "exact"
    """Rotation, shear and translation: Pillow's bicubic, as timm has it, or bilinear, which is cheaper."""
    erase_probability: float = 0.25
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    """Normal noise for each pixel, one normal colour for each rectangle, or zeros (the mean colour)."""
    erase_count: int = 1
    """Most rectangles in an image; the number is drawn evenly from 1 to this."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the image, over all its rectangles."""
    erase_aspect_min: float = 0.3
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    normalize: bool = True
    """False: bytes come out, for a trainer that normalises on its device."""
    decode_once: bool = False
    """Views of one image in a batch share one decoding (`data.repeats_placement` same_rank)."""

    def __post_init__(self) -> None:
        """ValueError for values that exclude each other."""
        if self.color_jitter and self.policy == "rand":
            raise ValueError(
                f"augment.color_jitter {self.color_jitter} does nothing beside augment.policy rand (as in the official "
                "code); use --augment.color_jitter 0, or --augment.policy three or none"
            )
        if not self.normalize and self.erase_probability > 0 and self.erase_mode != "const":
            raise ValueError(
                f"uint8 images cannot hold the noise of augment.erase_mode {self.erase_mode}, which comes after "
                "normalisation; use --augment.erase_mode const or --augment.erase_probability 0"
            )
        if self.erase_count < 1:
            raise ValueError(f"augment.erase_count must be at least 1, got {self.erase_count}")
