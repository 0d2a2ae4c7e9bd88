"""The budget that every speed is held against: DeiT-B, 300 epochs of ImageNet-1k, 3 days, 8 GPUs."""

from __future__ import annotations

IMAGENET_TRAIN_IMAGES, IMAGENET_VAL_IMAGES = 1_281_167, 50_000
BUDGET_EPOCHS = 300
BUDGET_DAYS = 3.0
BUDGET_DEVICES = 8
SECONDS_PER_DAY = 86_400

REQUIRED_IMAGES_PER_SECOND = IMAGENET_TRAIN_IMAGES * BUDGET_EPOCHS / (BUDGET_DAYS * SECONDS_PER_DAY)
"""1,482.8 images/s over all devices, 185.4 for each of eight."""


def projected_days(images_per_second: float) -> float:
    """Days that 300 epochs of ImageNet-1k take at this speed (all devices together); ValueError unless it is > 0."""
    if not images_per_second > 0:
        raise ValueError(f"images_per_second must be above 0, got {images_per_second}")
    return IMAGENET_TRAIN_IMAGES * BUDGET_EPOCHS / images_per_second / SECONDS_PER_DAY
