"""What a loader needs of a data set, wherever its images lie: in a folder, in shards, in an object store."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

Feeds = Literal["path", "bytes"]
"""What a set hands to the graph for an image: the path of a file, which DALI's threads read, or its encoded bytes."""


class ImageSet(Protocol):
    """Encoded images with labels; an image is its number, and the same number means the same image in every process."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        ...

    @property
    def bad(self) -> np.ndarray:
        """int64: images known to be unreadable (found by `data scan`)."""
        ...

    @property
    def feeds(self) -> Feeds:
        """Which of the two `feed` gives."""
        ...

    @property
    def read_threads(self) -> int:
        """Threads in which `feed` is called ahead of need; 0 where it costs nothing."""
        ...

    def __len__(self) -> int: ...

    def name(self, image: int) -> str:
        """For a log line or an error: the file's path, `shard.tar:member`, or the object's address."""
        ...

    def identity(self, image: int) -> str:
        """The same for the same image wherever the set lies: its name within the set, and its size or checksum."""
        ...

    def feed(self, image: int) -> np.ndarray:
        """uint8 [n]: the path or the encoded bytes. Safe to call from several threads; OSError for what is unreadable.

        An image that is not there gives no bytes: it is bad, as an empty file is, and does not stop the others.
        """
        ...
