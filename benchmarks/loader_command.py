"""`deit-fast bench loader`: the input pipeline, alone and against other people's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deit_fast.config import Config
from deit_fast.config_file import config_as_dict
from deit_fast.distributed import process_group

from .loader import time_loader
from .options import measuring_parser, parse_measuring, publish
from .peers import PEERS, check_peers
from .photographs import write_photographs
from .records import build_record, rows_of

PHOTOGRAPHS = Path("runs/bench/photographs")


def run(arguments: Sequence[str]) -> int:
    """Parses, measures, shows; ValueError for wrong use."""
    parser = measuring_parser("loader", turns=5)
    parser.add_argument("--images", type=int, default=640, help="images that are made when data.path is not given")
    parser.add_argument("--images-per-turn", type=int, default=512, help="images of one turn")
    parser.add_argument("--against", default="", metavar="PEER,PEER", help=f"of {', '.join(PEERS)}: in the same turns")
    config, options = parse_measuring(parser, arguments, "deit_tiny")
    against = [name for name in options.against.split(",") if name]
    check_peers(against)
    with process_group(config.runtime.device) as ranks:
        config, source = with_images(config, options.images)
        batch = config.runtime.batch_size_per_device
        count = max(2, options.images_per_turn // batch)
        timings = time_loader(config, ranks, turns=options.turns, batches_per_turn=count, against=against)
        title = f"loader, {config.model.image_size_px} px, batch {batch}: {source}"
        record = build_record("loader", title, rows_of(timings), ranks.device, config=config_as_dict(config))
        publish(record, timings, ranks, options)
    return 0


def with_images(config: Config, count: int) -> tuple[Config, str]:
    """The configuration with images to read, made where data.path names none, and what they are, in words."""
    if config.data.path:
        return config, config.data.path
    path = PHOTOGRAPHS.with_name(f"photographs-{count}")
    path.parent.mkdir(parents=True, exist_ok=True)
    config = replace(config, data=replace(config.data, path=str(write_photographs(path, count))))
    return config, f"{count} ImageNet-like JPEGs made from photographs of scikit-image and scikit-learn ({path})"
