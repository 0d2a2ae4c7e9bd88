"""FFCV: reads a file of its own that holds the images as JPEGs; no RandAugment, and it resizes by area, not bicubic.

That file is written first and not timed. FFCV encodes each image again for it, at its default quality of 90.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD

from .peers import VALIDATION, PeerWork
from .timing import Prepare
from .torch_peers import Images, open_with_pillow


def prepare(work: PeerWork) -> Prepare:
    """A turn is an epoch over as many images as the work's batches hold."""
    folder = tempfile.TemporaryDirectory(prefix="deit_fast_ffcv_")
    loader = open_loader(work, Path(folder.name, "images.beton"))

    def turn() -> int:
        assert folder.name  # the file lives as long as its loader
        return sum(len(images) for images, _ in loader)

    return lambda: turn


def open_loader(work: PeerWork, path: Path) -> Loader:
    """Writes the file, and opens it; each iteration gives the work's batches of (images, labels)."""
    count = work.batches * work.batch_size
    written = write_images(work, path, min(count, len(work.images)))
    return Loader(
        str(path),
        batch_size=work.batch_size,
        num_workers=work.workers,
        order=OrderOption.SEQUENTIAL if work.workload == VALIDATION else OrderOption.RANDOM,
        indices=np.resize(np.arange(written), count),
        os_cache=True,
        pipelines={"image": image_pipeline(work), "label": [IntDecoder(), ToTensor()]},
    )


def write_images(work: PeerWork, path: Path, count: int) -> int:
    """Writes `count` images, evenly from the whole set, so that all classes are there; returns how many."""
    chosen = np.linspace(0, len(work.images) - 1, count).astype(int).tolist()
    writer = DatasetWriter(str(path), {"image": RGBImageField(write_mode="jpg"), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(Images(work.images, open_with_pillow, lambda image: image), indices=chosen)
    return count


def image_pipeline(work: PeerWork) -> list[object]:
    """Decoding with the crop, flip, and the normalised image: fp32, channels-last."""
    size = work.config.model.image_size_px
    augment = work.config.augment
    if work.workload == VALIDATION:
        shown = [CenterCropRGBImageDecoder((size, size), ratio=work.config.eval.crop_ratio)]
    else:
        scale = (augment.crop_scale_min, 1.0)
        shown = [
            RandomResizedCropRGBImageDecoder((size, size), scale=scale),
            RandomHorizontalFlip(augment.flip_probability),
        ]
    mean, std = np.array(IMAGENET_MEAN) * 255, np.array(IMAGENET_STD) * 255
    return [*shown, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
