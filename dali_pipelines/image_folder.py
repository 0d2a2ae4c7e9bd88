"""An ImageFolder on disk: one folder per class, listed in torchvision's order."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .image_files import ImageFiles
from .packed_text import PackedText

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""As torchvision's ImageFolder takes them."""


def scan_image_folder(root: str | Path) -> ImageFiles:
    """Lists `root`/CLASS/**/IMAGE in torchvision's order: classes sorted, files sorted within a class's folders.

    ValueError, naming the folder, when it is missing, holds no class folders, or a class holds no images.
    """
    return list_image_folder(root)[0]


def list_image_folder(root: str | Path) -> tuple[ImageFiles, list[bytes]]:
    """The images, and every folder that was looked into, relative to `root`; errors as for `scan_image_folder`."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"image folder {root} does not exist")
    classes = class_folders(root)
    if not classes:
        raise ValueError(f"image folder {root} holds no class folders; it needs one folder of images for each class")
    paths: list[bytes] = []
    labels: list[int] = []
    folders = [b"."]
    above = len(os.fsencode(root)) + 1
    for label, name in enumerate(classes):
        files, looked_into = _images_below(str(root / name))
        if not files:
            raise ValueError(f"class folder {root / name} holds no images ({', '.join(EXTENSIONS)})")
        paths += [path[above:] for path in files]
        folders += [path[above:] for path in looked_into]
        labels += [label] * len(files)
    return ImageFiles(root, classes, np.array(labels, dtype=np.int64), PackedText.pack(paths)), folders


def class_folders(root: Path) -> tuple[str, ...]:
    """The names of the folders in `root`, sorted; hidden ones too, as torchvision takes them."""
    with os.scandir(root) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def _images_below(folder: str) -> tuple[list[bytes], list[bytes]]:
    """Paths of the images in a folder and the folders below it, in the order of sorted os.walk; and those folders."""
    found, folders = [], []
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        folders.append(os.fsencode(parent))
        found += [os.fsencode(f"{parent}/{name}") for name in sorted(names) if name.lower().endswith(EXTENSIONS)]
    return found, folders
