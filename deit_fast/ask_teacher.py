"""How a step gets the teacher's answer: at once, on a CUDA stream of its own, or from labels computed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Teacher = Callable[[Tensor], Tensor | None]
"""Mixed images [B, 3, H, W] -> logits [B, C]; None without distillation."""
Answer = Callable[[slice], Tensor | None]
"""The part of the batch -> the teacher's answer for it, ready on the current stream."""
Ask = Callable[[Tensor, Tensor, int], Answer]
"""(mixed images, views, step) -> the answer, which may still be under way."""


@runtime_checkable
class LabelReader(Protocol):
    """Labels computed beforehand; see label_cache.py."""

    def read(self, step: int, views: Tensor) -> Tensor:
        """The teacher's answer for these views, on the CPU."""


def build_ask(teacher: Teacher | LabelReader, device: torch.device) -> Ask:
    """The way that fits this teacher on this device."""
    if isinstance(teacher, LabelReader):
        return ask_cache(teacher, device)
    return ask_on_own_stream(teacher, device) if device.type == "cuda" else ask_at_once(teacher)


def ask_at_once(teacher: Teacher) -> Ask:
    """The teacher runs before the student."""

    def ask(images: Tensor, _views: Tensor, _step: int) -> Answer:
        logits = teacher(images)
        return lambda part: None if logits is None else logits[part]

    return ask


def ask_on_own_stream(teacher: Teacher, device: torch.device) -> Ask:
    """The teacher runs beside the student's forward: its small kernels fill what the student's leave idle."""
    stream = torch.cuda.Stream(device)

    def ask(images: Tensor, _views: Tensor, _step: int) -> Answer:
        stream.wait_stream(torch.cuda.current_stream(device))  # the images are being mixed there
        with torch.cuda.stream(stream):
            logits = teacher(images)
        images.record_stream(stream)

        def answer(part: slice) -> Tensor | None:
            if logits is None:
                return None
            torch.cuda.current_stream(device).wait_stream(stream)
            logits.record_stream(torch.cuda.current_stream(device))
            return logits[part]

        return answer

    return ask


def ask_cache(reader: LabelReader, device: torch.device) -> Ask:
    """No teacher runs."""

    def ask(_images: Tensor, views: Tensor, step: int) -> Answer:
        answer = reader.read(step, views)
        if device.type == "cuda":
            answer = answer.pin_memory().to(device, non_blocking=True)
        return lambda part: answer[part]

    return ask
