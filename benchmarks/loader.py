"""Throughput of the input pipeline by what it does: crop only, the full recipe, validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deit_fast.config import Config
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.data import open_train_and_val, train_loader, validation_loader
from deit_fast.distributed import Ranks
from deit_fast.precision import choose_precision

from .timing import Timing, Turn, time_in_turns


def take_batches(batches: Iterator[Batch], count: int) -> Turn:
    """A turn that takes `count` batches and lets them go."""

    def turn() -> int:
        return sum(len(next(batches).labels) for _ in range(count))

    return turn


def time_loader(config: Config, ranks: Ranks, *, turns: int, batches_per_turn: int) -> dict[str, Timing]:
    """Times decode + crop + flip, the full recipe with both geometries, and validation on data.path's images."""
    precision = choose_precision(config.runtime.precision, ranks.device)
    train_images, val_images = open_train_and_val(config.data)
    recipe = config.augment
    variants = {
        "decode + crop + flip": replace(recipe, policy="none", erase_probability=0.0),
        "full recipe, geometry exact": replace(recipe, geometry="exact"),
        "full recipe, geometry bilinear (not the recipe's)": replace(recipe, geometry="bilinear"),
    }
    contenders: dict[str, Turn] = {}
    for name, augment in variants.items():
        loader = train_loader(replace(config, augment=augment), train_images, ranks, precision)
        contenders[name] = take_batches(loader.batches(0, 10**9), batches_per_turn)
    loader = validation_loader(
        config.data, config.eval, val_images, config.model.image_size_px, ranks, precision
    )
    contenders["validation"] = lambda: sum(len(batch.labels) for batch in loader)
    return time_in_turns(contenders, turns)
