"""What `deit-fast tune` measured here, taken over by a run wherever its configuration leaves the choice to us."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import yaml

from deit_fast.kernels.cpu import library

from . import __version__
from .config import Config, DataConfig, RuntimeConfig
from .distributed import CORES_AT_START, Ranks
from .environment import cpu_name
from .fingerprint import dali_version

TUNABLE_KEYS = (
    "data.backend",
    "data.decoder",
    "data.hardware_decoder_share",
    "data.num_threads",
    "data.prefetch",
    "runtime.precision",
    "runtime.attention",
    "runtime.kernels",
    "runtime.compile",
    "runtime.cuda_graphs",
    "runtime.teacher_precision",
    "runtime.teacher_compile",
    "runtime.teacher_layout",
    "runtime.teacher_fold",
)
"""What may stand in a tuned file: how a run is computed, never what it learns."""
LABEL_KEYS = (
    "data.backend",
    "data.decoder",
    "data.hardware_decoder_share",
    "runtime.precision",
    "runtime.kernels",
    "runtime.teacher_",
)
"""On which the teacher's labels depend: with a cache of labels these stay as they were when it was made."""


class TunedFileError(ValueError):
    """A tuned file that was named and cannot be used, with the mend."""


@dataclass(frozen=True)
class Tuned:
    """A tuned file: what it is valid for, and the chosen value of each key."""

    path: Path
    valid_for: dict[str, Any]
    chosen: dict[str, Any]


def conditions(config: Config, device: torch.device) -> dict[str, Any]:
    """What a measurement holds for: device, versions, model. Plain values, as YAML gives them back."""
    return {
        "device": device_name(device),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "deit_fast": __version__,
        "torch": str(torch.__version__),
        "DALI": dali_version(),
        "timm": metadata.version("timm"),
        "CPU kernels": cpu_kernels() if device.type == "cpu" else None,
        "model.name": config.model.name,
        "model.image_size_px": config.model.image_size_px,
        "distill.teacher": None if config.distill.kind == "none" else config.distill.teacher,
    }


