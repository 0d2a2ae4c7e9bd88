"""`deit-fast teacher-cache`: runs loader and teacher over the epochs of a run and keeps what the teacher says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .build_step import live_teacher
from .config import Config
from .config_rules import check_config
from .data import global_batch_size, open_images, train_loader
from .distributed import Ranks
from .fingerprint import Fingerprint, fingerprint
from .label_cache import EpochLabels, bad_images_of, shard_path
from .precision import choose_precision
from .prepare_batch import build_prepare


def parse_epochs(text: str, epochs: int) -> range:
    """`10:20` -> epochs 10 to 19, counted from 0; an end may be left out. ValueError for anything else."""
    first, colon, last = text.partition(":")
    try:
        chosen = range(int(first or 0), min(epochs, int(last or epochs)) if colon else int(first) + 1)
    except ValueError:
        chosen = range(0)
    if not chosen or chosen[0] < 0 or chosen[-1] >= epochs:
        raise ValueError(f"--epochs {text}: expected FIRST:LAST within 0:{epochs} (schedule.epochs), LAST excluded")
    return chosen


def write_label_cache(
    config: Config, ranks: Ranks, folder: Path, epochs: range, top_k: int, say: Callable[[str], None]
) -> int:
    """Writes the files of these epochs that are not there yet, over all ranks together; returns how many."""
    check_config(config)
    if config.distill.kind == "none":
        raise ValueError("distill.kind is none: there is no teacher to ask; use a recipe with distillation")
    precision = choose_precision(config.runtime.precision, ranks.device)
    images = open_images(config.data, "train")
    batch_size = global_batch_size(config, ranks)
    made_for = fingerprint(config, images, batch_size, precision, ranks.device.type)
    loader = train_loader(config, images, ranks, precision)
    if config.distill.kind == "soft" and not 1 <= top_k <= len(images.classes):
        raise ValueError(f"--top-k must be from 1 to the number of classes, {len(images.classes)}, got {top_k}")
    teacher = live_teacher(config, len(images.classes), ranks, precision)
    mix = build_prepare(config, None, teacher_looks=True, precision=precision)
    steps = loader.sampler.steps_per_epoch
    missing = [epoch for epoch in epochs if not is_made(folder, epoch, made_for)]
    ranks.barrier()  # all have looked before the first writes
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in missing:
        labels = EpochLabels.empty(config.distill.kind, steps * batch_size, top_k)
        for step, batch in enumerate(loader.batches(epoch * steps, (epoch + 1) * steps), start=epoch * steps):
            mixed, _ = mix(batch, step, loader.sampler.groups(step))
            labels.put(batch.views, teacher(mixed.teacher), config.distill.temperature)
        bad = torch.zeros(len(images), dtype=torch.int32)
        bad[sorted(loader.substitutes.bad)] = 1
        for tensor in [*labels.tensors.values(), bad]:  # every view is some rank's, and zero elsewhere
            tensor.copy_(ranks.sum(tensor.to(ranks.device)).cpu())
        if ranks.is_main:
            labels.write(folder, epoch, made_for, bad.nonzero().flatten().tolist())
            say(f"epoch {epoch}: {steps * batch_size:,} labels")
    return len(missing)


def is_made(folder: Path, epoch: int, made_for: Fingerprint) -> bool:
    """Whether an epoch's file is there; ValueError when it is another run's."""
    path = shard_path(folder, epoch)
    if not path.is_file():
        return False
    bad_images_of(path, made_for)
    return True


def compare_caches(one: Path, other: Path) -> dict[str, float]:
    """The share of views whose (top) label differs between two caches, over the epochs that both have.

    This is what a different decoder, device or precision costs. ValueError when no epoch is in both.
    """
    views = differ = 0
    for path in sorted(one.glob("epoch_*.safetensors")):
        if not (other / path.name).is_file():
            continue
        labels = [_top_labels(folder / path.name) for folder in (one, other)]
        if labels[0].shape != labels[1].shape:
            raise ValueError(f"{path.name} has {len(labels[0])} labels in {one}, {len(labels[1])} in {other}")
        views += len(labels[0])
        differ += int((labels[0] != labels[1]).sum())
    if not views:
        raise ValueError(f"{one} and {other} have no epoch in common")
    return {"views": views, "differing": differ, "share": differ / views}


def _top_labels(path: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    tensors = load_file(path)
    return tensors["labels"].int() if "labels" in tensors else tensors["indices"][:, 0].int()
