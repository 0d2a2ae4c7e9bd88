"""The listing of an ImageFolder, kept in a file: a million names over a network take minutes to list again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .image_files import ImageFiles
from .packed_text import PackedText
from .tensor_file import read_tensors, replace_file, write_tensors

FORMAT = "deit_fast listing 1"
SETTLED_NS = 2_000_000_000
"""A folder that changed this shortly before it was listed may have changed again within the clock's grain (2 s on FAT
and old network file systems): its listing is not believed."""


def folder_times(root: Path, folders: PackedText) -> np.ndarray:
    """When each folder last got, lost or renamed an entry; int64 [N] in ns, -1 where it is gone."""
    times = np.full(len(folders), -1, dtype=np.int64)
    for i in range(len(folders)):
        try:
            times[i] = os.stat(os.path.join(root, folders.text(i))).st_mtime_ns  # noqa: PTH116, PTH118 - root is no text
        except OSError:
            continue
    return times


def write_listing(images: ImageFiles, folders: PackedText, listed_at_ns: int, file: Path) -> None:
    """Writes what list_image_folder gave; OSError where `file` cannot be written."""
    tensors = {
        "labels": images.labels.astype(np.int32),
        "paths": images.paths.characters,
        "path_offsets": images.paths.offsets,
        "folders": folders.characters,
        "folder_offsets": folders.offsets,
        "folder_times": folder_times(images.root, folders),
    }
    header = {"format": FORMAT, "classes": images.classes, "listed_at_ns": listed_at_ns}
    replace_file(file, write_tensors(tensors, header))


def read_listing(root: Path, file: Path) -> ImageFiles | None:
    """The images of `root` as listed in `file`; None when there is no listing, or a folder has changed since."""
    try:
        tensors, header = read_tensors(file.read_bytes(), FORMAT, str(file))
    except (OSError, ValueError):
        return None  # it is only a copy of what can be listed again
    folders, times = PackedText(tensors["folders"], tensors["folder_offsets"]), tensors["folder_times"]
    settled = times < header["listed_at_ns"] - SETTLED_NS
    if not settled.all() or not np.array_equal(folder_times(root, folders), times):
        return None
    classes = tuple(header["classes"])
    paths = PackedText(tensors["paths"], tensors["path_offsets"])
    return ImageFiles(root, classes, tensors["labels"].astype(np.int64), paths)
