"""What a result was measured on: versions, device, cores, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from deit_fast import __version__

PACKAGES = ("torch", "torchvision", "timm", "numpy", "nvidia-dali-cuda120", "nvidia-dali-cuda130")


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor's model name, or the architecture where the kernel does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed wheel or without git."""
    # a wheel may be installed in an environment inside somebody's own repository, whose commit is not ours
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty")


def _git(*arguments: str) -> str | None:
    """What git says in this file's folder; None when it fails or is missing."""
    command = ["git", *arguments]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def describe_environment(device: torch.device) -> dict[str, object]:
    """One flat record for result files and benchmark rows."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "deit_fast": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_name(),
        "cpu_cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
    }
