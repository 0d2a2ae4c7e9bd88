"""Images that are files: two arrays of numbers and one of characters, so that a million of them stay small."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .image_set import Feeds
from .packed_text import PackedText


def no_images() -> np.ndarray:
    """An empty list of image numbers."""
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Files with labels; an ImageSet that feeds paths."""

    root: Path
    classes: tuple[str, ...]
    """Names in the order of the labels."""
    labels: np.ndarray
    """int64 [N]."""
    paths: PackedText
    """Below `root`, or absolute."""
    bad: np.ndarray = field(default_factory=no_images)
    """int64: images known to be unreadable."""

    feeds: Feeds = field(default="path", init=False)
    read_threads: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, image: int) -> str:
        """The file path."""
        return os.path.join(self.root, self.paths.text(image))  # noqa: PTH118 - a Path would cost 5 us an image

    name = path

    def identity(self, image: int) -> str:
        """Path as listed, and size in bytes (-1 for a file that is gone)."""
        path = Path(self.path(image))
        return f"{self.paths.text(image)}\0{path.stat().st_size if path.exists() else -1}"

    def feed(self, image: int) -> np.ndarray:
        """The file path as uint8: what DALI's file reader takes."""
        return np.frombuffer(os.fsencode(self.path(image)), dtype=np.uint8)
