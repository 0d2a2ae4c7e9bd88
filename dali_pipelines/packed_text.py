"""A million short texts as two arrays: a list of them would cost Python ten times the memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class PackedText:
    """Texts one after another; text i from offsets[i] on. They are bytes: file names need not be UTF-8."""

    characters: np.ndarray
    """uint8 [total]."""
    offsets: np.ndarray
    """int64 [N + 1]."""

    @staticmethod
    def pack(texts: Sequence[bytes]) -> PackedText:
        """From a list."""
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)), out=offsets[1:])
        return PackedText(np.frombuffer(b"".join(texts), dtype=np.uint8), offsets)

    @staticmethod
    def join(parts: Sequence[PackedText]) -> PackedText:
        """The texts of all parts in order."""
        ends = np.cumsum([0] + [len(part.characters) for part in parts])
        offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends, strict=False)]
        return PackedText(np.concatenate([part.characters for part in parts]), np.concatenate([*offsets, ends[-1:]]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def bytes(self, i: int) -> np.ndarray:
        """Text i as uint8, without a copy."""
        return self.characters[self.offsets[i] : self.offsets[i + 1]]

    def text(self, i: int) -> str:
        """Text i as Python names files."""
        return os.fsdecode(self.bytes(i).tobytes())

    def take(self, start: int, stop: int) -> PackedText:
        """Texts start to stop - 1, sharing memory."""
        offsets = self.offsets[start : stop + 1]
        return PackedText(self.characters[offsets[0] : offsets[-1]], offsets - offsets[0])
