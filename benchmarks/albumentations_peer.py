"""Albumentations on OpenCV, run by torch's DataLoader: no RandAugment, and bicubic without antialias."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else every import asks the package index for a newer one

import albumentations
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD, Config

from .peers import VALIDATION, PeerWork
from .timing import Prepare
from .torch_peers import data_loader_turn

cv2.setNumThreads(1)  # each of the loader's processes has one core


def prepare(work: PeerWork) -> Prepare:
    """A turn of the work's batches."""
    return data_loader_turn(work, open_with_opencv, transform(work.config, work.workload))


def open_with_opencv(path: str) -> np.ndarray:
    """[H, W, 3] uint8, RGB."""
    image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


def transform(config: Config, workload: str) -> Callable[[np.ndarray], torch.Tensor]:
    """Crop and flip, or validation, to a normalised [3, H, W]."""
    augment, size, cubic = config.augment, config.model.image_size_px, cv2.INTER_CUBIC
    if workload == VALIDATION:
        resized = int(size / config.eval.crop_ratio)
        steps = [albumentations.SmallestMaxSize(resized, interpolation=cubic), albumentations.CenterCrop(size, size)]
    else:
        scale = (augment.crop_scale_min, 1.0)
        steps = [
            albumentations.RandomResizedCrop((size, size), scale, interpolation=cubic),
            albumentations.HorizontalFlip(p=augment.flip_probability),
        ]
    steps += [albumentations.Normalize(IMAGENET_MEAN, IMAGENET_STD), ToTensorV2()]
    return partial(apply, albumentations.Compose(steps))


def apply(steps: albumentations.Compose, image: np.ndarray) -> torch.Tensor:
    """A function that can be sent to another process."""
    return steps(image=image)["image"]
