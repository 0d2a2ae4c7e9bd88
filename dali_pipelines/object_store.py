"""Objects of a store that fsspec knows (s3://, gs://, http://, memory://, ...), read by ranges with retries."""

from __future__ import annotations

import logging
import random
import time

import numpy as np

logger = logging.getLogger(__name__)

GIVE_UP = (FileNotFoundError, PermissionError, NotImplementedError)
"""What another attempt does not mend."""


class ObjectStoreError(OSError):
    """An object that could not be read however often it was tried."""


def is_url(path: str) -> bool:
    """Whether a data.path names an object store."""
    return "://" in path


class ObjectStore:
    """ByteRanges over HTTP: a request takes long and many fit in at once, so many threads read ahead."""

    read_threads = 32

    def __init__(self, url: str, *, attempts: int = 7, first_delay_seconds: float = 0.25) -> None:
        """The delay doubles with each failed attempt: 7 attempts span 8 to 16 s.

        ValueError, saying what to install, for a store that fsspec cannot open here.
        """
        self.url, self.attempts, self.first_delay_seconds = url.rstrip("/"), attempts, first_delay_seconds
        try:
            from fsspec.core import url_to_fs

            self._store, self._prefix = url_to_fs(self.url)
        except ImportError as error:
            raise ValueError(
                f"data.path {url} needs a package that is missing ({error}); install it by "
                "`pip install 'deit-fast[object-store]'`, or the fsspec package of another store by its name"
            ) from error
        except ValueError as error:
            raise ValueError(f"data.path {url} is of no store that fsspec knows: {error}") from error

    def address(self, name: str) -> str:
        """The object's URL."""
        return f"{self.url}/{name}"

    def read(self, name: str, start: int = 0, size: int | None = None) -> np.ndarray:
        """As ByteRanges.read; ObjectStoreError, naming the object, when all attempts failed."""
        end = None if size is None else start + size
        for attempt in range(1, self.attempts + 1):
            try:
                data = self._store.cat_file(f"{self._prefix}/{name}", start=start or None, end=end)
                if size is not None and len(data) != size:
                    raise OSError(f"got {len(data):,} bytes instead of {size:,}")
                return np.frombuffer(data, dtype=np.uint8)
            except GIVE_UP:
                raise
            except Exception as error:  # noqa: BLE001 - each store has its own kinds of errors
                if attempt == self.attempts:
                    wanted = self.address(name) + (f", bytes {start:,} to {end:,}," if end is not None else "")
                    raise ObjectStoreError(
                        f"{wanted} could not be read in {attempt} attempts; the last said: {error or repr(error)}"
                    ) from error
                logger.info("reading %s failed (%s); trying again", self.address(name), error)
                # half of the delay is random, or all ranks would ask again at the same moment
                time.sleep(self.first_delay_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1))
        raise AssertionError("unreachable")
