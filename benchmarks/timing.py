"""Contenders in interleaved turns: a busy moment of a shared machine then hits all of them alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Turn = Callable[[], int]
"""Does one turn of work and returns how many images went through."""


@dataclass
class Timing:
    """What a contender did in each of its turns."""

    images: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """Median images/s with its extremes, and median CPU-ms per image (all threads and child processes)."""
        speeds = [images / seconds for images, seconds in zip(self.images, self.seconds, strict=True)]
        cpu = [1e3 * cpu / images for images, cpu in zip(self.images, self.cpu_seconds, strict=True)]
        return {
            "images_per_second": statistics.median(speeds),
            "images_per_second_min": min(speeds),
            "images_per_second_max": max(speeds),
            "cpu_ms_per_image": statistics.median(cpu),
            "turns": len(speeds),
            "images_per_turn": statistics.median(self.images),
        }


def cpu_seconds() -> float:
    """CPU time of this process and the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def time_in_turns(contenders: dict[str, Turn], turns: int, warm_up_turns: int = 1) -> dict[str, Timing]:
    """Runs every contender `warm_up_turns` times unmeasured, then all of them in rounds, `turns` times each."""
    for turn in contenders.values():
        for _ in range(warm_up_turns):
            turn()
    timings = {name: Timing() for name in contenders}
    for _ in range(turns):
        for name, turn in contenders.items():
            start, cpu = time.perf_counter(), cpu_seconds()
            images = turn()
            timings[name].seconds.append(time.perf_counter() - start)
            timings[name].cpu_seconds.append(cpu_seconds() - cpu)
            timings[name].images.append(images)
    return timings
