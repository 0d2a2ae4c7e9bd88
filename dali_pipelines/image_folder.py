"""An ImageFolder on disk: one folder per class; held as two arrays, so that a million paths stay small."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""As torchvision's ImageFolder takes them."""


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images with labels. paths: uint8, all file paths below `root` one after another, path i from offsets[i] on."""

    root: Path
    classes: tuple[str, ...]
    """Names in the order of the labels."""
    labels: np.ndarray
    """int64 [N]."""
    paths: np.ndarray
    """uint8 [total]."""
    offsets: np.ndarray
    """int64 [N + 1]."""
    bad: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64: images known to be unreadable (from a manifest)."""

    def __len__(self) -> int:
        return len(self.labels)

    def path_bytes(self, image: int) -> np.ndarray:
        """The file path as uint8, without a copy: what DALI's file reader takes."""
        return self.paths[self.offsets[image] : self.offsets[image + 1]]

    def path(self, image: int) -> str:
        """The file path."""
        return os.fsdecode(self.path_bytes(image).tobytes())


def scan_image_folder(root: str | Path) -> ImageFolder:
    """Lists `root`/CLASS/**/IMAGE in torchvision's order: classes sorted, files sorted within a class's folders.

    ValueError, naming the folder, when it is missing, holds no class folders, or a class holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"image folder {root} does not exist")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not classes:
        raise ValueError(f"image folder {root} holds no class folders; it needs one folder of images for each class")
    encoded: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _images_below(str(root / name))
        if not files:
            raise ValueError(f"class folder {root / name} holds no images ({', '.join(EXTENSIONS)})")
        encoded += files
        labels += [label] * len(files)
    offsets = np.cumsum([0] + [len(path) for path in encoded], dtype=np.int64)
    paths = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return ImageFolder(root, tuple(classes), np.array(labels, dtype=np.int64), paths, offsets)


def _images_below(folder: str) -> list[bytes]:
    """Paths of the images in a folder and the folders below it, in the order of sorted os.walk."""
    found = []
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        found += [os.fsencode(f"{parent}/{name}") for name in sorted(names) if name.lower().endswith(EXTENSIONS)]
    return found
