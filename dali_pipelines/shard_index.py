"""The index of tar shards: where each image lies, its label and checksum; a safetensors file beside the shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .packed_text import PackedText
from .tensor_file import read_tensors, write_tensors

FORMAT = "deit_fast shards 1"


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Images of one or more shards."""

    classes: tuple[str, ...]
    files: tuple[str, ...]
    """Names of the shards, relative to the index."""
    file_sizes: tuple[int, ...]
    """Bytes of each shard."""
    sha256: tuple[str, ...]
    """Of each shard, in hexadecimal."""
    shards: np.ndarray
    """int32 [N]: position in `files`."""
    offsets: np.ndarray
    """int64 [N]: first byte of the image in its shard."""
    sizes: np.ndarray
    """int32 [N]: bytes."""
    labels: np.ndarray
    """int32 [N]."""
    crc32: np.ndarray
    """uint32 [N], of the image's bytes."""
    names: PackedText
    """Members of the tars."""

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def join(parts: Sequence[ShardIndex]) -> ShardIndex:
        """Shards after one another; all have the same classes."""
        before = np.cumsum([0] + [len(part.files) for part in parts])
        assert len({part.classes for part in parts}) == 1, "parts of different data sets"
        return ShardIndex(
            parts[0].classes,
            tuple(file for part in parts for file in part.files),
            tuple(size for part in parts for size in part.file_sizes),
            tuple(digest for part in parts for digest in part.sha256),
            np.concatenate([part.shards + np.int32(count) for part, count in zip(parts, before, strict=False)]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.crc32 for part in parts]),
            PackedText.join([part.names for part in parts]),
        )

    def to_bytes(self) -> bytes:
        """The file's content."""
        header = {
            "format": FORMAT,
            "classes": self.classes,
            "files": self.files,
            "file_sizes": self.file_sizes,
            "sha256": self.sha256,
        }
        tensors = {name: getattr(self, name) for name in ("shards", "offsets", "sizes", "labels", "crc32")}
        tensors |= {"names": self.names.characters, "name_offsets": self.names.offsets}
        return write_tensors(tensors, header)

    @staticmethod
    def from_bytes(data: bytes, source: str) -> ShardIndex:
        """ValueError, naming the source, for what is no such index."""
        tensors, header = read_tensors(data, FORMAT, source)
        return ShardIndex(
            classes=tuple(header["classes"]),
            files=tuple(header["files"]),
            file_sizes=tuple(header["file_sizes"]),
            sha256=tuple(header["sha256"]),
            names=PackedText(tensors["names"], tensors["name_offsets"]),
            **{name: tensors[name] for name in ("shards", "offsets", "sizes", "labels", "crc32")},
        )
