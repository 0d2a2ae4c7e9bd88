"""Records as `deit-fast bench` writes them (docs/benchmarks.md), for tests of what reads them: the figures are made up,
all else is the benchmarks' own."""

import numpy as np
import torch

from deit_fast.benchmarks.kernel_contenders import Contest
from deit_fast.benchmarks.kernels import kernel_row
from deit_fast.benchmarks.memory import PeakMemory
from deit_fast.benchmarks.records import build_record, rows_of
from deit_fast.benchmarks.timing import Contender, Timing
from deit_fast.benchmarks.verdict import Stage, reach_verdict
from deit_fast.gpus import GPUS

DEIT_B = "deit_base_distilled_patch16_224"
TFLOPS_PER_IMAGE, PEAK_TFLOPS = 0.1376, 138.0
"""Of a step with its teacher; of all devices."""
STAGES = (
    Stage("teacher forward", "device", 1.25), Stage("student forward", "device", 0.32),
    Stage("student backward", "device", 0.62),
)  # fmt: skip


def row(workload, name, speeds, *, cpu_ms=1.0, images=64, tflops=None, steps=False, memory=None):
    """A row from the images/s of its turns. tflops: of an image; steps: each turn is one; memory: bytes by part."""
    seconds = [images / speed for speed in speeds]
    timing = Timing(
        [images] * len(speeds),
        seconds,
        [] if cpu_ms is None else [cpu_ms * images / 1e3] * len(speeds),
        step_seconds=seconds if steps else [],
        memory=PeakMemory(**memory or {}),
        warm_up_turns=1,
        flops_per_image=tflops and 1e12 * tflops,
        peak_flops=tflops and 1e12 * PEAK_TFLOPS,
    )
    (made,) = rows_of({Contender(workload, name): timing})
    return made


def verdict(images_per_second, *, devices=8, model=DEIT_B):
    """The budget's verdict on a speed of all devices together."""
    return reach_verdict(
        images_per_second, devices=devices, teacher="live", stages=STAGES, flops_per_image=1e12 * TFLOPS_PER_IMAGE,
        peak_flops=1e12 * PEAK_TFLOPS, model=model, image_size_px=224,
    ).as_dict()  # fmt: skip


def record(bench, rows, *, time="2026-11-25T02:00:00+00:00", title=None, verdict=None, **environment):
    """One JSON line."""
    made = build_record(
        bench, title or f"{bench} of a test", rows, torch.device("cpu"), config={"model": {"name": DEIT_B}},
        verdict=verdict,
    )  # fmt: skip
    machine = {
        "deit_fast": "0.1.0",
        "commit": "abc1234",
        "packages": {"torch": "2.14.1", "nvidia-dali-cuda120": "2.4.0"},
        "device": "Made-up GPU",
        "cpu": "Made-up CPU",
        "cpu_cores": 2,
    }
    return made | {"time": time, "environment": machine | environment}


def step_record(scale=1.0, **more):
    """A step of DeiT-B on 8 devices: 412 images/s and a live teacher, times `scale`."""
    spread = np.array([0.96, 0.99, 1.0, 1.01, 1.02, 0.8]) * scale
    gib = {"torch": 22 * 2**30, "dali": 3 * 2**30}

    def part(name, speed, tflops=None):
        return row(name, "deit_fast", (spread * speed).tolist(), tflops=tflops, memory=gib)

    def whole(name, speed):
        speeds = (spread * speed).tolist()
        return row(name, "deit_fast", speeds, images=2048, tflops=TFLOPS_PER_IMAGE, steps=True, memory=gib)

    rows = [
        part("mixing", 50000.0),
        part("teacher forward", 800.0, 0.032),
        part("student forward", 3100.0, 0.0352),
        part("student backward", 1600.0, 0.0704),
        part("optimizer + moving average", 24000.0),
        whole("whole step", 412.0),
        whole("whole step, cached labels", 980.0),
    ]
    more.setdefault("verdict", verdict(412.0 * scale))
    more.setdefault("title", "step on synthetic images, DeiT-B, batch 256")
    return record("step", rows, **more)


def loader_record(scale=1.0, **more):
    """Loaders of two workloads, with peers and a row that is not the recipe."""
    spread = np.array([0.97, 1.0, 1.03]) * scale

    def part(workload, name, speed, cpu_ms):
        return row(workload, name, (spread * speed).tolist(), cpu_ms=cpu_ms)

    rows = [
        part("decode + crop + flip", "deit_fast native", 1735.0, 1.11),
        part("decode + crop + flip", "timm", 482.0, 3.98),
        part("full recipe", "deit_fast native", 1368.0, 1.39),
        part("full recipe", "deit_fast graph, bilinear (not the recipe)", 287.0, 5.8),
        part("full recipe", "timm", 325.0, 5.68),
    ]
    return record("loader", rows, title="loader, 224 px, batch 128", **more)


def kernels_record():
    """Two kernels, one of them by two implementations."""
    gpu = GPUS["h100"]
    attention = Contest("attention", None, ("triton", "reference"), {}, (), bytes=372_000_000, flops=65_100_000_000)
    add_norm = Contest("add_norm", None, ("triton",), {}, (), bytes=1)
    rows = [
        kernel_row(attention, "triton", [0.30e-3, 0.31e-3, 0.33e-3], gpu, batch=256),
        kernel_row(attention, "reference", [1.1e-3, 1.2e-3, 1.3e-3], gpu, batch=256),
        kernel_row(add_norm, "triton", None, gpu, batch=256),
    ]
    return record("kernels", rows, device="NVIDIA H100 80GB HBM3")
