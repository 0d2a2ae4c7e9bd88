"""Packs a source into tar shards with an index: whole shards are kept, a broken one is done again.

OUTPUT/train-00000.tar ...      WebDataset: KEY.jpg and KEY.cls for each image
OUTPUT/.parts/train-00000.index written after its shard: this shard is done
OUTPUT/train.index              written when all shards are there, by whichever part finishes last
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deit_fast.dali_pipelines.packed_text import PackedText
from deit_fast.dali_pipelines.shard_index import ShardIndex
from deit_fast.dali_pipelines.tensor_file import replace_file

from .pack_source import PackSource
from .processes import run_in_processes
from .shrink import Undecodable, shrink

SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"RIFF", "webp"),
)


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of the shards."""

    images_per_shard: int = 10_000
    shrink_px: int | None = None
    quality: int = 90


class ShardTask(NamedTuple):
    """One shard to write."""

    source: PackSource
    output: Path
    split: str
    number: int
    options: PackOptions


class ShardDone(NamedTuple):
    """A written shard: images, those that were made smaller, and those that could not be decoded to do so."""

    number: int
    images: int
    shrunk: int
    undecodable: int


def shard_file(output: Path, split: str, number: int) -> Path:
    """The shard's tar."""
    return output / f"{split}-{number:05d}.tar"


def record_file(output: Path, split: str, number: int) -> Path:
    """The index of one shard, written after it."""
    return output / ".parts" / f"{split}-{number:05d}.index"


def pack_split(
    source: PackSource, output: Path, split: str, options: PackOptions, part: tuple[int, int], workers: int
) -> Iterator[ShardDone]:
    """Writes this part's shards that are not there yet; part (i, n), i from 1, takes each n-th shard.

    ValueError when `output` holds shards of another packing.
    """
    (output / ".parts").mkdir(parents=True, exist_ok=True)
    _agree_on_plan(source, output, split, options)
    tasks = []
    for number in range(part[0] - 1, num_shards(source, options), part[1]):
        if not is_done(output, split, number):
            start = number * options.images_per_shard
            images = source.part(start, min(start + options.images_per_shard, len(source.labels)))
            tasks.append(ShardTask(images, output, split, number, options))
    yield from run_in_processes(write_shard, tasks, workers)


def num_shards(source: PackSource, options: PackOptions) -> int:
    """All shards of the split, of all parts."""
    return -(-len(source.labels) // options.images_per_shard)


def is_done(output: Path, split: str, number: int) -> bool:
    """Whether a shard is whole: its record is written last."""
    return record_file(output, split, number).is_file() and shard_file(output, split, number).is_file()


def _agree_on_plan(source: PackSource, output: Path, split: str, options: PackOptions) -> None:
    """All parts and all attempts have to cut the same images at the same places."""
    digest = hashlib.sha256(source.labels.tobytes())
    digest.update(source.keys.characters.tobytes())
    plan = {"images": len(source.labels), "digest": digest.hexdigest(), **asdict(options)}
    file = output / ".parts" / f"{split}.plan.json"
    if not file.is_file():
        replace_file(file, json.dumps(plan).encode())
        return
    before = json.loads(file.read_text())
    for key, value in plan.items():
        if before.get(key) != value:
            raise ValueError(
                f"--output {output} holds shards of another packing ({key} {before.get(key)}, now {value}); "
                "go on with the same input and options, or choose another --output"
            )


def join_parts(source: PackSource, output: Path, split: str, options: PackOptions) -> list[int]:
    """Writes SPLIT.index when all shards are there; returns the numbers of those that are missing."""
    numbers = range(num_shards(source, options))
    missing = [number for number in numbers if not is_done(output, split, number)]
    if not missing:
        records = [record_file(output, split, number) for number in numbers]
        index = ShardIndex.join([ShardIndex.from_bytes(record.read_bytes(), str(record)) for record in records])
        replace_file(output / f"{split}.index", index.to_bytes())
        replace_file(output / "classes.txt", "".join(f"{name}\n" for name in index.classes).encode(errors="replace"))
    return missing


class _HashedFile:
    """A file that is only written to, and hashed on the way."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def write_shard(task: ShardTask) -> ShardDone:
    """Writes one shard under another name, renames it, and then writes its record."""
    final = shard_file(task.output, task.split, task.number)
    partial = final.with_name(final.name + ".partial")
    shrunk = undecodable = 0
    rows: list[tuple[int, int, int]] = []
    names: list[bytes] = []
    keys: set[str] = set()
    with partial.open("wb") as raw:
        file = _HashedFile(raw)
        with tarfile.open(fileobj=file, mode="w|", bufsize=1 << 20, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            for i, encoded in enumerate(task.source.encoded()):
                content = encoded
                if task.options.shrink_px is not None:
                    try:
                        content = shrink(encoded, task.options.shrink_px, task.options.quality)
                    except Undecodable:
                        undecodable += 1
                    shrunk += content is not encoded
                key = unused_key(task.source.keys.text(i), keys)
                name = f"{key}.{suffix_of(content)}"
                rows.append((_add(tar, name, content), len(content), zlib.crc32(content)))
                names.append(os.fsencode(name))
                _add(tar, f"{key}.cls", str(int(task.source.labels[i])).encode())
        raw.flush()
        os.fsync(raw.fileno())
    partial.replace(final)
    offsets, sizes, crc32 = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    index = ShardIndex(
        classes=task.source.classes,
        files=(final.name,),
        file_sizes=(file.size,),
        sha256=(file.digest.hexdigest(),),
        shards=np.zeros(len(rows), dtype=np.int32),
        offsets=offsets,
        sizes=sizes.astype(np.int32),
        labels=task.source.labels.astype(np.int32),
        crc32=crc32.astype(np.uint32),
        names=PackedText.pack(names),
    )
    replace_file(record_file(task.output, task.split, task.number), index.to_bytes())
    return ShardDone(task.number, len(rows), shrunk, undecodable)


def unused_key(wanted: str, used: set[str]) -> str:
    """A key that no other image of the shard has, without dots in its last part: they would end it (WebDataset)."""
    folder, slash, last = wanted.rpartition("/")
    key = base = f"{folder}{slash}{last.replace('.', '_') or '_'}"
    number = 1
    while key in used:
        number += 1
        key = f"{base}~{number}"
    used.add(key)
    return key


def suffix_of(encoded: bytes) -> str:
    """By the first bytes, since names lie; jpg for what is unknown."""
    return next((suffix for signature, suffix in SIGNATURES if encoded.startswith(signature)), "jpg")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a member with nothing of this machine or hour in it; returns its first byte in the tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
    blocks = -(-len(content) // tarfile.BLOCKSIZE)
    return tar.offset - blocks * tarfile.BLOCKSIZE
