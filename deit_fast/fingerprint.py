"""What the teacher's labels of a run depend on, as a list of named values that two runs must have in common."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.native_graph import choose_backend
from deit_fast.kernels.choice import choose

from .config import Config
from .data import hardware_decoder_share
from .teacher import teacher_runtime
from .weights import read_weights


@dataclass(frozen=True)
class Fingerprint:
    """Named values; the same for two runs whose teacher sees and says the same."""

    values: dict[str, Any]

    def as_json(self) -> str:
        """For a file's metadata."""
        return json.dumps(self.values, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Fingerprint:
        """Back from `as_json`."""
        return Fingerprint(json.loads(text))


def differing(made: Fingerprint, wanted: Fingerprint) -> str | None:
    """The first value that differs, with both; None when all are the same."""
    for name in sorted(made.values.keys() | wanted.values.keys()):
        one, other = made.values.get(name), wanted.values.get(name)
        if one != other:
            return f"{name} was {one}, here it is {other}"
    return None


def fingerprint(config: Config, images: ImageSet, global_batch_size: int, precision: str, device: str) -> Fingerprint:
    """All that changes what the teacher sees (data, order, augmentation, mixing) or says (weights, arithmetic).

    Not in it: how many epochs are trained, how the global batch is split over devices, the student, its optimizer.
    """
    mix = {name: value for name, value in asdict(config.mix).items() if name != "label_smoothing"}
    runtime, distill = config.runtime, config.distill
    how = teacher_runtime(runtime, precision)
    gpu_decodes = device == "cuda" and config.data.decoder != "cpu"
    values: dict[str, Any] = {
        "data": hash_images(images),
        "data.repeats": config.data.repeats,
        "data.repeats_placement": config.data.repeats_placement,
        "data.backend": choose_backend(config.data.backend, "gpu" if device == "cuda" else "cpu"),
        "data.decoder": device if config.data.decoder == "auto" else config.data.decoder,
        "data.hardware_decoder_share": hardware_decoder_share(config.data) if gpu_decodes else None,
        "DALI": dali_version(),
        "model.image_size_px": config.model.image_size_px,
        **{f"augment.{name}": value for name, value in asdict(config.augment).items()},
        **{f"mix.{name}": value for name, value in mix.items()},
        "global batch": global_batch_size,
        "runtime.seed": runtime.seed,
        "device": device,
        "distill.kind": distill.kind,
        "distill.temperature": distill.temperature if distill.kind == "soft" else None,
        "distill.teacher": distill.teacher,
        "teacher weights": hash_teacher(distill.teacher_checkpoint),
        "distill.teacher_image_size_px": distill.teacher_image_size_px,
        "precision": precision,
        "batch preparation": choose("batch_prep", runtime.kernels),
        **{f"runtime.teacher_{name}": value for name, value in how._asdict().items()},
    }
    return Fingerprint(json.loads(json.dumps(values)))  # as it will be read back: tuples are lists


def hash_images(images: ImageSet) -> str:
    """Over the images in their order: label, and what the set knows them by, wherever it lies."""
    digest = hashlib.sha256()
    for image, label in enumerate(images.labels.tolist()):
        digest.update(os.fsencode(images.identity(image)) + f"\0{label}\n".encode())
    return digest.hexdigest()[:16]


def hash_teacher(checkpoint: str | None) -> str:
    """Over names and values of the weights; for timm's own, whose name says which they are, the version of timm."""
    if checkpoint is None:
        return f"timm {metadata.version('timm')}"
    digest = hashlib.sha256()
    for name, tensor in sorted(read_weights(checkpoint).state_dict.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def dali_version() -> str:
    """Pixels may differ between versions."""
    for package in ("nvidia-dali-cuda120", "nvidia-dali-cuda130"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
