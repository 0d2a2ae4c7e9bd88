"""The data set: its classes and sizes, bad files in a sample, and the speed of the disk that it lies on."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deit_fast.budget import (
    BUDGET_DEVICES,
    IMAGENET_TRAIN_IMAGES,
    IMAGENET_VAL_IMAGES,
    REQUIRED_IMAGES_PER_SECOND,
)
from deit_fast.config import Config
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.scan import why_unreadable
from deit_fast.dali_pipelines.unreadable import unreadable_images
from deit_fast.data import open_train_and_val

from .finding import Finding

SAMPLED_IMAGES = 256
READ_SECONDS = 5.0
READ_THREADS = 16
"""As many as hide the latency of a network file system; the loader reads ahead too."""
SAFE_FACTOR = 2.0
"""A disk that is only just fast enough stalls the run when others use it."""
IMAGENET_CLASSES = 1000


def check_images(config: Config, devices: int) -> list[Finding]:
    """Everything about data.path."""
    if not config.data.path:
        return [Finding("data", "note", "data.path is not set: the data set was not looked at")]
    try:
        train, val = open_train_and_val(config.data)
    except (ValueError, OSError) as error:
        return [Finding("data", "failure", str(error), "docs/data.md shows the layouts that are read")]
    generator = np.random.default_rng(0)
    sample = generator.permutation(len(train))[:SAMPLED_IMAGES]
    return [
        judge_sizes(len(train.classes), len(train), len(val)),
        check_sample(train, sample.tolist(), config.data.max_bad_fraction),
        check_disk(train, generator.permutation(len(train)), devices),
    ]


def judge_sizes(classes: int, train: int, val: int) -> Finding:
    """Counts, held against ImageNet-1k's where there are a thousand classes."""
    text = f"{classes:,} classes, {train:,} training and {val:,} validation images"
    if classes == IMAGENET_CLASSES and (train, val) != (IMAGENET_TRAIN_IMAGES, IMAGENET_VAL_IMAGES):
        expected = f"ImageNet-1k has {IMAGENET_TRAIN_IMAGES:,} and {IMAGENET_VAL_IMAGES:,}"
        return Finding("data", "warning", f"{text}; {expected}", "unpack the archives again; deit-fast data verify")
    return Finding("data", "ok", text)


def check_sample(images: ImageSet, sample: list[int], max_bad_fraction: float) -> Finding:
    """Decodes some images whole, those that a scan found bad left out."""
    known = set(images.bad.tolist())
    tried = [image for image in sample if image not in known]
    try:
        bad = unreadable_images(images, tried)
    except OSError as error:  # of a shard or a store; a bad image is none
        return Finding("images", "failure", str(error), "copy it again; deit-fast data verify checks packed shards")
    text = f"{len(bad)} of {len(tried)} images drawn at random are bad; {len(known):,} are known from a scan"
    if not bad:
        return Finding("images", "ok", text)
    text += f"; {images.name(bad[0])}: {why_unreadable(images, bad[0])}"
    mend = "deit-fast data scan lists them all, and training shows others in their place"
    share = len(bad) / len(tried)
    return Finding("images", "failure" if share > max_bad_fraction else "warning", text, mend)


def check_disk(images: ImageSet, order: np.ndarray, devices: int) -> Finding:
    """Reads files in random order, as training does, past the page cache as far as the kernel lets us."""
    seconds, sizes = read_for(lambda image: read_image(images, image), order.tolist(), READ_SECONDS)
    if not sizes:
        return Finding("disk", "failure", "not one image could be read", "mend what was found of the images first")
    return judge_disk(len(sizes) / seconds, statistics.fmean(sizes), devices)


def read_for(read: Callable[[int], int], order: list[int], seconds: float) -> tuple[float, list[int]]:
    """Reads one image after another in threads until time is up; seconds taken and bytes of each that can be read."""
    sizes: list[int] = []
    start = time.monotonic()
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for at in range(0, len(order), 4 * READ_THREADS):
            sizes += filter(None, pool.map(read, order[at : at + 4 * READ_THREADS]))
            if time.monotonic() - start > seconds:
                break
    return time.monotonic() - start, sizes


def read_image(images: ImageSet, image: int) -> int:
    """Reads the bytes of an image; how many, 0 of a bad one. A file's pages are dropped first: the disk is read."""
    try:
        fed = images.feed(image)
        if images.feeds == "bytes":
            return len(fed)
        with Path(os.fsdecode(fed.tobytes())).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return len(file.read())
    except OSError:  # bad files are the sample's business
        return 0


def judge_disk(files_per_second: float, mean_bytes: float, devices: int) -> Finding:
    """Against the budget's demand: 185.4 images/s for each device."""
    wanted = REQUIRED_IMAGES_PER_SECOND / BUDGET_DEVICES * devices
    text = (
        f"{files_per_second:,.0f} images/s read in random order ({files_per_second * mean_bytes / 1e6:,.0f} MB/s at "
        f"{mean_bytes / 1e3:,.0f} KB); the budget needs {wanted:,.0f} images/s for {devices} device"
        f"{'s' if devices > 1 else ''}"
    )
    mend = "put the data on a local NVMe disk, or pack it into shards: deit-fast data pack"
    if files_per_second < wanted:
        return Finding("disk", "failure", text, mend)
    if files_per_second < SAFE_FACTOR * wanted:
        return Finding("disk", "warning", text, mend)
    return Finding("disk", "ok", text)
