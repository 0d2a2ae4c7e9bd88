"""One profiled run: the trainer's own loop, first as it is, then traced, then watched; nothing of it is saved.

warm-up -> recorded and bare steps in turns -> traced steps -> one watched step -> loader alone -> loader grown
"""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile

from deit_fast.config import Config
from deit_fast.distributed import Ranks
from deit_fast.metrics import WaitClock
from deit_fast.prepare_batch import Prepare
from deit_fast.teacher import Teacher
from deit_fast.trainer import Trainer

from .idle import collectives
from .instrument import StagedBatches, record_step, recorded_loader
from .loader_times import measure_alone, measure_operators
from .memory import device_memory
from .phases import BARE, RECORDED, Phases, describe_steps
from .ranges import PhaseRanges, module_ranges, nvtx_range, trace_range
from .teacher_times import compare_precisions
from .trace import Trace, read_trace
from .watch import watched

WARM_UP, TRACED, WATCHED, CLOSING = "warm-up", "traced", "watched", "closing"
"""Closing: the last step of a stretch reads losses, which would show as a wait in the watched step."""
TRACED_STEPS = 2


@dataclass(frozen=True)
class Lengths:
    """How many steps of each kind, and how many batches of the loader."""

    recorded: int = 30
    warm_up: int = 5
    loader_batches: int = 8

    @property
    def kinds(self) -> list[str]:
        """The kind of each step in turn."""
        turns = [RECORDED, BARE] * self.recorded
        return [WARM_UP] * self.warm_up + turns + [TRACED] * TRACED_STEPS + [WATCHED, CLOSING]


@dataclass
class Measured:
    """What this process measured."""

    trace: Trace = field(init=False)
    """Of this process."""
    ranks: list[dict[str, Any]] = field(default_factory=list)
    watch: list[dict[str, Any]] = field(default_factory=list)
    loader_alone: dict[str, float] = field(default_factory=dict)
    loader_operators: list[dict[str, Any]] = field(default_factory=list)
    teacher: dict[str, Any] | None = None
    graphs: list[dict[str, int]] = field(default_factory=list)
    """Compiled graphs and graph breaks, after the warm-up and after the recorded steps."""
    device_memory: dict[str, Any] = field(default_factory=dict)
    """Of this process after the recorded steps: later peaks are those of the measurement."""


def profiled_trainer(config: Config, ranks: Ranks, folder: Path, lengths: Lengths) -> Trainer:
    """A trainer whose first stretch is the profiled one; ValueError when the run is too short for it."""
    total = len(lengths.kinds)
    checkpoint = replace(config.checkpoint, dir=str(folder / "run"), resume="none", every_steps=total)
    trainer = Trainer(replace(config, checkpoint=checkpoint), ranks, "profile")
    if total > trainer.last_step:
        raise ValueError(
            f"--steps {lengths.recorded} needs a run of {total} steps, this one has {trainer.last_step}; "
            "give fewer --steps or more --schedule.epochs"
        )
    return trainer


def run_profile(trainer: Trainer, folder: Path, lengths: Lengths) -> Measured:
    """Runs and measures; every rank has the result of all ranks. Traces are in `folder`, one of each rank."""
    measured, phases = Measured(), Phases(trainer.ranks.device)
    unmarked_mix = trainer.train_step.mix
    record_step(trainer.train_step, phases, trainer.teacher)
    if phases.device.type == "cuda":
        phases.annotate = PhaseRanges(nvtx_range)
    total = len(lengths.kinds)
    windows = {
        WARM_UP: lambda: _count_graphs_after(trainer.config, measured),
        TRACED: lambda: _traced(trainer, phases, folder, measured),
        WATCHED: lambda: watched(phases, measured.watch),
    }
    with ExitStack() as stack:
        trainer.open(stack)
        stack.enter_context(recorded_loader(trainer.train_loader, phases))
        shown = stack.enter_context(closing(trainer.train_loader.batches(0, total)))  # frees its pipeline at the end
        staged = StagedBatches(shown, phases, lengths.kinds, windows)
        if isinstance(phases.annotate, PhaseRanges):
            stack.callback(phases.annotate.close)  # after the last mark, which begins a range
        stack.callback(staged.close)
        batches = WaitClock(staged)
        stopped = False
        while trainer.state.step < total and not stopped:
            stopped = trainer.train_stretch(batches)
        trainer.vote.close()
    if trainer.state.step < total:
        raise RuntimeError(f"stopped by a signal after {trainer.state.step} of {total} steps")
    measured.trace = read_trace(trace_path(folder, trainer.ranks.rank))
    own = {
        "rank": trainer.ranks.rank,
        "host": socket.gethostname(),
        "steps": describe_steps(phases),
        "collectives_us": [event.duration_us for event in collectives(measured.trace)],
    }
    measured.ranks = gather(own, trainer.ranks)
    _measure_beside(trainer, unmarked_mix, measured, total, lengths.loader_batches)
    return measured


