"""What `data pack` reads from: a protocol, an ImageFolder as the plainest case, and finding out which it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from deit_fast.dali_pipelines.image_files import ImageFiles
from deit_fast.dali_pipelines.image_folder import scan_image_folder
from deit_fast.dali_pipelines.packed_text import PackedText

Kind = Literal["auto", "imagefolder", "imagenet-tar", "parquet", "webdataset"]
SPLITS = ("train", "val")


class PackSource(Protocol):
    """Encoded images with labels, in an order that does not change from call to call."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        ...

    @property
    def keys(self) -> PackedText:
        """Each image's name without its suffix, such as `n01440764/n01440764_10026`."""
        ...

    def part(self, start: int, stop: int) -> PackSource:
        """Images start to stop - 1, small enough to be sent to another process."""
        ...

    def encoded(self) -> Iterator[bytes]:
        """The images' bytes in order; OSError, naming the file, for what cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class FolderSource:
    """The images of an ImageFolder."""

    images: ImageFiles

    @property
    def classes(self) -> tuple[str, ...]:
        """As ImageFiles has them."""
        return self.images.classes

    @property
    def labels(self) -> np.ndarray:
        """As ImageFiles has them."""
        return self.images.labels

    @cached_property
    def keys(self) -> PackedText:
        """Paths below the folder, without their suffix."""
        paths = self.images.paths
        return PackedText.pack([paths.bytes(i).tobytes().rpartition(b".")[0] for i in range(len(paths))])

    def part(self, start: int, stop: int) -> FolderSource:
        """As PackSource.part."""
        labels, paths = self.images.labels[start:stop], self.images.paths.take(start, stop)
        return FolderSource(replace(self.images, labels=labels, paths=paths))

    def encoded(self) -> Iterator[bytes]:
        """As PackSource.encoded."""
        for image in range(len(self.images)):
            yield Path(self.images.path(image)).read_bytes()


def detect_kind(path: Path) -> Kind:
    """What lies at `path`; ValueError, saying what was looked for."""
    if path.is_file() and path.suffix == ".tar" and "ILSVRC" in path.name:
        return "imagenet-tar"
    if path.is_dir():
        folders = [path, path / "data", *(path / split for split in SPLITS)]
        if any(path.glob("ILSVRC2012_img_*.tar")):
            return "imagenet-tar"
        if any(next(folder.glob("*.parquet"), None) for folder in folders):
            return "parquet"
        if any(next(folder.glob("*.tar"), None) for folder in folders):
            return "webdataset"
        if any(entry.is_dir() for entry in path.iterdir()):
            return "imagefolder"
    raise ValueError(
        f"--input {path} is nothing that can be packed: it has to be a folder of class folders (or with train/ and "
        "val/ of them), or to hold ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar, *.parquet or *.tar shards"
    )


def open_sources(kind: Kind, path: Path, split: str | None, devkit: Path | None) -> dict[str, PackSource]:
    """The sources by split: the one asked for, or all of train and val that are there; ValueError for none."""
    if not path.exists():
        raise ValueError(f"--input {path} does not exist")
    if kind == "auto":
        kind = detect_kind(path)
    found: dict[str, PackSource] = {}
    for name in SPLITS if split is None else (split,):
        source = _open_one(kind, path, name, devkit, asked=split is not None)
        if source is not None:
            found[name] = source
    if not found:
        wanted = " and ".join(SPLITS if split is None else (split,))
        raise ValueError(
            f"--input {path} holds no images of {wanted} as --source {kind}; --split NAME says which split it is"
        )
    return found


def _open_one(kind: Kind, path: Path, split: str, devkit: Path | None, *, asked: bool) -> PackSource | None:
    if kind == "imagefolder":
        if (path / split).is_dir():
            return FolderSource(scan_image_folder(path / split))
        return FolderSource(scan_image_folder(path)) if asked else None
    if kind == "parquet":
        from .parquet_source import open_parquet

        return open_parquet(path, split)
    if kind == "webdataset":
        from .tar_source import open_webdataset

        return open_webdataset(path, split)
    from .imagenet_tar import open_imagenet_tar

    return open_imagenet_tar(path, split, devkit)
