"""Images inside tar shards, read by their place in an index: shuffled over the whole set, without unpacking."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .byte_ranges import ByteRanges
from .image_files import no_images
from .image_set import Feeds
from .packed_text import PackedText
from .shard_index import ShardIndex


@dataclass(frozen=True, eq=False)
class Shards:
    """An ImageSet that feeds bytes of tar members."""

    files: ByteRanges
    index: ShardIndex
    bad: np.ndarray = field(default_factory=no_images)
    feeds: Feeds = field(default="bytes", init=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return self.index.classes

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.index.labels.astype(np.int64)

    @property
    def read_threads(self) -> int:
        """As many as the files bear."""
        return self.files.read_threads

    def __len__(self) -> int:
        return len(self.index)

    def name(self, image: int) -> str:
        """`shard.tar:member`."""
        return f"{self.files.address(self._file(image))}:{self.index.names.text(image)}"

    def identity(self, image: int) -> str:
        """Member and checksum: the same however many images a shard holds."""
        return f"{self.index.names.text(image)}\0{self.index.crc32[image]}"

    def feed(self, image: int) -> np.ndarray:
        """The member's bytes; OSError, naming the shard, when it is gone or cut short."""
        return self.files.read(self._file(image), int(self.index.offsets[image]), int(self.index.sizes[image]))

    def _file(self, image: int) -> str:
        return self.index.files[self.index.shards[image]]


@dataclass(frozen=True, eq=False)
class Objects:
    """An ImageSet of one object an image: a file list in an object store."""

    files: ByteRanges
    classes: tuple[str, ...]
    labels: np.ndarray
    """int64 [N]."""
    names: PackedText
    """Relative to the list."""
    bad: np.ndarray = field(default_factory=no_images)
    feeds: Feeds = field(default="bytes", init=False)

    @property
    def read_threads(self) -> int:
        """As many as the store bears."""
        return self.files.read_threads

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, image: int) -> str:
        """The object's URL."""
        return self.files.address(self.names.text(image))

    def identity(self, image: int) -> str:
        """The name alone: asking the store for sizes would cost a request each."""
        return self.names.text(image)

    def feed(self, image: int) -> np.ndarray:
        """The object's bytes; none for one that is missing, which is a bad image like an empty file."""
        try:
            return self.files.read(self.names.text(image))
        except FileNotFoundError:
            return np.zeros(0, dtype=np.uint8)
