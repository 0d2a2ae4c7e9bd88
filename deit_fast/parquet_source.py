"""Hugging Face's Parquet layout of imagenet-1k: a column `image` of bytes and path, and a column `label`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deit_fast.dali_pipelines.packed_text import PackedText

ROWS_AT_ONCE = 64
"""About 7 MB of ImageNet's files."""


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "--source parquet needs pyarrow, which is missing; install it by `pip install 'deit-fast[parquet]'`"
        ) from error
    return pyarrow.parquet


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """A PackSource of rows, in the order of the files and of the rows in them."""

    files: tuple[str, ...]
    ends: tuple[int, ...]
    """Rows up to the end of each file."""
    first: int
    """Row of image 0."""
    classes: tuple[str, ...]
    labels: np.ndarray
    """int64 [N]."""
    keys: PackedText

    def part(self, start: int, stop: int) -> ParquetSource:
        """As PackSource.part."""
        return replace(self, first=self.first + start, labels=self.labels[start:stop], keys=self.keys.take(start, stop))

    def encoded(self) -> Iterator[bytes]:
        """As PackSource.encoded; only the row groups that hold the images are read."""
        parquet = _parquet()
        first, last = self.first, self.first + len(self.labels)
        for file, end, start in zip(self.files, self.ends, (0, *self.ends), strict=False):
            if first < end and start < last:
                yield from _rows(parquet.ParquetFile(file), first - start, last - start)


def _rows(file: Any, first: int, last: int) -> Iterator[bytes]:
    """Images of rows first to last - 1; the bounds may lie outside the file."""
    row = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row + count > first and row < last:
            at = row
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=["image.bytes"]):
                images = batch.column(0)
                for i in range(max(0, first - at), min(len(images), last - at)):
                    yield images[i]["bytes"].as_py() or b""
                at += len(images)
        row += count


def open_parquet(root: Path, split: str) -> ParquetSource | None:
    """The rows of `root`[/data]/SPLIT-*.parquet (`validation` for val); None when there are none.

    ValueError, naming the file, for other columns, or images without a label.
    """
    prefixes = ("validation", "val") if split == "val" else (split,)
    files = sorted(
        file for folder in (root, root / "data") for name in prefixes for file in folder.glob(f"{name}-*.parquet")
    )
    if not files:
        return None
    parquet = _parquet()
    labels: list[np.ndarray] = []
    keys: list[bytes] = []
    classes: tuple[str, ...] | None = None
    for file in files:
        opened = parquet.ParquetFile(file)
        names = opened.schema_arrow.names
        if "image" not in names or "label" not in names:
            raise ValueError(f"{file} has columns {', '.join(names)}; image and label are needed")
        classes = classes or _class_names(opened.schema_arrow)
        table = opened.read(columns=["label", "image.path"])
        labels.append(table.column("label").to_numpy().astype(np.int64))
        keys += [_key(row, len(keys) + i) for i, row in enumerate(table.column("image").to_pylist())]
    together = np.concatenate(labels)
    if len(together) and together.min() < 0:
        raise ValueError(f"{files[0].parent} holds images without a label (-1), as the test split does")
    ends = tuple(np.cumsum([len(part) for part in labels]).tolist())
    classes = classes or tuple(str(label) for label in range(int(together.max(initial=-1)) + 1))
    return ParquetSource(tuple(map(str, files)), ends, 0, classes, together, PackedText.pack(keys))


def _class_names(schema: Any) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata gives to the labels."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    names = json.loads(metadata)["info"]["features"]["label"].get("names")
    return tuple(names) if names else None


def _key(image: dict[str, Any] | None, number: int) -> bytes:
    path = (image or {}).get("path")
    return os.fsencode(Path(path).stem if path else f"{number:08d}")
