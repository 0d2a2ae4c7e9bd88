"""Contenders in interleaved turns: a busy moment of a shared machine then hits all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from deit_fast.distributed import Ranks

from .memory import MemoryMeter, PeakMemory
from .process_tree import Stopwatch

Turn = Callable[[], int]
"""Does one turn of work and returns how many images went through on this rank."""


@runtime_checkable
class LeavesWork(Protocol):
    """A turn that leaves work under way, which `finish` ends when the clock has been read."""

    def finish(self) -> None:
        """Not measured."""


Prepare = Callable[[], Turn]
"""Gets ready for a turn; not measured."""


@dataclass
class Timing:
    """What a contender did in each of its turns, over all ranks."""

    images: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Empty where turns are too short for it."""
    step_seconds: list[float] = field(default_factory=list)
    """Of single training steps, where turns are made of them."""
    memory: PeakMemory = field(default_factory=PeakMemory)
    warm_up_turns: int = 0
    flops_per_image: float | None = None
    """What the mathematics asks for (2 a multiply-add); None for work that is no arithmetic."""
    peak_flops: float | None = None
    """FLOP/s of all devices that took part; None where it is not known."""

    @property
    def speeds(self) -> list[float]:
        """Images/s of each turn."""
        return [images / seconds for images, seconds in zip(self.images, self.seconds, strict=True)]

    @property
    def wall_ms(self) -> float:
        """Milliseconds an image, all devices together; the median of the turns."""
        return 1e3 / statistics.median(self.speeds)

    @property
    def cpu_ms(self) -> list[float]:
        """CPU-milliseconds per image of each turn, all threads and child processes."""
        return [1e3 * cpu / images for images, cpu in zip(self.images, self.cpu_seconds, strict=bool(self.cpu_seconds))]

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: images/s x FLOPs of an image / peak FLOP/s of all devices."""
        if self.flops_per_image is None or self.peak_flops is None:
            return None
        return statistics.median(self.speeds) * self.flops_per_image / self.peak_flops

    def times_cheaper_than(self, other: Timing) -> float:
        """How many times our CPU time the other needs for an image: the median over the rounds."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.cpu_ms, other.cpu_ms, strict=True))

    def row(self) -> dict[str, Any]:
        """The figures of a row (docs/benchmarks.md): medians, spread, and every turn."""
        speeds, cpu_ms = self.speeds, statistics.median(self.cpu_ms) if self.cpu_seconds else None
        p20, median, p80 = np.percentile(speeds, (20, 50, 80)).tolist()
        steps = np.percentile(self.step_seconds, (50, 95, 99)).tolist() if self.step_seconds else None
        return {
            "images_per_second": median,
            "images_per_second_p20": p20,
            "images_per_second_p80": p80,
            "images_per_second_min": min(speeds),
            "images_per_second_max": max(speeds),
            "cpu_ms_per_image": cpu_ms,
            "cores_per_1000_images_per_second": cpu_ms,  # 1,000 images a second x milliseconds = busy cores
            **{f"step_ms_p{p}": 1e3 * steps[i] if steps else None for i, p in enumerate((50, 95, 99))},
            "mfu": self.mfu,
            "tflops_per_image": None if self.flops_per_image is None else self.flops_per_image / 1e12,
            "peak_memory_bytes": self.memory._asdict(),
            "warm_up_turns": self.warm_up_turns,
            "turns": len(speeds),
            "images_per_turn": round(statistics.median(self.images)),
            "turn_images_per_second": speeds,
            "turn_cpu_ms_per_image": self.cpu_ms,
        }


OURS = "deit_fast"


class Contender(NamedTuple):
    """What is timed, and who does it."""

    workload: str
    name: str


Timings = dict[Contender, Timing]


def time_in_turns(
    contenders: dict[Contender, Prepare],
    turns: int,
    warm_up_turns: int = 1,
    *,
    ranks: Ranks | None = None,
    meter: MemoryMeter | None = None,
) -> dict[Contender, Timing]:
    """Runs every contender `warm_up_turns` times unmeasured, then all of them in rounds, `turns` times each.

    Under torchrun all ranks take each turn together; images and CPU time are their sums, a turn lasts until the last
    is done. meter: reads the device's memory; default: of none.
    """
    meter = meter or MemoryMeter(torch.device("cpu"))
    timings = {contender: Timing(warm_up_turns=warm_up_turns) for contender in contenders}
    for prepare in contenders.values():
        for _ in range(warm_up_turns):
            _take_turn(prepare, Timing(), ranks, meter)
    for _ in range(turns):
        for contender, prepare in contenders.items():
            _take_turn(prepare, timings[contender], ranks, meter)
    return timings


def _take_turn(prepare: Prepare, timing: Timing, ranks: Ranks | None, meter: MemoryMeter) -> None:
    turn = prepare()
    meter.reset()
    stopwatch = Stopwatch()
    if ranks is not None:
        ranks.barrier()
    stopwatch.start()
    images = turn()
    if ranks is not None:
        ranks.barrier()
    seconds, cpu = stopwatch.read()
    memory = meter.read()
    if isinstance(turn, LeavesWork):
        turn.finish()
    if ranks is not None and ranks.world_size > 1:
        images, cpu = ranks.sum(torch.tensor([images, cpu], dtype=torch.float64, device=ranks.device)).tolist()
    timing.seconds.append(seconds)
    timing.cpu_seconds.append(cpu)
    timing.images.append(int(images))
    timing.memory = timing.memory.merged(memory)
