"""Puts the recorder around a built trainer from outside: what runs is the trainer's own loop and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from deit_fast.ask_teacher import Answer, build_ask
from deit_fast.dali_pipelines.loader import Batch, TrainLoader
from deit_fast.step import TrainStep
from deit_fast.teacher import Teacher

from .all_reduce import all_reduce_recorded
from .phases import BETWEEN, Phases

Windows = Mapping[str, Callable[[], AbstractContextManager[object]]]
"""Kind of step -> what is entered before the first of a row of such steps, and left after the last."""


def record_step(step: TrainStep, phases: Phases, teacher: Any) -> None:
    """Marks the parts of a built step; what it computes stays as it is."""
    if isinstance(teacher, Teacher) and phases.device.type == "cuda":
        step.ask_teacher = build_ask(_span_around(teacher, phases), phases.device)
    ask = step.ask_teacher

    def ask_recorded(images: Tensor, views: Tensor, number: int) -> Answer:
        phases.enter("teacher")
        answer = ask(images, views, number)
        phases.enter("optimizer")  # sets the gradients to none
        return phases.around(answer, "teacher", then="loss")  # on CUDA the student waits for the teacher here

    step.ask_teacher = ask_recorded
    step.mix = phases.around(step.mix, "mix", then="teacher")  # type: ignore[method-assign]
    step.forward = phases.around(step.forward, "forward", then="loss")  # type: ignore[method-assign]
    step.loss = phases.around(step.loss, "loss", then="backward")
    step.guard.apply = phases.around(step.guard.apply, "optimizer", then="EMA")  # type: ignore[method-assign]
    step.update_ema = phases.around(step.update_ema, "EMA", then="log")
    if isinstance(step.student, DistributedDataParallel):
        step.student.register_comm_hook(phases, all_reduce_recorded)


def _span_around(teacher: Callable[[Tensor], Tensor | None], phases: Phases) -> Callable[[Tensor], Tensor | None]:
    """A teacher whose own time is a span: it runs beside the student, on a stream of its own."""

    def recorded(images: Tensor) -> Tensor | None:
        begin = phases.begin_span()
        logits = teacher(images)
        phases.end_span("teacher stream", begin)
        return logits

    return recorded


@contextmanager
def recorded_loader(loader: TrainLoader, phases: Phases) -> Iterator[None]:
    """While entered, marks the loader's callback, which draws a batch's random choices and hands its files on."""
    build = loader.build

    def build_recorded(source: Callable[[Any], list[Any]]) -> Any:
        def fed(info: Any) -> list[Any]:
            before = phases.current
            phases.enter("feed")
            inputs = source(info)
            phases.enter(before)
            return inputs

        return build(fed)

    loader.build = build_recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        loader.build = build  # type: ignore[method-assign]


class StagedBatches(Iterator[Batch]):
    """Passes a run's batches on; step by step it says of which kind the step is, and enters that kind's window."""

    def __init__(
        self, batches: Iterator[Batch], phases: Phases, kinds: list[str], windows: Windows, first_step: int = 0
    ) -> None:
        self.batches, self.phases, self.windows = batches, phases, windows
        self.kinds, self.step, self.kind = iter(kinds), first_step, ""
        self.open = ExitStack()

    def __next__(self) -> Batch:
        kind = next(self.kinds)
        if kind != self.kind and not self.windows.keys().isdisjoint((kind, self.kind)):
            self.phases.start_step(self.step, BETWEEN)
            self.open.close()
            if kind in self.windows:
                self.open.enter_context(self.windows[kind]())
        self.kind = kind
        self.phases.start_step(self.step, kind)
        self.step += 1
        batch = next(self.batches)
        self.phases.enter("mix")
        return batch

    def close(self) -> None:
        """Leaves the window that is open, and ends the last step."""
        self.phases.start_step(self.step, "end")
        self.open.close()
