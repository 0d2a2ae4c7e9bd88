"""Decodes every image of a set once, whole, and says which cannot be read and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types

from .decode import decode, read
from .image_set import ImageSet
from .operations import Node
from .read_ahead import ReadAhead
from .unreadable import unreadable_images

BATCH = 64
"""Images decoded together; of a batch with a bad one, each is decoded again alone."""


def scan_images(images: ImageSet, num_threads: int) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """For each batch in turn: how many images it had, and the bad ones with the reason; on `num_threads` cores."""
    batches = np.array_split(np.arange(len(images)), -(-len(images) // BATCH))
    done = 0
    while done < len(batches):
        reader = ReadAhead(images, batches[done:].__getitem__, len(batches) - done)
        pipeline = _decode_batches(images, reader, num_threads)
        try:
            for batch in batches[done:]:
                done += 1
                try:
                    pipeline.run()
                except RuntimeError as error:
                    bad = unreadable_images(images, batch.tolist())
                    if not bad:
                        raise error
                    yield len(batch), [(image, why_unreadable(images, image)) for image in bad]
                    break  # a pipeline that failed is not used again
                yield len(batch), []
        finally:
            reader.close()


def _decode_batches(images: ImageSet, reader: ReadAhead, num_threads: int) -> Pipeline:
    """Decodes, and gives only the shapes."""

    @pipeline_def(batch_size=BATCH, num_threads=num_threads, device_id=None, prefetch_queue_depth=2, exec_dynamic=True)
    def decode_all() -> Node:
        def source(info: Any) -> Any:
            if info.iteration >= reader.last:
                raise StopIteration
            return reader.take(info.iteration)

        fed = fn.external_source(source=source, batch=True, batch_info=True, dtype=types.UINT8, ndim=1)
        return decode(read(fed, images.feeds), "cpu").shape()

    return decode_all()


def why_unreadable(images: ImageSet, image: int) -> str:
    """What the first and last bytes of a bad image tell: missing, empty, GIF, truncated JPEG, no image, or damaged."""
    try:
        fed = images.feed(image).tobytes()
        data = fed if images.feeds == "bytes" else Path(images.name(image)).read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if not data:
        return "empty, or missing in the store" if images.feeds == "bytes" else "empty"
    if data.startswith(b"GIF8"):
        return "a GIF, which DALI does not decode"
    if data.startswith(b"\xff\xd8\xff"):
        return "a damaged JPEG" if data.rstrip(b"\0").endswith(b"\xff\xd9") else "a truncated JPEG"
    if data.startswith((b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF")):
        return "a damaged image"
    return "no image"
