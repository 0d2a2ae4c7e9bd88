"""`deit-fast bench loader`: the input pipeline, alone and against other people's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from deit_fast.budget import REQUIRED_IMAGES_PER_SECOND
from deit_fast.config_file import config_as_dict
from deit_fast.distributed import process_group
from deit_fast.open_images import open_images
from deit_fast.start_report import prepare_host
from deit_fast.tuned import apply_first_ranks_tuned

from .loader import time_loader
from .loader_stages import READ, bytes_per_image
from .options import measuring_parser, parse_measuring, publish, say
from .peers import FULL, PEERS, check_peers
from .photographs import PHOTOGRAPHS, with_images
from .records import build_record, rows_of
from .timing import OURS, Contender, Timings


def run(arguments: Sequence[str]) -> int:
    """Parses, measures, shows; ValueError for wrong use."""
    parser = measuring_parser("loader")
    parser.add_argument(
        "--images", type=int, default=PHOTOGRAPHS, help="images that are made when data.path is not given"
    )
    parser.add_argument("--images-per-turn", type=int | None, help="of one turn; default: 512, on a GPU 50 batches")
    parser.add_argument("--against", default="", metavar="PEER,PEER", help=f"of {', '.join(PEERS)}: in the same turns")
    parser.add_argument(
        "--packed", metavar="DIR", help="ours on it too: the same images by `deit-fast data pack`, shrunk or not"
    )
    config, options = parse_measuring(parser, arguments, "deit_tiny")
    against = [name for name in options.against.split(",") if name]
    check_peers(against)
    if options.images_per_turn is not None and options.images_per_turn < 1:
        raise ValueError(f"--images-per-turn must be at least 1, got {options.images_per_turn}")
    packed = Path(options.packed) if options.packed else None
    if packed is not None and not packed.is_dir():
        raise ValueError(f"--packed {packed} is no folder; `deit-fast data pack --output {packed}` makes it")
    with process_group(config.runtime.device) as ranks:
        config = apply_first_ranks_tuned(config, ranks)
        prepare_host(config, ranks)
        config, source = with_images(config, options.images, ranks)
        batch = config.runtime.batch_size_per_device
        count = max(2, (options.images_per_turn or images_per_turn(batch, ranks.device)) // batch)
        timings = time_loader(
            config,
            ranks,
            turns=options.turns,
            batches_per_turn=count,
            against=against,
            packed=packed,
            warm_up_turns=options.warm_up_turns,
        )
        title = f"loader, {config.model.image_size_px} px, batch {batch}: {source}"
        size = bytes_per_image(open_images(config.data, "train"))
        record = build_record(
            "loader", title, rows_of(timings), ranks.device, config=config_as_dict(config), bytes_per_image=size
        )
        publish(record, timings, ranks, options)
        if ranks.is_main:
            say_demand(timings, size)
    return 0


def images_per_turn(batch: int, device: torch.device) -> int:
    """On a GPU enough for what begins a turn, filling the pipeline, to be a small part of it."""
    return 50 * batch if device.type == "cuda" else 512


def say_demand(timings: Timings, bytes_per_image: float) -> None:
    """What the budget asks of disk and cores, at the sizes and CPU times measured here."""
    ours = next(timing for contender, timing in timings.items() if contender.workload == FULL)
    cores = ours.row()["cores_per_1000_images_per_second"]
    megabytes = bytes_per_image / 1e6
    read = timings[Contender(READ, OURS)].row()["images_per_second"]
    say(
        f"files of {1e3 * megabytes:,.0f} KB: read at {read * megabytes:,.0f} MB/s here, the budget asks "
        f"{REQUIRED_IMAGES_PER_SECOND * megabytes:,.0f} MB/s; the full recipe keeps {cores:.2f} cores busy for 1,000 "
        f"images/s, so the budget {cores * REQUIRED_IMAGES_PER_SECOND / 1e3:.2f} cores"
    )
