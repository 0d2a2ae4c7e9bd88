"""SPDL: FFmpeg decodes, crops, resizes and flips in threads of this process; it has no RandAugment."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder
from torchvision.transforms import RandomResizedCrop

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD, Config

from .peers import VALIDATION, PeerWork
from .timing import Prepare, Turn

Size = Callable[[int, int], str]
"""(width, height) of an image in pixels -> FFmpeg's description of what is done to it."""


def prepare(work: PeerWork) -> Prepare:
    """A turn builds a pipeline for its batches; RuntimeError where FFmpeg's libraries are missing."""
    check_ffmpeg()
    shuffle = np.random.default_rng(0)
    count = work.batches * work.batch_size
    describe = validation_filter(work.config) if work.workload == VALIDATION else train_filter(work.config)

    def get_ready() -> Turn:
        order = np.arange(len(work.images))
        if work.workload != VALIDATION:
            order = shuffle.permutation(order)
        paths = [work.images.path(int(image)) for image in np.resize(order, count)]
        builder: PipelineBuilder[str, torch.Tensor] = PipelineBuilder()
        pipeline = (
            builder.add_source(paths)
            .pipe(partial(decode, describe=describe), concurrency=work.workers)
            .aggregate(work.batch_size)
            .pipe(to_batch)
            .add_sink(2)
            .build(num_threads=work.workers)
        )

        def turn() -> int:
            with pipeline.auto_stop():
                return sum(len(batch) for batch in pipeline)

        return turn

    return get_ready


def check_ffmpeg() -> None:
    """RuntimeError, saying what to install, unless SPDL finds the libraries it is linked to."""
    try:
        spdl.io.utils.get_ffmpeg_versions()
    except RuntimeError as error:
        raise RuntimeError(
            "--against spdl needs FFmpeg's shared libraries (4 to 9), libavdevice among them: apt-get install ffmpeg"
        ) from error


def train_filter(config: Config) -> Size:
    """Random resized crop, its box as torchvision draws it, and flip."""
    augment, size = config.augment, config.model.image_size_px

    def describe(width: int, height: int) -> str:
        frame = torch.empty(1, 1, 1).expand(3, height, width)  # only its shape is looked at
        y, x, h, w = RandomResizedCrop.get_params(frame, [augment.crop_scale_min, 1.0], [3 / 4, 4 / 3])
        flip = "hflip," if random.random() < augment.flip_probability else ""
        return f"crop={w}:{h}:{x}:{y},scale={size}:{size}:flags=bicubic,{flip}format=pix_fmts=rgb24"

    return describe


def validation_filter(config: Config) -> Size:
    """Resize of the shorter side, centre crop."""
    size = config.model.image_size_px
    resized = int(size / config.eval.crop_ratio)

    def describe(width: int, height: int) -> str:
        short = min(width, height)
        w, h = resized * width // short, resized * height // short
        return f"scale={w}:{h}:flags=bicubic,crop={size}:{size},format=pix_fmts=rgb24"

    return describe


def decode(path: str, describe: Size) -> spdl.io.ImageFrames:
    """One image as FFmpeg's frame."""
    packets = spdl.io.demux_image(path)
    return spdl.io.decode_packets(packets, filter_desc=describe(packets.width, packets.height))


def to_batch(frames: Sequence[spdl.io.ImageFrames]) -> torch.Tensor:
    """fp32 [B, 3, H, W], channels-last, normalised."""
    pixels = spdl.io.to_torch(spdl.io.convert_frames(frames)).float()
    mean, std = (torch.tensor(values) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.sub_(mean).div_(std).permute(0, 3, 1, 2)
