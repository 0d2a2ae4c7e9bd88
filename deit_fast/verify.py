"""Reads shards again and holds them against the checksums of their index."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from deit_fast.dali_pipelines.byte_ranges import ByteRanges
from deit_fast.dali_pipelines.shard_index import ShardIndex

CHUNK_BYTES = 8 << 20
FIRST_NAMED = 5
"""Members named of a shard that differs."""


def file_sha256(files: ByteRanges, name: str, size: int) -> str:
    """The digest of a file's first `size` bytes, read in chunks; OSError when it is shorter."""
    digest = hashlib.sha256()
    for start in range(0, size, CHUNK_BYTES):
        digest.update(files.read(name, start, min(CHUNK_BYTES, size - start)).data)
    return digest.hexdigest()


def verify_shards(files: ByteRanges, index: ShardIndex, workers: int) -> Iterator[str | None]:
    """For each shard, in the order in which they are done, None or a line that says what differs.

    Threads do: reading and hashing let go of Python's lock.
    """
    with ThreadPoolExecutor(workers, "verify") as pool:
        for done in as_completed([pool.submit(_verify, files, index, shard) for shard in range(len(index.files))]):
            yield done.result()


def _verify(files: ByteRanges, index: ShardIndex, shard: int) -> str | None:
    name = index.files[shard]
    try:
        if file_sha256(files, name, index.file_sizes[shard]) == index.sha256[shard]:
            return None
    except OSError as error:
        return f"{files.address(name)}: {error}"
    differing = []
    for image in np.flatnonzero(index.shards == shard):
        data = files.read(name, int(index.offsets[image]), int(index.sizes[image]))
        if zlib.crc32(data.data) != index.crc32[image]:
            differing.append(index.names.text(int(image)))
    if not differing:
        return f"{files.address(name)}: all images are whole, but bytes between them differ from the index"
    more = f" and {len(differing) - FIRST_NAMED} more" if len(differing) > FIRST_NAMED else ""
    return f"{files.address(name)}: {', '.join(differing[:FIRST_NAMED])}{more} differ from the index"
