"""Peers that torch's DataLoader runs: timm's and torchvision's transforms; Albumentations' have a file of their own.

Each has one worker process for each thread of ours, started once and kept, so that neither start-up nor leftover work
falls into a turn: a turn takes every batch that its sampler holds.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import timm.data
import torch
import torchvision
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torchvision.transforms import v2

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD, Config
from deit_fast.dali_pipelines.image_files import ImageFiles
from deit_fast.dali_pipelines.operations import FILL

from .peers import FULL, VALIDATION, PeerWork
from .timing import Prepare


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Files with labels, opened and transformed as a peer does it."""

    def __init__(self, images: ImageFiles, load: Callable[[str], Any], transform: Callable[[Any], Any]) -> None:
        self.images, self.load, self.transform = images, load, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.load(self.images.path(index)), int(self.images.labels[index])
        while True:
            try:
                return self.transform(image), label
            except ValueError as error:
                # timm 1.0.31 with Pillow 13 asks for posterizing to 0 bits in 0.15 % of images, and Pillow refuses
                if "bits" not in str(error):
                    raise


class Epochs(BatchSampler):
    """Batches of a shuffled data set, a fixed number in each pass; the next pass goes on behind them."""

    def __init__(self, num_images: int, batch_size: int, batches: int, *, shuffle: bool) -> None:
        self.num_images, self.batch_size, self.batches = num_images, batch_size, batches
        self.generator = np.random.default_rng(0) if shuffle else None
        self.left: list[int] = []

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.batches):
            while len(self.left) < self.batch_size:
                order = np.arange(self.num_images)
                self.left += (self.generator.permutation(order) if self.generator else order).tolist()
            yield self.left[: self.batch_size]
            self.left = self.left[self.batch_size :]


def seed_worker(worker: int) -> None:
    """One thread a worker, as many workers as we have threads; timm draws from Python's and numpy's generators."""
    torch.set_num_threads(1)
    random.seed(worker)
    np.random.seed(worker)


def open_with_pillow(path: str) -> Image.Image:
    """As timm and torchvision's ImageFolder open a file."""
    with Image.open(path) as image:
        return image.convert("RGB")


def timm_transform(config: Config, workload: str) -> Callable[[Any], Any]:
    """timm's `create_transform`, with the values of the recipe."""
    augment, size = config.augment, config.model.image_size_px
    if workload == VALIDATION:
        return timm.data.create_transform(size, interpolation="bicubic", crop_pct=config.eval.crop_ratio)
    full = workload == FULL
    return timm.data.create_transform(
        size,
        is_training=True,
        scale=(augment.crop_scale_min, 1.0),
        hflip=augment.flip_probability,
        color_jitter=None,
        auto_augment=augment.rand_augment if full else None,
        interpolation="bicubic",
        re_prob=augment.erase_probability if full else 0.0,
        re_mode=augment.erase_mode,
        re_count=augment.erase_count,
    )


def torchvision_transform(config: Config, workload: str) -> Callable[[Any], Any]:
    """torchvision's v2 transforms on tensors: its own RandAugment, each of two operations with probability 0.5.

    Its operations are 14 instead of 15, its geometry is bilinear, its magnitude 27 of 30 instead of 9 of 10.
    """
    augment, size = config.augment, config.model.image_size_px
    bicubic = v2.InterpolationMode.BICUBIC
    normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    if workload == VALIDATION:
        resized = int(size / config.eval.crop_ratio)
        return v2.Compose([v2.Resize(resized, bicubic, antialias=True), v2.CenterCrop(size), *normalize])
    steps: list[Any] = [
        v2.RandomResizedCrop(size, (augment.crop_scale_min, 1.0), interpolation=bicubic, antialias=True),
        v2.RandomHorizontalFlip(augment.flip_probability),
    ]
    if workload == FULL:
        once = v2.RandAugment(num_ops=1, magnitude=27, interpolation=v2.InterpolationMode.BILINEAR, fill=list(FILL))
        steps += [v2.RandomApply([once], 0.5), v2.RandomApply([once], 0.5)]
    steps += normalize
    if workload == FULL:
        steps.append(
            v2.RandomErasing(augment.erase_probability, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random")
        )
    return v2.Compose(steps)


decode_with_torchvision = partial(torchvision.io.decode_image, mode=torchvision.io.ImageReadMode.RGB)


TRANSFORMS: dict[str, tuple[Callable[[str], Any], Callable[[Config, str], Callable[[Any], Any]]]] = {
    "timm": (open_with_pillow, timm_transform),
    "torchvision": (decode_with_torchvision, torchvision_transform),
}
"""How each opens a file, and what it does to the image for a workload."""


def prepare(work: PeerWork) -> Prepare:
    """timm's or torchvision's turn."""
    load, make_transform = TRANSFORMS[work.peer]
    return data_loader_turn(work, load, make_transform(work.config, work.workload))


def data_loader_turn(work: PeerWork, load: Callable[[str], Any], transform: Callable[[Any], Any]) -> Prepare:
    """A turn of the work's batches from torch's DataLoader. load and transform are sent to its processes."""
    server = multiprocessing.get_context("forkserver")  # DALI's threads do not survive a fork of this process
    server.set_forkserver_preload([__name__])
    loader = DataLoader(
        Images(work.images, load, transform),
        batch_sampler=Epochs(len(work.images), work.batch_size, work.batches, shuffle=work.workload != VALIDATION),
        num_workers=work.workers,
        persistent_workers=True,
        worker_init_fn=seed_worker,
        multiprocessing_context=server,
    )

    def turn() -> int:
        return sum(len(labels) for _, labels in loader)

    return lambda: turn
