"""The teacher's labels of a whole run, computed once: one file an epoch, read by view (see docs/teacher-cache.md).

Every view is a function of (seed, epoch, view) and its mixing of (seed, step, group), so what the teacher says of it
can be known before the run. Hard labels take 2 bytes a view; soft ones the k largest log-probabilities.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .fingerprint import Fingerprint, differing

PATTERN = "epoch_*.safetensors"


def shard_path(folder: Path, epoch: int) -> Path:
    """The file of an epoch (from 0)."""
    return folder / f"epoch_{epoch:04d}.safetensors"


@dataclass(frozen=True)
class EpochLabels:
    """Hard: labels uint16 [V]. Soft: indices uint16 [V, k] and log_probs float16 [V, k], of the largest k classes."""

    tensors: dict[str, Tensor]

    @staticmethod
    def empty(kind: str, views: int, top_k: int) -> EpochLabels:
        """Zeros, to be filled by `put`; int32 and float32 until they are written, which collectives can sum."""
        if kind == "hard":
            return EpochLabels({"labels": torch.zeros(views, dtype=torch.int32)})
        return EpochLabels(
            {"indices": torch.zeros(views, top_k, dtype=torch.int32), "log_probs": torch.zeros(views, top_k)}
        )

    def put(self, views: Tensor, teacher_logits: Tensor, temperature: float) -> None:
        """Takes the teacher's answer for these views, [B, C] -> rows `views` [B]."""
        if "labels" in self.tensors:
            self.tensors["labels"][views] = teacher_logits.argmax(dim=1).cpu().int()
            return
        log_probs = torch.log_softmax(teacher_logits.float() / temperature, dim=1)
        best = log_probs.topk(self.tensors["indices"].shape[1], dim=1)
        self.tensors["indices"][views] = best.indices.cpu().int()
        self.tensors["log_probs"][views] = best.values.cpu()

    def write(self, folder: Path, epoch: int, fingerprint: Fingerprint, bad_images: list[int]) -> Path:
        """Whole or not at all: temporary file, fsync, rename."""
        path = shard_path(folder, epoch)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        small = {
            name: tensor.to(torch.float16 if tensor.is_floating_point() else torch.uint16)
            for name, tensor in self.tensors.items()
        }
        metadata = {"fingerprint": fingerprint.as_json(), "bad_images": ",".join(map(str, bad_images))}
        try:
            save_file(small, partial, metadata=metadata)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path


def read_shard(path: Path, fingerprint: Fingerprint) -> dict[str, Tensor]:
    """An epoch's tensors; ValueError for a missing, damaged or foreign file."""
    bad_images_of(path, fingerprint)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary


def bad_images_of(path: Path, fingerprint: Fingerprint) -> list[int]:
    """The images that were bad when an epoch's file was made, by its head alone; ValueError as `read_shard`."""
    if not path.is_file():
        raise ValueError(f"distill.label_cache holds no {path.name}; `deit-fast teacher-cache` makes it")
    with _opened(path) as file:
        metadata = file.metadata() or {}
    line = differing(Fingerprint.from_json(metadata.get("fingerprint", "{}")), fingerprint)
    if line is not None:
        raise ValueError(f"{path} was made for another run: {line}; its labels belong to other images")
    return [int(image) for image in metadata.get("bad_images", "").split(",") if image]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """safetensors' file, which compares the file's length with its head; ValueError for a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read; delete it and run `deit-fast teacher-cache` again") from error


class CachedLabels:
    """Answers for the teacher: hard labels int64 [B], or logits [B, C] that give the cached distribution back."""

    def __init__(
        self, folder: Path, fingerprint: Fingerprint, *, epochs: int, steps_per_epoch: int, num_classes: int,
        temperature: float,
    ) -> None:  # fmt: skip
        """Reads the head of every epoch's file, so that a cache of another run is refused at the start.

        ValueError, naming what differs, or the first file that is missing.
        """
        self.folder, self.fingerprint, self.steps_per_epoch = folder, fingerprint, steps_per_epoch
        self.num_classes, self.temperature = num_classes, temperature
        bad: set[int] = set()
        for epoch in range(epochs):
            bad |= set(bad_images_of(shard_path(folder, epoch), fingerprint))
        self.bad_images = sorted(bad)
        self._epoch, self._tensors = -1, {}  # type: ignore[var-annotated]

    def read(self, step: int, views: Tensor) -> Tensor:
        """The answer for these views of a step of the run."""
        epoch = step // self.steps_per_epoch
        if epoch != self._epoch:
            self._epoch, self._tensors = epoch, read_shard(shard_path(self.folder, epoch), self.fingerprint)
        if "labels" in self._tensors:
            return torch.from_numpy(self._tensors["labels"].numpy()[views.numpy()].astype(np.int64))
        indices = torch.from_numpy(self._tensors["indices"].numpy()[views.numpy()].astype(np.int64))
        log_probs = self._tensors["log_probs"][views].float()
        return self.temperature * spread(indices, log_probs, self.num_classes)


def spread(indices: Tensor, log_probs: Tensor, num_classes: int) -> Tensor:
    """[B, k] -> log-probabilities [B, C]: what the k largest leave is shared evenly by the others."""
    k = indices.shape[1]
    rest = (1 - log_probs.exp().sum(dim=1, keepdim=True)).clamp(min=1e-8) / max(1, num_classes - k)
    return rest.log().expand(-1, num_classes).scatter(1, indices, log_probs)
