"""After a pipeline failed: which of the batch's files cannot be read. DALI names some, and only numbers others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from .operations import Node


class BadImageError(ValueError):
    """A file of the data set that cannot be read or decoded."""


def can_be_read(path: str) -> bool:
    """Whether DALI reads and decodes the file, tried alone on the CPU."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def one() -> Node:
        encoded = fn.io.file.read(types.Constant(np.frombuffer(path.encode(), dtype=np.uint8)))
        return fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)

    try:
        one().run()
    except RuntimeError:
        return False
    return True


def find_unreadable(paths: Sequence[str], error: RuntimeError) -> NoReturn:
    """Raises BadImageError with the first file of the batch that fails alone, else the pipeline's own error."""
    for path in paths:
        if not can_be_read(path):
            raise BadImageError(f"image {path} cannot be read or decoded; repair it or take it away") from error
    raise error
