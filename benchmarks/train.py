"""End to end: the trainer's own loader and step together, from files to updated weights.

A turn is some steps in the steady state: before it some steps are run that are not measured, so that the loader's queue
is as full as it gets, and the loader goes on preparing to the turn's last step as it would in a run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from deit_fast.build_step import TeacherLike, cached_labels
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.loader import Batch, TrainLoader
from deit_fast.data import train_loader
from deit_fast.distributed import Ranks
from deit_fast.metrics import WaitClock
from deit_fast.step import TrainStep

from .assembled import Assembled, RandomLabels
from .timing import Turn
from .work import Work, wait_for

END_TO_END = "end to end"
END_TO_END_CACHED = f"{END_TO_END}, cached labels"
ALONE = f"{END_TO_END}, one device alone"


class StepClock:
    """Seconds of each step: between marks on the device, or, on a CPU, on the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self.on_device = device.type == "cuda"
        self.marks: list[float | torch.cuda.Event] = []

    def mark(self) -> None:
        """A step ends, and the next begins; nobody waits."""
        if not self.on_device:
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """Of each step, once the device has done them all."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if not self.on_device:
            return [end - start for start, end in pairs]  # type: ignore[operator]
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]  # type: ignore[union-attr, arg-type]


class EndToEnd:
    """A Prepare whose turns are `steps` steps, after `lead_in` steps that are not measured."""

    def __init__(self, step: TrainStep, loader: TrainLoader, *, steps: int, lead_in: int) -> None:
        self.step, self.loader, self.steps, self.lead_in = step, loader, steps, lead_in
        self.step_seconds: list[list[float]] = []
        self.wait_seconds: list[float] = []
        """Of each turn: what its steps took, and how long they waited for the loader."""

    def __call__(self) -> Turn:
        beyond = int(self.loader.pipeline_options["prefetch_queue_depth"]) + 1
        turn = SteadyTurn(self, self.loader.batches(0, self.lead_in + self.steps + beyond), self.lead_in)
        for number in range(self.lead_in):
            turn.take_step(number)
        wait_for(self.loader.device)
        turn.batches.take()
        return turn


class SteadyTurn:
    """One turn; what the loader prepared beyond it is thrown away when it has been measured."""

    def __init__(self, owner: EndToEnd, batches: Iterator[Batch], first: int) -> None:
        self.owner, self.generator, self.batches, self.first = owner, batches, WaitClock(batches), first

    def take_step(self, number: int) -> int:
        """A step of the run as the trainer takes it; its images on this rank."""
        batch = next(self.batches)
        self.owner.step(batch, number, self.owner.loader.sampler.groups(number))
        return len(batch.labels)

    def __call__(self) -> int:
        images, device = 0, self.owner.loader.device
        clock = StepClock(device)
        clock.mark()
        for number in range(self.first, self.first + self.owner.steps):
            images += self.take_step(number)
            clock.mark()
        self.owner.step.guard.take()  # as at a log step: the host reads the losses, which waits for the device
        wait_for(device)
        self.owner.step_seconds.append(clock.seconds())
        self.owner.wait_seconds.append(self.batches.take())
        return images

    def finish(self) -> None:
        """Ends the loader's pipeline."""
        self.generator.close()  # type: ignore[attr-defined]


def end_to_end(
    parts: Assembled, ranks: Ranks, images: ImageSet, *, cached: bool, steps: int, lead_in: int
) -> tuple[EndToEnd, Work]:
    """The steps of all ranks from their images, or of those that `ranks` says: one alone averages no gradients."""
    loader = train_loader(parts.config, images, ranks, parts.precision)
    teacher = cached_teacher(parts, ranks, loader) if cached else parts.teacher
    step = parts.step(teacher) if ranks.world_size == parts.ranks.world_size else parts.step_alone(teacher)
    run = EndToEnd(step, loader, steps=steps, lead_in=lead_in)
    return run, Work(run, parts.step_flops(teacher), step_seconds=run.step_seconds)


def cached_teacher(parts: Assembled, ranks: Ranks, loader: TrainLoader) -> TeacherLike:
    """The labels of distill.label_cache, or random ones that stand in for it."""
    num_classes = len(parts.state.classes)
    if parts.config.distill.label_cache is None:
        return RandomLabels(num_classes)
    return cached_labels(parts.config, num_classes, ranks, parts.precision, loader)


def idle() -> Turn:
    """The turn of a rank that has nothing to do while the first runs alone."""
    return lambda: 0
