"""Images inside tars, packed from where they lie: WebDataset shards, and the ground for ImageNet's own tars."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit_fast.dali_pipelines.byte_ranges import LocalFiles
from deit_fast.dali_pipelines.packed_text import PackedText

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")


class Member(NamedTuple):
    """An image in a tar: file is a position in the source's `files`; start and size in bytes."""

    file: int
    start: int
    size: int
    label: int
    key: bytes
    name: bytes


@dataclass(frozen=True, eq=False)
class TarSource:
    """A PackSource of members of uncompressed tars."""

    classes: tuple[str, ...]
    files: tuple[str, ...]
    shards: np.ndarray
    """int32 [N]: position in `files`."""
    offsets: np.ndarray
    """int64 [N]."""
    sizes: np.ndarray
    """int64 [N]."""
    labels: np.ndarray
    """int64 [N]."""
    keys: PackedText
    names: PackedText
    """Members, with their suffix."""

    @staticmethod
    def of(classes: tuple[str, ...], files: tuple[str, ...], members: list[Member]) -> TarSource:
        """From a list of its members."""
        numbers = np.array([member[:4] for member in members], dtype=np.int64).reshape(-1, 4)
        shards, offsets, sizes, labels = np.ascontiguousarray(numbers.T)
        keys, names = [member.key for member in members], [member.name for member in members]
        return TarSource(
            classes,
            files,
            shards.astype(np.int32),
            offsets,
            sizes,
            labels,
            PackedText.pack(keys),
            PackedText.pack(names),
        )

    def part(self, start: int, stop: int) -> TarSource:
        """As PackSource.part."""
        arrays = {name: getattr(self, name)[start:stop] for name in ("shards", "offsets", "sizes", "labels")}
        return replace(self, **arrays, keys=self.keys.take(start, stop), names=self.names.take(start, stop))

    def encoded(self) -> Iterator[bytes]:
        """As PackSource.encoded."""
        tars = LocalFiles("", self.files)
        for shard, start, size in zip(self.shards, self.offsets, self.sizes, strict=True):
            yield tars.read(self.files[shard], int(start), int(size)).tobytes()


def split_key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key goes up to the first dot of the last part, the extension is the rest, lower case."""
    match = re.fullmatch(r"((?:.*/|)[^./]+)\.([^/]*)", name, re.DOTALL)
    return (match[1], match[2].lower()) if match else (name, "")


def open_webdataset(root: Path, split: str) -> TarSource | None:
    """The images of WebDataset tars: `root`/SPLIT/*.tar, or `root`/*.tar with the split (or `validation`) in the name.

    Each needs a member KEY.cls with its label, a number; names of the classes may stand in `root`/classes.txt.
    None without such tars; ValueError, naming the member, for an image without a label.
    """
    words = (split, "validation") if split == "val" else (split,)
    tars = sorted((root / split).glob("*.tar"))
    tars = tars or sorted(tar for tar in root.glob("*.tar") if any(word in tar.name for word in words))
    if not tars:
        return None
    members: list[Member] = []
    for number, tar in enumerate(tars):
        members += _webdataset_members(tar, number)
    names = root / "classes.txt"
    if names.is_file():
        classes = tuple(names.read_text().splitlines())
    else:
        classes = tuple(str(label) for label in range(max((member.label for member in members), default=-1) + 1))
    wrong = next((member for member in members if member.label >= len(classes)), None)
    if wrong:
        raise ValueError(f"{os.fsdecode(wrong.name)} has label {wrong.label}, but {names} names {len(classes)} classes")
    return TarSource.of(classes, tuple(map(str, tars)), members)


def _webdataset_members(tar: Path, number: int) -> list[Member]:
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    files = LocalFiles("")
    for info, start in tar_members(tar):
        key, extension = split_key(info.name)
        if extension in IMAGE_SUFFIXES:
            images[key] = Member(number, start, info.size, -1, os.fsencode(key), os.fsencode(info.name))
        elif extension == "cls":
            text = files.read(str(tar), start, info.size).tobytes().strip()
            if not text.isdigit():
                raise ValueError(f"{tar}:{info.name} should hold a label, a number from 0 on, but holds {text[:20]!r}")
            labels[key] = int(text)
    for key in images:
        if key not in labels:
            raise ValueError(f"{tar}:{os.fsdecode(images[key].name)} has no label: there is no member {key}.cls")
    return [member._replace(label=labels[key]) for key, member in images.items()]


def tar_members(tar: Path, file: object = None) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The regular files of a tar with their first byte in it; ValueError, naming it, for what is no whole tar.

    file: an open file to read from, where `tar` is only the name for messages.
    """
    try:
        with tarfile.open(None if file else tar, mode="r:", fileobj=file) as members:  # type: ignore[call-overload]
            for info in members:
                if info.isreg():
                    yield info, info.offset_data
    except tarfile.TarError as error:
        raise ValueError(f"{tar} is not a whole uncompressed tar: {error}") from error
