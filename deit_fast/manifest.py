"""What is known of a data set from before, kept beside it: the listing of its folders, and its bad images."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from deit_fast.dali_pipelines.image_files import ImageFiles
from deit_fast.dali_pipelines.image_folder import list_image_folder
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.listing_file import read_listing, write_listing
from deit_fast.dali_pipelines.object_store import is_url
from deit_fast.dali_pipelines.packed_text import PackedText
from deit_fast.dali_pipelines.tensor_file import replace_file

from .config import DataConfig

logger = logging.getLogger(__name__)

KEPT_FROM_IMAGES = 50_000
"""Smaller folders are listed in 0.06 CPU-s on a local disk, and leave no file behind."""


def manifest_folders(data: DataConfig) -> list[Path]:
    """Where manifests may lie, in the order of search: data.manifest; or beside the data, then in the user's cache."""
    if data.manifest:
        return [Path(data.manifest)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit_fast"
    if is_url(data.path):
        return [cache / hashlib.sha256(data.path.rstrip("/").encode()).hexdigest()[:16]]
    root = Path(data.path).resolve()
    return [root / ".deit_fast", cache / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]]


def _write_in_first(folders: list[Path], write: Callable[[Path], object]) -> Path | None:
    """Calls `write` with the first folder in which it does not fail; None, with a warning, when all fail."""
    failure: OSError | None = None
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)
        except OSError as error:  # read-only or full: the next place may not be
            failure = error
        else:
            return folder
    logger.warning("no manifest could be kept (%s); --data.manifest names a folder for it", failure)
    return None


def open_folder(data: DataConfig, split: str, *, keep: bool = False) -> ImageFiles:
    """The ImageFolder data.path/split, from its kept listing where that still holds.

    keep: write the listing however small the folder is. ValueError as of list_image_folder.
    """
    root, name = Path(data.path) / split, f"{split}.listing"
    for folder in manifest_folders(data):
        listed = read_listing(root, folder / name)
        if listed is not None:
            return listed
    listed_at_ns = time.time_ns()  # what is added from here on is newer, and so makes the listing stale
    images, found = list_image_folder(root)
    if keep or len(images) >= KEPT_FROM_IMAGES:
        folders = PackedText.pack(found)
        _write_in_first(
            manifest_folders(data), lambda folder: write_listing(images, folders, listed_at_ns, folder / name)
        )
    return images


def name_in_data(data: DataConfig, images: ImageSet, image: int) -> str:
    """An image's name below data.path, which stays when the data set is moved."""
    above = data.path.rstrip("/") if is_url(data.path) else str(Path(data.path))
    return images.name(image).removeprefix(above + "/")


def write_bad(data: DataConfig, split: str, images: ImageSet, bad: Iterable[tuple[int, str]]) -> Path | None:
    """Writes `SPLIT.bad.jsonl`, a line for each bad image with its reason; returns the file, None if nowhere."""
    lines = []
    for image, reason in bad:
        lines.append(json.dumps({"image": image, "name": name_in_data(data, images, image), "reason": reason}))
    content = "".join(line + "\n" for line in lines).encode()
    name = f"{split}.bad.jsonl"
    folder = _write_in_first(manifest_folders(data), lambda folder: replace_file(folder / name, content))
    return folder / name if folder else None


def read_bad(data: DataConfig, split: str, images: ImageSet) -> np.ndarray:
    """The bad images that `data scan` found; int64. None, with a warning, when the data set has changed since."""
    for folder in manifest_folders(data):
        file = folder / f"{split}.bad.jsonl"
        if not file.is_file():
            continue
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        bad = [
            row["image"]
            for row in rows
            if 0 <= row["image"] < len(images) and name_in_data(data, images, row["image"]) == row["name"]
        ]
        if len(bad) < len(rows):
            logger.warning("%s is of another state of the data set; run `deit-fast data scan` again", file)
        return np.array(sorted(bad), dtype=np.int64)
    return np.zeros(0, dtype=np.int64)