def cpu_kernels() -> str:
    """Which compiled kernels there are: those of a package installed without a compiler are none."""
    return " ".join([*library.levels()[-1:], *(["attention"] if library.runs_attention() else [])]) or "none"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def tuned_path(config: Config, device: torch.device) -> Path:
    """Where the file of this device and model lies by default: in the user's cache (XDG_CACHE_HOME)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    teacher = "" if config.distill.kind == "none" else f"_{config.distill.teacher}"
    name = f"{config.model.name}_{config.model.image_size_px}px{teacher}"
    return cache / "deit_fast" / "tuned" / _as_file_name(device_name(device)) / f"{_as_file_name(name)}.yaml"


def _as_file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def read_tuned(path: Path) -> Tuned:
    """Reads a tuned file; TunedFileError when it is none, or names a key or value that there is not."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TunedFileError(f"runtime.tuned {path} cannot be read ({type(error).__name__}); {AGAIN}") from error
    parts = [content.get(name) for name in ("valid_for", "chosen")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise TunedFileError(f"runtime.tuned {path} is not a tuned file; {AGAIN}")
    tuned = Tuned(path, content["valid_for"], content["chosen"])
    for key, value in tuned.chosen.items():
        if key not in TUNABLE_KEYS:
            raise TunedFileError(f"runtime.tuned {path} chooses {key}, which cannot be tuned; {AGAIN}")
        if not may_be(key, value):
            wrong = f"{as_text(value)} for {key}"
            raise TunedFileError(f"runtime.tuned {path} chooses {wrong}, which it cannot be; {AGAIN}")
    return tuned


def may_be(key: str, value: Any) -> bool:
    """Whether the type of `section.key` takes this value."""
    section, name = key.split(".")
    kind = get_type_hints({"data": DataConfig, "runtime": RuntimeConfig}[section])[name]
    kinds = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    return any(value in get_args(one) if get_origin(one) is Literal else type(value) is one for one in kinds)


AGAIN = "write it by `deit-fast tune`"


def why_refused(tuned: Tuned, here: dict[str, Any]) -> str | None:
    """The first condition that does not hold here; None when the file is valid."""
    for name, value in here.items():
        made_for = tuned.valid_for.get(name)
        if made_for != value:
            return f"{tuned.path} was made for {name} {made_for}, here it is {value}"
    return None


def find_tuned(config: Config, device: torch.device) -> tuple[Tuned | None, str]:
    """The tuned file that runtime.tuned comes to, or None with the reason.

    TunedFileError for a file that was named, but is missing or made for another device, version or model; what lies in
    the cache and does not fit is only told.
    """
    asked = config.runtime.tuned
    if asked == "none":
        return None, "runtime.tuned is none"
    path = tuned_path(config, device) if asked == "auto" else Path(asked)
    if not path.is_file():
        if asked != "auto":
            raise TunedFileError(f"runtime.tuned {path} does not exist; {AGAIN}, or use --runtime.tuned auto")
        return None, f"this device and model were not tuned; `deit-fast tune` would write {path}"
    try:
        tuned = read_tuned(path)
    except TunedFileError as error:
        if asked != "auto":
            raise
        return None, str(error)
    refused = why_refused(tuned, conditions(config, device))
    if refused is None:
        return tuned, ""
    if asked != "auto":
        raise TunedFileError(f"runtime.tuned {refused}; tune again by `deit-fast tune`, or use --runtime.tuned none")
    return None, f"{refused}; tune again by `deit-fast tune`"


def apply_tuned(config: Config, device: torch.device) -> Config:
    """The configuration with what is auto or null replaced by what was measured here; what the user set stays.

    TunedFileError for a file named in runtime.tuned that is not valid here.
    """
    return with_tuned(config, find_tuned(config, device)[0])


def apply_first_ranks_tuned(config: Config, ranks: Ranks) -> Config:
    """`apply_tuned` with the file that the first rank finds: by other files, nodes would train differently."""
    return with_tuned(config, ranks.from_main(lambda: find_tuned(config, ranks.device)[0]))


def with_tuned(config: Config, tuned: Tuned | None) -> Config:
    """The configuration with what a tuned file chose for keys that were left to us."""
    if tuned is None:
        return config
    taken = {key: value for key, value in tuned.chosen.items() if is_left_to_us(config, key)}
    if config.distill.label_cache is not None:
        taken = {key: value for key, value in taken.items() if not key.startswith(LABEL_KEYS)}
    if taken.get("data.num_threads", 0) > share_of_cores():
        del taken["data.num_threads"]  # measured for fewer processes on this machine
    changed = with_values(config, taken)
    runtime = changed.runtime
    if runtime.cuda_graphs and (not runtime.compile or runtime.checkpoint_activations):  # the user's choices exclude it
        return with_values(changed, {"runtime.cuda_graphs": None})
    return changed


def share_of_cores() -> int:
    """CPU cores for each of the processes that torchrun started on this machine."""
    return max(1, CORES_AT_START // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def value_of(config: Config, key: str) -> Any:
    """The value of `section.key`."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def is_left_to_us(config: Config, key: str) -> bool:
    """Whether the user left the choice of a tunable key open."""
    return value_of(config, key) in ("auto", None)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The configuration with other values of some `section.key`."""
    for section in fields(Config):
        chosen = {key.split(".")[1]: value for key, value in values.items() if key.split(".")[0] == section.name}
        config = replace(config, **{section.name: replace(getattr(config, section.name), **chosen)})
    return config


def describe_tuned(config: Config, device: torch.device) -> str:
    """One line for the start of a run, from the configuration after `apply_tuned`."""
    tuned, why_not = find_tuned(config, device)
    if tuned is None:
        return f"tuned: no: {why_not}"
    used = {key: value for key, value in tuned.chosen.items() if value_of(config, key) == value}
    text = ", ".join(f"{key} {as_text(value)}" for key, value in used.items()) or "nothing"
    others = [key for key in tuned.chosen if key not in used]
    for what, left_open in (("set otherwise", False), ("not taken over", True)):
        if keys := [key for key in others if is_left_to_us(config, key) == left_open]:
            text += f"; {what}: {', '.join(keys)}"
    return f"tuned: {text} ({tuned.path})"


def as_text(value: Any) -> str:
    """As it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
