"""What a run that ran out of memory is told: the batch that would fit, by the same prediction as `deit-fast plan`'s."""

from __future__ import annotations

from dataclasses import replace

import torch

from deit_fast.config import Config

from .costs import count_student, count_teacher
from .memory_plan import plan_memory


def smaller_batches(config: Config) -> list[Config]:
    """With fewer images at once and more accumulated parts, the global batch being the same; the largest first."""
    runtime = config.runtime
    total = runtime.batch_size_per_device * runtime.accumulate_steps
    # drop-path by subset takes a share of each whole mixing group
    multiple = config.mix.group_size if config.model.drop_path_mode == "subset" else 1
    return [
        replace(config, runtime=replace(runtime, batch_size_per_device=size, accumulate_steps=total // size))
        for size in range(runtime.batch_size_per_device - 1, 1, -1)
        if not size % 2 and not total % size and not size % multiple
    ]


def first_that_fits(configs: list[Config], num_classes: int, precision: str, memory_bytes: int) -> Config | None:
    """Of configurations that differ in their batch only; None when none is predicted to fit."""
    if not configs:
        return None
    runtime = configs[0].runtime
    student = count_student(configs[0], num_classes, precision)
    teacher = count_teacher(configs[0].distill, runtime, configs[0].model.image_size_px, num_classes, precision)
    recompute = runtime.checkpoint_activations
    return next((c for c in configs if plan_memory(c, student, teacher, memory_bytes, recompute=recompute).fits), None)


def advise_on(config: Config, num_classes: int, precision: str, device: torch.device) -> str:
    """One line: which batch would fit, and how to keep the global batch all the same.

    On a CPU, whose memory is shared with others, nothing is predicted: about half the batch is named.
    """
    runtime, smaller = config.runtime, smaller_batches(config)
    if device.type == "cuda":
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
        advised, verb = first_that_fits(smaller, num_classes, precision, memory_bytes), "is predicted to fit"
    else:
        half = [c for c in smaller if 2 * c.runtime.batch_size_per_device <= runtime.batch_size_per_device]
        advised, verb = next(iter(half), None), "may fit (on a CPU nothing is predicted)"
    head = f"out of memory with runtime.batch_size_per_device {runtime.batch_size_per_device}"
    if advised is None:
        may_recompute = not (runtime.checkpoint_activations or runtime.cuda_graphs)
        recompute = "--runtime.checkpoint_activations true, " if may_recompute else ""
        why = "no smaller batch is predicted to fit" if device.type == "cuda" else "there is no half of this batch"
        return f"{head}; {why}: use {recompute}a smaller model or image size"
    size, parts = advised.runtime.batch_size_per_device, advised.runtime.accumulate_steps
    return (
        f"{head}; {size} {verb}, and the global batch stays as it is with --runtime.batch_size_per_device {size} "
        f"--runtime.accumulate_steps {parts} --mix.group_size {config.mix.group_size}"
    )
