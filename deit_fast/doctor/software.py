"""Optional parts: apex, native operators, fused kernels, what was tuned, first weights and the teacher's."""

from __future__ import annotations

from pathlib import Path

import torch

from deit_fast.apex import explain, find_apex
from deit_fast.config import Config
from deit_fast.dali_pipelines.native import plugin
from deit_fast.kernels.choice import TUNABLE, has_kernel
from deit_fast.kernels.cpu import library
from deit_fast.kernels.registration import why_not_on
from deit_fast.tuned import TunedFileError, find_tuned

from .finding import Finding


def check_software(config: Config, device: torch.device) -> list[Finding]:
    """apex, native operators, kernels, tuned file, first weights, teacher."""
    return [
        check_apex(),
        check_native(device),
        check_kernels(device),
        check_tuned(config, device),
        *check_first_weights(config),
        *check_teacher(config),
    ]


def check_apex() -> Finding:
    """NVIDIA's, or its namesake on the package index."""
    found = find_apex()
    if found == "unrelated":
        return Finding("apex", "warning", explain(found), "pip uninstall apex")
    return Finding("apex", "ok" if found == "nvidia" else "note", explain(found))


def check_native(device: torch.device) -> Finding:
    """Built, and for this DALI: otherwise the loader costs several times the CPU time."""
    text = plugin.describe().removeprefix("native operators: ")
    if plugin.is_available() or device.type == "cuda":
        return Finding("native operators", "ok" if plugin.is_available() else "note", text)
    return Finding("native operators", "warning", text, plugin.REBUILD)


def check_kernels(device: torch.device) -> Finding:
    """Those in bf16 that `runtime.kernels` and `runtime.attention triton` would run here; plain torch does the rest."""
    found = ", ".join(name for name in TUNABLE if has_kernel(name, device, torch.bfloat16))
    if device.type == "cuda":
        why_not = why_not_on(device)
        text = f"plain torch is used on {why_not}" if why_not else f"Triton's: {found}"
    elif found:
        text = f"compiled for this CPU, {library.levels()[-1]} instructions: {found}"
    else:
        text = "none are compiled, so plain torch is used; they are where deit-fast is installed with a C++ compiler"
    return Finding("kernels", "ok" if found else "note", text)


def check_tuned(config: Config, device: torch.device) -> Finding:
    """What runtime.tuned comes to here."""
    try:
        tuned, why_not = find_tuned(config, device)
    except TunedFileError as error:
        return Finding("tuned", "failure", str(error), "deit-fast tune, or --runtime.tuned none")
    if tuned is not None:
        return Finding("tuned", "ok", f"{tuned.path}: {len(tuned.chosen)} choices, valid here")
    stale = "was made for" in why_not
    return Finding("tuned", "warning" if stale else "note", why_not, "deit-fast tune" if stale else "")


def check_first_weights(config: Config) -> list[Finding]:
    """A run that is fine-tuned reads them at its start."""
    path = config.model.init_checkpoint
    if not path:
        return []
    return [_check_path("first weights", Path(path), "model.init_checkpoint", "give the right path")]


def check_teacher(config: Config) -> list[Finding]:
    """Its weights have to be here, or timm downloads them at the start of the run."""
    distill = config.distill
    if distill.kind == "none":
        return []
    if distill.label_cache is not None:
        mend = "deit-fast teacher-cache writes it"
        return [_check_path("teacher", Path(distill.label_cache), "distill.label_cache", mend)]
    if distill.teacher_checkpoint is not None:
        path = Path(distill.teacher_checkpoint)
        return [_check_path("teacher", path, "distill.teacher_checkpoint", "give the right path")]
    text = f"the weights of distill.teacher {distill.teacher} are downloaded by timm, unless its cache has them"
    return [Finding("teacher", "note", f"{text}; without a network give --distill.teacher_checkpoint FILE")]


def _check_path(check: str, path: Path, key: str, mend: str) -> Finding:
    if path.exists():
        return Finding(check, "ok", f"{key} {path} is there")
    return Finding(check, "failure", f"{key} {path} does not exist", mend)
