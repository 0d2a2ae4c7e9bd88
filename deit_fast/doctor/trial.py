"""One batch through the loader and one training step, on each device: the shortest run there is."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deit_fast.build_step import assemble_step, compile_student
from deit_fast.config import Config
from deit_fast.data import train_loader
from deit_fast.distributed import Ranks
from deit_fast.memory import is_out_of_memory
from deit_fast.open_images import open_images
from deit_fast.precision import choose_precision
from deit_fast.run_state import first_state
from deit_fast.step import no_teacher

from .finding import Finding

TRIED_IMAGES_ON_CPU = 4
"""On a GPU the run's own batch is tried: where that does not fit, the run does not."""
SIZE_PX = (500, 375)
"""ImageNet's most frequent."""


def check_devices_train(config: Config, devices: list[torch.device]) -> list[Finding]:
    """A finding for each device."""
    with tempfile.TemporaryDirectory(prefix="deit_fast_doctor_") as folder:
        if not config.data.path:
            count = max(small_run(config, device).runtime.batch_size_per_device for device in devices)
            config = replace(config, data=replace(config.data, path=str(write_noise(Path(folder), count))))
        return [check_trial(config, device) for device in devices]


def write_noise(root: Path, count: int) -> Path:
    """JPEGs of smooth noise in two classes, for when there is no data set."""
    generator = np.random.default_rng(0)
    for index in range(count):
        folder = root / "train" / f"class_{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize(SIZE_PX).save(folder / f"{index}.jpg")
    return root


def check_trial(config: Config, device: torch.device) -> Finding:
    """Decodes a batch and takes a step; without teacher, whose weights may have to be downloaded."""
    name = "training step"
    try:
        loss, norm = try_step(small_run(config, device), Ranks(0, 1, 0, 1, device))
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        mend = (
            "use a smaller --runtime.batch_size_per_device and more --runtime.accumulate_steps"
            if is_out_of_memory(error)
            else "deit-fast train with the same options and --debug shows where"
        )
        return Finding(name, "failure", f"on {device} it failed: {first}", mend)
    text = f"decoded and trained on {device}: loss {loss:.3f}, gradient norm {norm:.3g}{left_out(config)}"
    if not torch.isfinite(torch.tensor([loss, norm])).all():
        return Finding(name, "failure", text, "try --runtime.precision fp32, --runtime.attention reference")
    return Finding(name, "ok", text)


def left_out(config: Config) -> str:
    """What the run has besides the trial, which therefore needs less memory; empty where that is nothing."""
    there = {"teacher": config.distill.kind != "none", "accumulated parts": config.runtime.accumulate_steps > 1}
    parts = " and ".join(name for name, is_there in there.items() if is_there)
    return f"; without {parts}, with which the run takes more memory" if parts else ""


def small_run(config: Config, device: torch.device) -> Config:
    """The run on one device: on a CPU with few images, nowhere with weights or teacher from elsewhere."""
    size = config.runtime.batch_size_per_device
    if device.type == "cpu":
        size = min(size, TRIED_IMAGES_ON_CPU)
    group = config.mix.group_size if size % config.mix.group_size == 0 else size
    return replace(
        config,
        model=replace(config.model, name=config.model.name.replace("_distilled", ""), init_checkpoint=None),
        distill=replace(config.distill, kind="none", label_cache=None),
        mix=replace(config.mix, group_size=group),
        runtime=replace(config.runtime, batch_size_per_device=size, accumulate_steps=1),
    )


def try_step(config: Config, ranks: Ranks) -> tuple[float, float]:
    """Loss and gradient norm of the first step."""
    precision = choose_precision(config.runtime.precision, ranks.device)
    images = open_images(config.data, "train")
    loader = train_loader(config, images, ranks, precision)
    state = first_state(config, images.classes, ranks, precision)
    if config.runtime.compile:
        compile_student(config, state.student)
    step = assemble_step(config, state, state.student.train(), no_teacher, ranks, precision)
    with closing(loader.batches(0, 1)) as batches:
        step(next(batches), 0, loader.sampler.groups(0))
    (record,) = step.guard.take()
    return record.loss, record.gradient_norm
