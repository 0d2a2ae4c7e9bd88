"""Finds out what lies at data.path and opens it: shards, a file list or class folders, here or in an object store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from deit_fast.dali_pipelines.byte_ranges import ByteRanges, LocalFiles
from deit_fast.dali_pipelines.file_list import parse_file_list
from deit_fast.dali_pipelines.image_files import ImageFiles
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.object_store import ObjectStore, is_url
from deit_fast.dali_pipelines.shard_index import ShardIndex
from deit_fast.dali_pipelines.shards import Objects, Shards

from .config import DataConfig
from .manifest import open_folder, read_bad


def open_images(data: DataConfig, split: str, *, keep_listing: bool = False) -> ImageSet:
    """The images of `train` or `val`, with those that a scan found bad. What is looked for, in this order:

    `SPLIT.index` or `SPLIT/SPLIT.index`, shards; `SPLIT.txt`, a file list; `SPLIT/` with class folders (not in an
    object store, which cannot list a million objects in reasonable time). ValueError, naming what was looked for.
    keep_listing: write the listing of the class folders however few images they hold.
    """
    if not data.path:
        raise ValueError(f"data.path is not set; give the folder that holds {split}/ with --data.path DIR")
    if not is_url(data.path) and not Path(data.path).is_dir():
        raise ValueError(f"data.path {data.path} does not exist or is not a folder")
    images: Any = _open_index(data, split) or _open_list(data, split)
    if images is None:
        _need_folder(data, split)
        images = open_folder(data, split, keep=keep_listing)
    return replace(images, bad=read_bad(data, split, images))


def _need_folder(data: DataConfig, split: str) -> None:
    looked_for = f"{split}.index and {split}/{split}.index (shards) nor {split}.txt (a file list)"
    if is_url(data.path):
        raise ValueError(f"data.path {data.path} holds neither {looked_for}; `deit-fast data pack` makes shards")
    folder = Path(data.path) / split
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist, and data.path holds neither {looked_for}")
    if any(folder.glob("*.tar")):
        raise ValueError(
            f"{folder} holds tar shards without an index; make one in place by "
            f"`deit-fast data pack --input {data.path} --split {split} --index-only`"
        )


def open_files(root: str) -> ByteRanges:
    """Files below a folder or a URL; ValueError when the URL's package is missing."""
    return ObjectStore(root) if is_url(root) else LocalFiles(root)


def _read(data: DataConfig, name: str) -> bytes | None:
    """The content of a small file below data.path; None when it is not there."""
    try:
        return open_files(data.path).read(name).tobytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _open_index(data: DataConfig, split: str) -> Shards | None:
    found = find_index(data, split)
    return None if found is None else open_shards(*found)


def find_index(data: DataConfig, split: str) -> tuple[str, ShardIndex] | None:
    """The folder or URL of the shards, and their index; None where there is none."""
    for folder in ("", f"/{split}"):
        root = data.path.rstrip("/") + folder
        content = _read(replace(data, path=root), f"{split}.index")
        if content is not None:
            return root, ShardIndex.from_bytes(content, f"{root}/{split}.index")
    return None


def open_shards(root: str, index: ShardIndex) -> Shards:
    """The shards of an index below `root`; ValueError, naming the shard, when a local one is missing or cut short."""
    if is_url(root):
        return Shards(ObjectStore(root), index)
    for name, size in zip(index.files, index.file_sizes, strict=True):
        file = Path(root) / name
        if not file.is_file():
            raise ValueError(f"shard {file} is missing; copy it again, or pack it again by `deit-fast data pack`")
        if file.stat().st_size != size:
            raise ValueError(
                f"shard {file} has {file.stat().st_size:,} bytes, its index says {size:,}; copy it again, or pack it "
                "again by `deit-fast data pack`"
            )
    return Shards(LocalFiles(root, index.files), index)


def _open_list(data: DataConfig, split: str) -> ImageFiles | Objects | None:
    """The list data.path/SPLIT.txt; names of classes, in the order of labels, may stand in data.path/classes.txt."""
    content, names = _read(data, f"{split}.txt"), _read(data, "classes.txt")
    if content is None:
        return None
    class_names = names.decode().split("\n") if names is not None else None
    if class_names and not class_names[-1]:
        class_names.pop()
    classes, labels, paths = parse_file_list(content, f"{data.path.rstrip('/')}/{split}.txt", class_names)
    if is_url(data.path):
        return Objects(ObjectStore(data.path), classes, labels, paths)
    return ImageFiles(Path(data.path), classes, labels, paths)