def _measure_beside(trainer: Trainer, mix: Prepare, measured: Measured, first_step: int, batches: int) -> None:
    """The loader and the teacher by themselves, on batches that the run did not show."""
    alone = gather(measure_alone(trainer.train_loader, first_step, batches), trainer.ranks)
    measured.loader_alone = {
        "images_per_second": sum(row["images_per_second"] for row in alone),
        "cpu_ms_per_image": sum(row["cpu_ms_per_image"] for row in alone) / len(alone),
        "cores_used": sum(row["cores_used"] for row in alone) / len(alone),
    }
    if trainer.ranks.is_main:
        measured.loader_operators = measure_operators(trainer.train_loader, first_step, batches)
        if isinstance(trainer.teacher, Teacher):
            with closing(trainer.train_loader.batches(first_step, first_step + 1)) as items:
                mixed, _ = mix(next(items), first_step, trainer.sampler.groups(first_step))
                measured.teacher = compare_precisions(trainer.teacher, mixed.teacher)
    trainer.ranks.barrier()


def gather(own: dict[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    """Every rank's record, on every rank."""
    records: list[Any] = [own]
    if ranks.world_size > 1:
        records = [None] * ranks.world_size
        dist.all_gather_object(records, own)
    return records


def trace_path(folder: Path, rank: int) -> Path:
    """For Perfetto (ui.perfetto.dev) and chrome://tracing."""
    return folder / f"trace_rank{rank}.json.gz"


def write_trace(profiler: profile, path: Path) -> None:
    """The trace, compressed in one go: torch's own compression takes a call for each line, and ten times as long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    path.write_bytes(gzip.compress(plain.read_bytes(), compresslevel=5))
    plain.unlink()


@contextmanager
def _count_graphs_after(config: Config, measured: Measured) -> Iterator[None]:
    yield
    measured.graphs.append(count_graphs(config))


@contextmanager
def _traced(trainer: Trainer, phases: Phases, folder: Path, measured: Measured) -> Iterator[None]:
    """torch.profiler over the steps inside, with ranges for phases and modules; the trace goes to a file."""
    measured.graphs.append(count_graphs(trainer.config))
    measured.device_memory = device_memory(trainer.memory)
    activities = [ProfilerActivity.CPU]
    if phases.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    before, phases.annotate = phases.annotate, PhaseRanges(trace_range)
    if phases.device.type == "cuda":
        torch.cuda.synchronize(phases.device)  # else work of the steps before would be missing at the start
    try:
        with (
            profile(activities=activities, profile_memory=True) as profiler,
            module_ranges(trainer.student, teacher_module(trainer)),
        ):
            yield
            phases.annotate.close()
    finally:
        phases.annotate = before
    write_trace(profiler, trace_path(folder, trainer.ranks.rank))


def teacher_module(trainer: Trainer) -> nn.Module | None:
    """The teacher's network, where one runs."""
    return trainer.teacher.model if isinstance(trainer.teacher, Teacher) else None


def count_graphs(config: Config) -> dict[str, int]:
    """What torch.compile has made so far in this process; zeros where nothing is compiled."""
    if not (config.runtime.compile or config.runtime.teacher_compile):
        return {"graphs": 0, "breaks": 0}
    from torch._dynamo.utils import counters

    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "breaks": int(sum(counters["graph_break"].values())),
    }
