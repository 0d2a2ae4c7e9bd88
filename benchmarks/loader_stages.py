"""The loader's work stage by stage, so that what each adds shows by difference: read, decode, crop, the full recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from os import fsdecode
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from deit_fast.config import Config
from deit_fast.dali_pipelines.decode import decode, decode_device, read
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.loader import Batch, TrainLoader
from deit_fast.dali_pipelines.read_ahead import ReadAhead
from deit_fast.data import train_loader
from deit_fast.distributed import Ranks

from .peers import CROP, FULL
from .timing import OURS, Contender, Prepare, Timings, Turn
from .verdict import Stage
from .work import Work, wait_for

READ, DECODE = "file read", "decode of whole images"
"""Before CROP and FULL. The recipe decodes only the region of its crop, so CROP may take less than DECODE."""
SIZED_IMAGES = 256


def count_images(batches: Iterable[Batch], device: torch.device) -> int:
    """Takes all batches; done when the device is."""
    images = sum(len(batch.labels) for batch in batches)
    wait_for(device)
    return images


class LoaderTurn:
    """A turn of `count` batches from a pipeline built for it, so that nothing is left to be done in another's turn.

    On a GPU some batches before them are not measured, and more are asked for than are taken: the pipeline is as full
    at both ends as in a run. On a CPU the work is the same from the first, and is measured whole.
    """

    def __init__(self, loader: TrainLoader, count: int, consume: Callable[[Iterable[Batch]], int]) -> None:
        ahead = int(loader.pipeline_options["prefetch_queue_depth"]) + 2 if loader.device.type == "cuda" else 0
        self.batches, self.count, self.consume = loader.batches(0, count + 2 * ahead), count, consume
        if ahead:
            consume(islice(self.batches, ahead))

    def __call__(self) -> int:
        return self.consume(islice(self.batches, self.count))

    def finish(self) -> None:
        """Ends the pipeline."""
        self.batches.close()


def our_train_turn(loader: TrainLoader, count: int) -> Prepare:
    """A turn of `count` batches that are only taken."""
    return lambda: LoaderTurn(loader, count, partial(count_images, device=loader.device))


def stage_turn(loader: TrainLoader, count: int, *, decodes: bool) -> Prepare:
    """A turn that reads the same `count` batches, and decodes them with DALI's decoder, but does no more."""

    def prepare() -> Turn:
        reader = ReadAhead(loader.images, loader.images_of, count)
        pipeline = stage_pipeline(loader, reader, decodes=decodes)
        pipeline.build()

        def turn() -> int:
            for _ in range(count):
                pipeline.run()
            reader.close()
            wait_for(loader.device)
            return count * len(loader.sampler.views(0))

        return turn

    return prepare


def stage_pipeline(loader: TrainLoader, reader: ReadAhead, *, decodes: bool) -> Pipeline:
    """The pipeline, not yet built: encoded bytes, or whole images where the recipe decodes."""
    feeds, device = loader.images.feeds, decode_device(loader.dali_device, loader.decoder)

    def source(info: Any) -> list[Any]:
        if info.iteration >= reader.last:
            raise StopIteration
        return [reader.take(info.iteration)]

    @pipeline_def(batch_size=len(loader.sampler.views(0)), exec_dynamic=True, **loader.pipeline_options)
    def pipeline() -> Any:
        (fed,) = fn.external_source(
            source=source, num_outputs=1, batch=True, batch_info=True, dtype=[types.UINT8], ndim=[1]
        )
        if decodes:
            return decode(read(fed, feeds), device, loader.hardware_decoder_share)
        # a mapped file would be read only when somebody looks at it
        return fn.io.file.read(fed, dont_use_mmap=True) if feeds == "path" else fed

    return pipeline()


def loader_works(config: Config, ranks: Ranks, images: ImageSet, precision: str, count: int) -> dict[Contender, Work]:
    """The stages for one backend, a turn being `count` batches."""
    loader = train_loader(config, images, ranks, precision)
    plain = replace(config, augment=replace(config.augment, policy="none", erase_probability=0.0))
    crop_loader = train_loader(plain, images, ranks, precision)
    works = {
        READ: stage_turn(loader, count, decodes=False),
        DECODE: stage_turn(loader, count, decodes=True),
        CROP: our_train_turn(crop_loader, count),
        FULL: our_train_turn(loader, count),
    }
    return {Contender(name, OURS): Work(prepare) for name, prepare in works.items()}


def loader_stages(timings: Timings, lane: str) -> list[Stage]:
    """What each stage adds to the one before it; none where differences vanish in the noise."""
    taken = {name: timings[Contender(name, OURS)].wall_ms for name in (READ, CROP, FULL)}
    return [
        Stage(READ, lane, taken[READ]),
        Stage(CROP, lane, max(0.0, taken[CROP] - taken[READ])),
        Stage("augmentation", lane, max(0.0, taken[FULL] - max(taken[CROP], taken[READ]))),
    ]


def bytes_per_image(images: ImageSet) -> float:
    """Mean size of the encoded images, by some of them evenly spread."""
    chosen = np.linspace(0, len(images) - 1, min(SIZED_IMAGES, len(images))).astype(int).tolist()
    fed = [images.feed(image) for image in chosen]
    if images.feeds == "path":
        return float(np.mean([Path(fsdecode(path.tobytes())).stat().st_size for path in fed]))
    return float(np.mean([len(data) for data in fed]))
