"""Limits of the machine that stop or slow a run hours after its start: files, shared memory, cores, disk space."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from deit_fast.budget import BUDGET_DEVICES, REQUIRED_IMAGES_PER_SECOND
from deit_fast.config import CheckpointConfig, Config
from deit_fast.distributed import CORES_AT_START
from deit_fast.host import cores_wanted, host_warnings, raise_open_file_limit
from deit_fast.student import build_student

from .finding import Finding, Level

STATES_BESIDE = 2
"""Checkpoints on the disk besides the last ones: the best, and the one that is being written."""


def check_host(config: Config, devices: int) -> list[Finding]:
    """Open files, shared memory, cores, and space for checkpoints."""
    return [*check_limits(devices), judge_cores(CORES_AT_START, devices), check_space(config)]


def check_limits(devices: int) -> list[Finding]:
    """What a run would say at its start; too little shared memory matters between processes only."""
    findings = []
    for line in host_warnings(raise_open_file_limit()):
        text, _, mend = line.partition(": ")
        level: Level = "note" if "NCCL" in text and devices < 2 else "warning"
        findings.append(Finding("limits", level, text, mend))
    return findings or [Finding("limits", "ok", "open files and shared memory suffice")]


def judge_cores(cores: int, devices: int) -> Finding:
    """The loader's need at the budget's speed, with JPEGs decoded on the CPU."""
    wanted = cores_wanted(REQUIRED_IMAGES_PER_SECOND / BUDGET_DEVICES) * devices
    text = f"{cores} CPU cores; the loader needs {wanted:.1f} for the budget's 185.4 images/s a device (predicted)"
    if cores < wanted:
        return Finding(
            "cores", "warning", text, "give the container more cores, or decode on the GPU (data.decoder gpu)"
        )
    return Finding("cores", "ok", text)


def state_bytes(config: Config, num_classes: int = 1000) -> int:
    """A checkpoint: weights, two moments of the optimizer, and the moving average where one is kept; fp32."""
    model = replace(config.model, init_checkpoint=None)  # whatever the first weights are, they are as many
    with torch.device("meta"):
        student = build_student(replace(config, model=model), num_classes)
    copies = 3 + (config.optim.ema_decay is not None)
    return 4 * copies * sum(weight.numel() for weight in student.parameters())


def check_space(config: Config) -> Finding:
    """Room for the checkpoints that are kept, and the right to write there."""
    folder = existing(Path(config.checkpoint.dir))
    if not os.access(folder, os.W_OK):
        return Finding("checkpoints", "failure", f"{folder} cannot be written", "choose another --checkpoint.dir")
    return judge_space(folder, shutil.disk_usage(folder).free, state_bytes(config), config.checkpoint)


def judge_space(folder: Path, free_bytes: int, one_bytes: int, checkpoint: CheckpointConfig) -> Finding:
    """One line; failure when the run would fill the disk."""
    wanted = (checkpoint.keep_last + STATES_BESIDE) * one_bytes
    text = f"{folder} has {free_bytes / 1e9:.1f} GB free, {wanted / 1e9:.1f} GB are wanted: {checkpoint.keep_last} + "
    text += f"{STATES_BESIDE} checkpoints of {one_bytes / 1e9:.2f} GB"
    if free_bytes < wanted:
        return Finding("checkpoints", "failure", text, "free space, or choose another --checkpoint.dir")
    return Finding("checkpoints", "ok", text)


def existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
