"""Throughput of the input pipeline against other people's: crop only, the full recipe, validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from deit_fast.config import Config
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.native_graph import choose_backend
from deit_fast.dali_pipelines.sampler import ValidationSampler
from deit_fast.data import open_train_and_val, train_loader, validation_loader
from deit_fast.distributed import Ranks
from deit_fast.open_images import open_images
from deit_fast.precision import choose_precision

from .loader_stages import DECODE, READ, bytes_per_image, count_images, our_train_turn, stage_turn
from .memory import MemoryMeter
from .peers import CROP, FULL, PEERS, VALIDATION, peer_turn, shown_name
from .timing import OURS, Contender, Prepare, Timings, time_in_turns

WORKLOADS = (READ, DECODE, CROP, FULL, VALIDATION)


class FullBatches(ValidationSampler):
    """As many images as a peer's turn: where the set is smaller, its images come again."""

    def __init__(self, num_images: int, *, batch_size: int, batches: int) -> None:
        super().__init__(batches * batch_size, batch_size=batch_size)
        self.num_images = num_images

    def images(self, batch: int) -> np.ndarray:
        """int64 [batch_size]."""
        return super().images(batch) % self.num_images


def our_backends(config: Config, ranks: Ranks) -> list[Literal["graph", "native"]]:
    """What data.backend asks for; where it is left to us, what is chosen first, and the graph beside it."""
    device = "gpu" if ranks.device.type == "cuda" else "cpu"
    chosen = choose_backend(config.data.backend, device)
    return [chosen, "graph"] if config.data.backend == "auto" and chosen != "graph" else [chosen]


def our_train_configs(config: Config) -> dict[Contender, Config]:
    """The training workloads of one backend; what is not the recipe says so in its name."""
    ours = f"{OURS} {config.data.backend}"
    recipe = replace(config.augment, geometry="exact")
    configs = {
        Contender(CROP, ours): replace(config, augment=replace(recipe, policy="none", erase_probability=0.0)),
        Contender(FULL, ours): replace(config, augment=recipe),
    }
    if config.data.backend == "graph":  # the native operators' exact geometry is the cheaper one: 0.97 against 1.15 ms
        bilinear = replace(recipe, geometry="bilinear")
        configs[Contender(FULL, f"{ours}, bilinear (not the recipe)")] = replace(config, augment=bilinear)
    if config.data.repeats > 1:
        same_rank = replace(config.data, repeats_placement="same_rank")
        name = f"{ours}, {config.data.repeats} views a decoding (not the recipe)"
        configs[Contender(FULL, name)] = replace(config, data=same_rank, augment=recipe)
    return configs


def our_packed_turns(
    config: Config, packed: Path, ranks: Ranks, precision: str, count: int
) -> dict[Contender, Prepare]:
    """Crops and the recipe on shards, named by the size of their files."""
    config = replace(config, data=replace(config.data, path=str(packed), repeats_placement="official"))
    images = open_images(config.data, "train")
    turns = {}
    for workload in (CROP, FULL):
        recipe = Contender(workload, f"{OURS} {config.data.backend}")
        loader = train_loader(our_train_configs(config)[recipe], images, ranks, precision)
        name = f"{recipe.name}, packed, {bytes_per_image(images) / 1e3:.0f} KB a file"
        turns[Contender(workload, name)] = our_train_turn(loader, count)
    return turns


def our_validation_turn(config: Config, images: ImageSet, ranks: Ranks, precision: str, count: int) -> Prepare:
    """A turn of `count` batches of the training batch's size."""
    batch_size = config.runtime.batch_size_per_device
    loader = validation_loader(
        config.data,
        replace(config.eval, batch_size_per_device=batch_size),
        images,
        config.model.image_size_px,
        ranks,
        precision,
    )
    loader.sampler = FullBatches(len(images), batch_size=batch_size, batches=count)
    return lambda: partial(count_images, iter(loader), ranks.device)


def time_loader(
    config: Config,
    ranks: Ranks,
    *,
    turns: int,
    batches_per_turn: int,
    against: Sequence[str] = (),
    packed: Path | None = None,
    warm_up_turns: int = 1,
) -> Timings:
    """Times our loader and `against`'s on data.path's images, as many threads as theirs have worker processes.

    packed: ours on this folder's training images too, which `deit-fast data pack` made of the same ones.
    """
    precision = choose_precision(config.runtime.precision, ranks.device)
    train_images, val_images = open_train_and_val(config.data)
    meter = MemoryMeter(ranks.device)
    loader = train_loader(config, train_images, ranks, precision)
    contenders: dict[Contender, Prepare] = {
        Contender(READ, OURS): stage_turn(loader, batches_per_turn, decodes=False),
        Contender(DECODE, OURS): stage_turn(loader, batches_per_turn, decodes=True),
    }
    for backend in our_backends(config, ranks):
        ours = replace(config, data=replace(config.data, backend=backend))
        for contender, variant in our_train_configs(ours).items():
            loader = train_loader(variant, train_images, ranks, precision)
            contenders[contender] = our_train_turn(loader, batches_per_turn)
        if packed is not None:
            contenders |= our_packed_turns(ours, packed, ranks, precision, batches_per_turn)
        contenders[Contender(VALIDATION, f"{OURS} {backend}")] = our_validation_turn(
            ours, val_images, ranks, precision, batches_per_turn
        )
    for peer in against:
        for workload in PEERS[peer].workloads:
            images = val_images if workload == VALIDATION else train_images
            contenders[Contender(workload, shown_name(peer))] = peer_turn(
                peer,
                workload,
                config,
                images,
                workers=config.data.num_threads or ranks.cores,
                batch_size=config.runtime.batch_size_per_device,
                batches=batches_per_turn,
            )
    ordered = dict(sorted(contenders.items(), key=lambda item: WORKLOADS.index(item[0].workload)))
    return time_in_turns(ordered, turns, warm_up_turns, ranks=ranks, meter=meter)
