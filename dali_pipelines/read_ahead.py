"""Reads the images of coming batches in background threads: which they will be is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .image_set import ImageSet

BATCHES_AHEAD = 4
"""Beyond those that DALI itself prepares; 4 batches of 128 ImageNet files are 56 MB."""


class ReadAhead:
    """Feeds the batches first, first + 1, ... in turn."""

    def __init__(self, images: ImageSet, images_of: Callable[[int], np.ndarray], last: int) -> None:
        """images_of: batch -> images, int64 [B]; the last batch is last - 1."""
        self.images, self.images_of, self.last = images, images_of, last
        self._pool = ThreadPoolExecutor(images.read_threads, "read-ahead") if images.read_threads else None
        self._pending: dict[int, tuple[np.ndarray, list[Future[list[np.ndarray]]]]] = {}

    def take(self, batch: int) -> list[np.ndarray]:
        """What each image of the batch feeds to the graph; OSError where it could not be read."""
        if self._pool is None:
            return self._feed(self.images_of(batch))
        for ahead in range(batch, min(batch + 1 + BATCHES_AHEAD, self.last)):
            if ahead not in self._pending:
                self._pending[ahead] = self._start(self._pool, ahead)
        which, parts = self._pending.pop(batch)
        distinct = [data for part in parts for data in part.result()]
        return [distinct[i] for i in which]

    def _start(self, pool: ThreadPoolExecutor, batch: int) -> tuple[np.ndarray, list[Future[list[np.ndarray]]]]:
        """Each distinct image is read once, however many of its views are in the batch."""
        distinct, which = np.unique(self.images_of(batch), return_inverse=True)
        shares = np.array_split(distinct, min(self.images.read_threads, len(distinct)))
        return which, [pool.submit(self._feed, share) for share in shares]

    def _feed(self, images: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        return [self.images.feed(int(image)) for image in images]

    def close(self) -> None:
        """Gives up what was read ahead; nobody waits for it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pending.clear()
