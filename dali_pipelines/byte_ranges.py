"""Parts of files, read into arrays: from a local disk by pread. Object stores do the same (object_store.py)."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

SPARE_DESCRIPTORS = 256
"""Open files that the rest of the process may need beside the shards."""


class ByteRanges(Protocol):
    """Files below a root, read by ranges of bytes, from any thread."""

    read_threads: int

    def read(self, name: str, start: int = 0, size: int | None = None) -> np.ndarray:
        """uint8 [size], to the end of the file without a size.

        FileNotFoundError when there is no such file; OSError, naming it, when it cannot be read or is too short.
        """
        ...

    def address(self, name: str) -> str:
        """The whole path or URL, for messages."""
        ...


class LocalFiles:
    """Reads by pread, and keeps the files open.

    Not by mmap: a page fault waits for the disk with Python's lock held, and a file cut short kills the process
    (SIGBUS) instead of raising. Both copy each byte once.
    """

    read_threads = 4

    def __init__(self, root: str | Path, files: Sequence[str] = ()) -> None:
        """files: those that will be read, to allow for as many open ones."""
        self.root = Path(root)
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = len(files) + SPARE_DESCRIPTORS
        if soft != resource.RLIM_INFINITY and soft < needed:
            allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def address(self, name: str) -> str:
        """The path."""
        return str(self.root / name)

    def _open(self, name: str) -> int:
        with self._lock:
            if name not in self._descriptors:
                self._descriptors[name] = os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[name]

    def read(self, name: str, start: int = 0, size: int | None = None) -> np.ndarray:
        """As ByteRanges.read."""
        descriptor = self._open(name)
        if size is None:
            size = os.fstat(descriptor).st_size - start
        data = np.empty(size, dtype=np.uint8)
        view, done = data.data, 0
        while done < size:
            count = os.preadv(descriptor, [view[done:]], start + done)
            if count == 0:
                raise OSError(
                    f"{self.address(name)} ends before byte {start + size:,}; `deit-fast data verify` checks it"
                )
            done += count
        return data
