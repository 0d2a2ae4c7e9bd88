"""Whether torch, DALI, driver and GPUs fit one another."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from importlib import import_module, metadata

import torch

from .finding import Finding, worst

DALI_WHEELS = {"nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}
"""Package -> the CUDA that it brings along."""


def check_versions() -> list[Finding]:
    """torch, DALI, their CUDA, and every package's requirements."""
    wheels = [name for name in DALI_WHEELS if is_installed(name)]
    return [
        *check_dali(wheels),
        *judge_cuda(torch.version.cuda, wheels, driver_cuda()),
        check_requirements(),
    ]


def check_dali(wheels: list[str]) -> list[Finding]:
    """One wheel, and one that can be imported."""
    found = judge_dali(wheels)
    if worst(found) == "failure":
        return found
    try:
        import_module("nvidia.dali.fn")
    except (ImportError, OSError, RuntimeError) as error:
        text = f"{wheels[0]} cannot be imported: {(str(error).splitlines() or [type(error).__name__])[0]}"
        return [Finding("DALI", "failure", text, f"pip install --force-reinstall {wheels[0]}")]
    return found


def is_installed(package: str) -> bool:
    """Whether pip knows of it."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def judge_dali(wheels: list[str]) -> list[Finding]:
    """Exactly one of the two wheels: they overwrite each other's files."""
    if len(wheels) == 1:
        return [Finding("DALI", "ok", f"{wheels[0]} {metadata.version(wheels[0]) if is_installed(wheels[0]) else ''}")]
    if not wheels:
        return [Finding("DALI", "failure", "no DALI is installed", "pip install 'deit-fast[cuda12]', or [cuda13]")]
    mend = f"pip uninstall -y {' '.join(wheels)}, then pip install 'deit-fast[cuda12]' or [cuda13]"
    return [Finding("DALI", "failure", f"{' and '.join(wheels)} overwrite each other's files", mend)]


def driver_cuda() -> int | None:
    """The newest CUDA that the driver runs, as it counts (13000 for 13.0); None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def judge_cuda(torch_cuda: str | None, wheels: list[str], driver: int | None) -> list[Finding]:
    """The driver has to be as new as the CUDA that torch and DALI bring; within a major version an older one will do.

    https://docs.nvidia.com/deploy/cuda-compatibility: minor version compatibility.
    """
    if driver is None:
        return [Finding("driver", "note", "no NVIDIA driver: everything runs on the CPU")]
    if torch_cuda is None:
        mend = "install a CUDA build of torch: pip install --force-reinstall torch (its default index has one)"
        return [Finding("driver", "failure", "there is a driver, but torch was built without CUDA", mend)]
    wanted = {"torch": int(torch_cuda.split(".")[0])} | {wheel: DALI_WHEELS[wheel] for wheel in wheels}
    shown = f"{driver // 1000}.{driver % 1000 // 10}"
    too_new = [f"{name} brings CUDA {major}" for name, major in wanted.items() if major > driver // 1000]
    if too_new:
        mend = f"update the driver, or install builds for CUDA {driver // 1000}: docs/gpu.md, Install"
        return [Finding("driver", "failure", f"{', '.join(too_new)}, the driver runs up to {shown}", mend)]
    return [Finding("driver", "ok", f"runs CUDA up to {shown}; torch brings {torch_cuda}")]


def check_requirements() -> Finding:
    """pip's own check of all installed packages."""
    command = [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("packages", "note", f"pip check did not run ({type(error).__name__})")
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if "No module named pip" in done.stderr:
        return Finding("packages", "note", "there is no pip here to check the packages with")
    if done.returncode == 0:
        return Finding("packages", "ok", "all requirements are met (pip check)")
    more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
    return Finding("packages", "warning", f"{lines[0]}{more}", "pip install -c constraints.txt the packages named")
