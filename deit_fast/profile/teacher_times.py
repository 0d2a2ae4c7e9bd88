"""What the teacher costs in a step, and whether it would cost less in the precision that this device is good at."""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch

from deit_fast.precision import DTYPES, choose_precision
from deit_fast.teacher import Teacher

from .peaks import shortest_s
from .summary import mean_times, recorded_steps


def teacher_ms(ranks: list[dict[str, Any]]) -> float:
    """Mean of its own time: a span where it has a stream of its own, else its phase."""
    spans = [
        sum(end - begin for name, begin, end in step["spans"] if name == "teacher stream")
        for rank in ranks
        for step in recorded_steps(rank)
    ]
    return statistics.mean(spans) if any(spans) else statistics.mean(mean_times(rank)["teacher"] for rank in ranks)


def compare_precisions(teacher: Teacher, images: torch.Tensor) -> dict[str, Any]:
    """Times a teacher in fp32 against a copy of it in the device's own precision, on the same images.

    `faster_ms` is None where there is nothing to compare: the teacher is not in fp32, or the device prefers fp32.
    """
    name = choose_precision("auto", teacher.device)
    wanted = None if name == "fp32" else DTYPES[name]
    record: dict[str, Any] = {
        "dtype": str(teacher.autocast_dtype or torch.float32).removeprefix("torch."),
        "faster_dtype": None,
        "alone_ms": None,
        "faster_ms": None,
    }
    if teacher.autocast_dtype is not None or wanted is None:
        return record
    other = Teacher(
        copy.deepcopy(teacher.model), image_size_px=teacher.image_size_px, scale=teacher.scale, shift=teacher.shift,
        device=teacher.device, autocast_dtype=wanted, fold=False,
        layout="channels_last" if teacher.memory_format == torch.channels_last else "contiguous",
    )  # fmt: skip
    record["faster_dtype"] = str(wanted).removeprefix("torch.")
    record["alone_ms"] = 1e3 * shortest_s(lambda: teacher(images), teacher.device)
    record["faster_ms"] = 1e3 * shortest_s(lambda: other(images), teacher.device)
    return record
