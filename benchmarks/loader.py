"""Throughput of the input pipeline by what it does: crop only, the full recipe, validation."""

from __future__ import annotations

from dataclasses import replace

from deit_fast.config import Config
from deit_fast.dali_pipelines.loader import TrainLoader
from deit_fast.data import open_train_and_val, train_loader, validation_loader
from deit_fast.distributed import Ranks
from deit_fast.precision import choose_precision

from .timing import Timing, Turn, time_in_turns


def take_batches(loader: TrainLoader, count: int) -> Turn:
    """A turn of `count` batches from a pipeline of its own: nothing is prepared in another contender's turn."""

    def turn() -> int:
        return sum(len(batch.labels) for batch in loader.batches(0, count))

    return turn


def time_loader(config: Config, ranks: Ranks, *, turns: int, batches_per_turn: int) -> dict[str, Timing]:
    """Times decode + crop + flip, the full recipe, it with bilinear geometry, and validation on data.path's images."""
    precision = choose_precision(config.runtime.precision, ranks.device)
    train_images, val_images = open_train_and_val(config.data)
    recipe = config.augment
    variants = {
        "decode + crop + flip": replace(recipe, policy="none", erase_probability=0.0),
        "full recipe": replace(recipe, geometry="exact"),
        "bilinear geometry: not the recipe": replace(recipe, geometry="bilinear"),
    }
    contenders: dict[str, Turn] = {}
    for name, augment in variants.items():
        loader = train_loader(replace(config, augment=augment), train_images, ranks, precision)
        contenders[name] = take_batches(loader, batches_per_turn)
    validation = validation_loader(config.data, config.eval, val_images, config.model.image_size_px, ranks, precision)
    contenders["validation"] = lambda: sum(len(batch.labels) for batch in validation)
    return time_in_turns(contenders, turns)
