"""The loader by itself: how fast, on how many cores, and what each of its operators costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from nvidia.dali import Pipeline

from deit_fast.dali_pipelines.grown import grown
from deit_fast.dali_pipelines.loader import TrainLoader
from deit_fast.dali_pipelines.read_ahead import ReadAhead

WARM_UP_BATCHES = 2
DECODERS = ("decoders.", "branch: decoders.")


class Stopwatch:
    """Seconds that passed, and CPU seconds of all threads of this process; GPU work is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start, self.cpu = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def rates(self, images: int) -> dict[str, float]:
        """images/s, CPU-ms an image, and cores used, since the beginning."""
        now, cpu = self._now()
        seconds, cpu_seconds = now - self.start, cpu - self.cpu
        return {
            "images_per_second": images / seconds,
            "cpu_ms_per_image": 1e3 * cpu_seconds / images,
            "cores_used": cpu_seconds / seconds,
        }


def measure_alone(loader: TrainLoader, first_step: int, batches: int) -> dict[str, float]:
    """The loader without a step behind it, over `batches` batches of the run from first_step."""
    items = loader.batches(first_step, first_step + WARM_UP_BATCHES + batches)
    for _ in islice(items, WARM_UP_BATCHES):
        pass
    watch = Stopwatch(loader.device)
    images = sum(len(batch.labels) for batch in items)
    return watch.rates(images)


def measure_operators(loader: TrainLoader, first_step: int, batches: int) -> list[dict[str, Any]]:
    """The training pipeline grown operator by operator, each form over the same batches.

    `total_cpu_ms`: CPU-ms an image up to and with this operator; `cpu_ms`: the difference to the form before, which is
    what the operator adds, and can come out below 0 where that is less than the noise.
    """
    last_step = first_step + WARM_UP_BATCHES + batches
    readers: list[ReadAhead] = []

    def pipelines() -> Iterator[Pipeline]:
        while True:
            source, reader = loader.feed(first_step, last_step)
            readers.append(reader)
            yield loader.build(source)

    rows: list[dict[str, Any]] = []
    before = 0.0
    for cut, pipeline in grown(pipelines()):
        for _ in range(WARM_UP_BATCHES):
            pipeline.run()
        watch = Stopwatch(loader.device)
        for _ in range(batches):
            pipeline.run()
        rates = watch.rates(batches * len(loader.sampler.views(0)))
        total = rates.pop("cpu_ms_per_image")
        rows.append(
            {"operator": cut.name, "operators": cut.operators, "cpu_ms": total - before, "total_cpu_ms": total, **rates}
        )
        before = total
        readers[-1].close()
    readers[0].close()
    return rows


def decoder_share(operators: list[dict[str, Any]]) -> float | None:
    """The decoder's part of the loader's CPU time; None where it cannot be told from the crop (native backend)."""
    total = operators[-1]["total_cpu_ms"] if operators else 0.0
    decoding = [row["cpu_ms"] for row in operators if row["operator"].startswith(DECODERS)]
    return sum(decoding) / total if decoding and total else None
