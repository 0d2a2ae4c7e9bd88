"""An index for WebDataset shards where they are: nothing is copied, only read once for the checksums."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deit_fast.dali_pipelines.byte_ranges import LocalFiles
from deit_fast.dali_pipelines.shard_index import ShardIndex
from deit_fast.dali_pipelines.tensor_file import replace_file

from .tar_source import TarSource
from .verify import file_sha256


def index_in_place(source: TarSource, root: Path, split: str, workers: int) -> Iterator[int]:
    """Writes `root`/SPLIT.index over the source's tars; gives the images of each tar as it is done."""
    files = LocalFiles("", source.files)
    sizes = [os.stat(file).st_size for file in source.files]  # noqa: PTH116
    crc32 = np.zeros(len(source.labels), dtype=np.uint32)

    def read(shard: int) -> str:
        for image in np.flatnonzero(source.shards == shard):
            data = files.read(source.files[shard], int(source.offsets[image]), int(source.sizes[image]))
            crc32[image] = zlib.crc32(data.data)
        return file_sha256(files, source.files[shard], sizes[shard])

    digests = []
    with ThreadPoolExecutor(workers, "index") as pool:
        for shard, digest in enumerate(pool.map(read, range(len(source.files)))):
            digests.append(digest)
            yield int((source.shards == shard).sum())
    index = ShardIndex(
        classes=source.classes,
        files=tuple(os.path.relpath(file, root) for file in source.files),
        file_sizes=tuple(sizes),
        sha256=tuple(digests),
        shards=source.shards,
        offsets=source.offsets,
        sizes=source.sizes.astype(np.int32),
        labels=source.labels.astype(np.int32),
        crc32=crc32,
        names=source.names,
    )
    replace_file(root / f"{split}.index", index.to_bytes())
