"""Records as `deit-fast bench` writes them (docs/benchmarks.md), for tests of what reads them."""

import numpy as np

from deit_fast.budget import REQUIRED_IMAGES_PER_SECOND, projected_days

REQUIRED_PER_DEVICE = REQUIRED_IMAGES_PER_SECOND / 8


def row(workload, name, speeds, *, cpu_ms=1.0, images=64, tflops=None, peak=None, steps=False, memory=None):
    """A row of the contract from the images/s of its turns. tflops: of an image; peak: TFLOP/s of all devices."""
    p20, median, p80 = np.percentile(speeds, (20, 50, 80)).tolist()
    ms = np.percentile([1e3 * images / speed for speed in speeds], (50, 95, 99)).tolist() if steps else [None] * 3
    return {
        "workload": workload,
        "name": name,
        "images_per_second": median,
        "images_per_second_p20": p20,
        "images_per_second_p80": p80,
        "images_per_second_min": min(speeds),
        "images_per_second_max": max(speeds),
        "cpu_ms_per_image": cpu_ms,
        "cores_per_1000_images_per_second": cpu_ms,
        "step_ms_p50": ms[0],
        "step_ms_p95": ms[1],
        "step_ms_p99": ms[2],
        "mfu": median * tflops / peak if tflops and peak else None,
        "tflops_per_image": tflops,
        "peak_memory_bytes": memory or {"torch": None, "dali": None},
        "warm_up_turns": 1,
        "turns": len(speeds),
        "images_per_turn": images,
        "turn_images_per_second": list(speeds),
        "turn_cpu_ms_per_image": [cpu_ms] * len(speeds),
    }


def verdict(images_per_second, *, devices=8, model="deit_base_distilled_patch16_224", **more):
    """The budget's verdict on a speed of all devices together."""
    return {
        "required_images_per_second": REQUIRED_IMAGES_PER_SECOND,
        "required_per_device": REQUIRED_PER_DEVICE,
        "measured_images_per_second": images_per_second,
        "measured_per_device": images_per_second / devices,
        "devices": devices,
        "margin": images_per_second / REQUIRED_IMAGES_PER_SECOND,
        "projected_days": projected_days(images_per_second),
        "teacher": "live",
        "limiting_stage": "teacher forward",
        "next_limiting_stage": "student backward",
        "mfu": 0.41,
        "days_at_half_of_peak": 2.5,
        "model": model,
        "is_budget_model": model.startswith("deit_base"),
        **more,
    }


def record(bench, rows, *, time="2026-11-25T02:00:00+00:00", title=None, verdict=None, **environment):
    """One JSON line."""
    return {
        "schema": 1,
        "bench": bench,
        "time": time,
        "title": title or f"{bench} of a test",
        "rows": rows,
        "verdict": verdict,
        "config": {"model": {"name": "deit_base_distilled_patch16_224"}},
        "environment": {
            "deit_fast": "0.1.0",
            "commit": "abc1234",
            "packages": {"torch": "2.14.1", "nvidia-dali-cuda120": "2.4.0"},
            "device": "Made-up GPU",
            "cpu": "Made-up CPU",
            "cpu_cores": 2,
            **environment,
        },
    }


def step_record(scale=1.0, **more):
    """A step of DeiT-B on 8 devices: 412 images/s and a live teacher, times `scale`."""
    spread = np.array([0.96, 0.99, 1.0, 1.01, 1.02, 0.8]) * scale
    gib = {"torch": 22 * 2**30, "dali": 3 * 2**30}

    def part(name, speed, tflops=None):
        return row(name, "deit_fast", (spread * speed).tolist(), tflops=tflops, peak=138.0, memory=gib)

    def whole(name, speed):
        speeds = (spread * speed).tolist()
        return row(name, "deit_fast", speeds, images=2048, tflops=0.1376, peak=138.0, steps=True, memory=gib)

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
    rows = [
        {"kernel": "attention", "backend": "triton", "correct": True, "turns": 20, "ms": 0.31, "ms_p20": 0.30,
         "ms_p80": 0.33, "gb_per_second": 1200.0, "tflop_per_second": 210.0, "share_of_bound": 0.6},
        {"kernel": "attention", "backend": "reference", "correct": True, "turns": 20, "ms": 1.2, "ms_p20": 1.1,
         "ms_p80": 1.3, "gb_per_second": 310.0, "tflop_per_second": 54.0, "share_of_bound": 0.15},
        {"kernel": "add_norm", "backend": "triton", "correct": False},
    ]  # fmt: skip
    return record("kernels", rows, device="NVIDIA H100 80GB HBM3")
