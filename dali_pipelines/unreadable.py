"""Images that cannot be read or decoded: which of a batch, and what is shown in their place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types

from .decode import decode, read
from .image_set import ImageSet
from .operations import Node
from .philox import Stream, uniforms

logger = logging.getLogger(__name__)


class BadImageError(ValueError):
    """A file of the data set that cannot be read or decoded."""


def unreadable_images(images: ImageSet, which: Sequence[int]) -> list[int]:
    """Those of the images that DALI cannot read or decode, each tried alone and whole on the CPU.

    DALI's own messages name some of them, and only number others.
    """
    bad: list[int] = []
    start = 0
    while start < len(which):
        pipeline = _one_by_one(images, which[start:])
        for image in which[start:]:
            start += 1
            try:
                pipeline.run()
            except RuntimeError:
                bad.append(image)
                break  # a pipeline that failed is not used again
    return bad


def _one_by_one(images: ImageSet, which: Sequence[int]) -> Pipeline:
    """Decodes one image after another."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
    def decode_alone() -> Node:
        left = iter(which)

        def source() -> Any:
            return [images.feed(next(left))]

        fed = fn.external_source(source=source, batch=True, dtype=types.UINT8, ndim=1)
        return decode(read(fed, images.feeds), "cpu")

    return decode_alone()


class Substitutes:
    """Shows other images in place of the bad ones, and counts both.

    The image that a view shows instead is a pure function of (seed, epoch, view, attempt): whenever a bad file is found
    out, and on however many devices, the run trains on the same images.
    """

    def __init__(self, num_images: int, seed: int, max_bad_fraction: float, bad: Iterable[int] = ()) -> None:
        """ValueError when too many are bad already."""
        self.num_images, self.seed, self.max_bad_fraction = num_images, seed, max_bad_fraction
        self.bad: set[int] = set()
        self.replaced_views = 0
        self._bad_array = np.zeros(0, dtype=np.int64)
        self.add(bad)

    def add(self, bad: Iterable[int], files: Sequence[str] = ()) -> None:
        """Takes note of bad images; BadImageError when their share passes max_bad_fraction."""
        self.bad.update(int(image) for image in bad)
        self._bad_array = np.array(sorted(self.bad), dtype=np.int64)
        for file in files:
            logger.warning("image %s cannot be read or decoded; others are shown in its place", file)
        self.refuse_too_many(len(self.bad), files)

    def refuse_too_many(self, bad: int, files: Sequence[str] = ()) -> None:
        """BadImageError when this many bad images, of all ranks, pass max_bad_fraction."""
        if bad > self.max_bad_fraction * self.num_images:
            named = f", the last of them {files[-1]}" if files else ""
            raise BadImageError(
                f"{bad} of {self.num_images} images cannot be read or decoded{named}: more than "
                f"data.max_bad_fraction {self.max_bad_fraction}; `deit-fast data scan` lists them all"
            )

    def take_replaced(self) -> int:
        """Views that were replaced since the last call."""
        replaced, self.replaced_views = self.replaced_views, 0
        return replaced

    def replace(self, epoch: int, views: np.ndarray, images: np.ndarray) -> np.ndarray:
        """The images to show; int64, same shape."""
        if not self.bad:
            return images
        shown, attempt = images.copy(), 0
        while (bad := np.isin(shown, self._bad_array)).any():
            draws = uniforms(self.seed, Stream.SUBSTITUTE, epoch, views[bad], 1, block=attempt)
            shown[bad] = (draws[:, 0] * self.num_images).astype(np.int64)
            attempt += 1
        return shown
