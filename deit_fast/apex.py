"""NVIDIA's apex: whether it is here, and whether what is called `apex` is it."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Found = Literal["nvidia", "missing", "unrelated", "without_kernels"]


def find_apex() -> Found:
    """nvidia: with its fused optimizers; unrelated: the package index's `apex` is another project (apex #1063).

    Nothing of the package is imported: the unrelated one fails at import, and NVIDIA's asks for CUDA.
    """
    spec = find_spec("apex")
    if spec is None:
        return "missing"
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    if not any((folder / "optimizers" / "fused_lamb.py").is_file() for folder in folders):
        return "unrelated"
    return "nvidia" if find_spec("amp_C") is not None else "without_kernels"


def explain(found: Found) -> str:
    """One line for the log."""
    return {
        "nvidia": "NVIDIA's apex is installed: its fused optimizers are used on cuda devices",
        "missing": "NVIDIA's apex is not installed: torch's and this package's optimizers are used",
        "unrelated": "the installed package `apex` is not NVIDIA's (the package index has another project of that "
        "name); remove it by `pip uninstall apex`, and build NVIDIA's from github.com/NVIDIA/apex if you want it",
        "without_kernels": "NVIDIA's apex is installed without its CUDA extensions (amp_C); it is not used",
    }[found]


def fused_optimizer(name: str) -> Any:
    """apex's class for `adamw` or `lamb`."""
    return getattr(importlib.import_module("apex.optimizers"), {"adamw": "FusedAdam", "lamb": "FusedLAMB"}[name])
