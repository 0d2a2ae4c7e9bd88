"""The machine that a record was measured on: versions and cores (environment.py), and what changes a GPU's speed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from deit_fast.environment import describe_environment

GPU_FACTS = (
    "name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu",
    "pcie.link.gen.current", "pcie.link.width.current", "ecc.mode.current", "mig.mode.current",
)  # fmt: skip
"""As nvidia-smi names them: two runs whose clocks or power limits differ are not the same hardware."""
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """environment.describe_environment, and clocks, driver, load: one record, for a row."""
    return {
        **describe_environment(device),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "load_average_1_min": os.getloadavg()[0],
        "cpu_governor": GOVERNOR.read_text().strip() if GOVERNOR.is_file() else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "gpu": gpu_facts(identity(device)) if device.type == "cuda" else None,
    }


def identity(device: torch.device) -> str:
    """A GPU's name for nvidia-smi, whose numbers do not follow CUDA_VISIBLE_DEVICES."""
    properties: Any = torch.cuda.get_device_properties(device)  # its stubs lack the identity
    return f"GPU-{properties.uuid}"


def gpu_facts(gpu: str) -> dict[str, str] | None:
    """GPU_FACTS by nvidia-smi, as text with their units; None where it is missing or fails."""
    command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    return dict(zip(GPU_FACTS, (value.strip() for value in answer.stdout.split(",")), strict=False))
