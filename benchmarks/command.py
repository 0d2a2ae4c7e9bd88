"""`deit-fast bench loader|step|kernels|parity`: what was measured here, and how it stands against the budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from deit_fast.budget import BUDGET_DEVICES, REQUIRED_IMAGES_PER_SECOND, projected_days
from deit_fast.config import Config
from deit_fast.config_file import add_config_arguments, config_as_dict, config_parser, parse_arguments, parse_config
from deit_fast.distributed import Ranks, process_group
from deit_fast.environment import describe_environment
from deit_fast.tuned import apply_tuned

from .peers import PEERS, check_peers
from .step import WHOLE
from .timing import OURS, Contender, Timing

Timings = dict[Contender, Timing]

PHOTOGRAPHS = Path("runs/bench/photographs")
TABLE_WIDTH = 140
"""Characters; a file or a pipe has no width of its own, and a name cut short is worth little."""
DEFAULT_RECIPES = {"loader": "deit_tiny", "step": "deit_tiny_distilled"}


def run(arguments: Sequence[str]) -> int:
    """Parses, measures, shows; ValueError for wrong use."""
    if arguments and arguments[0] == "parity":
        return _parity(arguments[1:])
    if arguments and arguments[0] == "kernels":
        from .kernels_command import run_kernels

        return run_kernels(arguments[1:])
    if not arguments or arguments[0] not in DEFAULT_RECIPES:
        if arguments and arguments[0] in ("-h", "--help"):
            Console().print("deit-fast bench loader|step|kernels|parity [--help]", markup=False, highlight=False)
            return 0
        raise ValueError(
            "bench takes what to measure: deit-fast bench loader, bench step, bench kernels, or bench parity"
        )
    what, *rest = arguments
    parser = config_parser(f"deit-fast bench {what}", "Measures on this machine, in interleaved turns.")
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each contender, after one to warm up")
    if what == "loader":
        parser.add_argument("--images", type=int, default=640, help="images that are made when data.path is not given")
        parser.add_argument("--images-per-turn", type=int, default=512, help="images of one turn")
        parser.add_argument(
            "--against", default="", metavar="PEER,PEER", help=f"of {', '.join(PEERS)}: in the same turns"
        )
    parser.add_argument("--json", metavar="FILE", help="append the result as one JSON line")
    add_config_arguments(parser)
    if not any(argument.split("=")[0] == "--config" for argument in rest):
        rest = ["--config", DEFAULT_RECIPES[what], *rest]
    config, options = parse_config(parser, rest)
    with process_group(config.runtime.device) as ranks:
        config = apply_tuned(config, ranks.device)
        if what == "loader":
            title, timings = _loader(config, ranks, options)
        else:
            title, timings = _step(config, ranks, options)
    show(title, timings)
    if what == "step":
        show_verdict(timings[Contender(WHOLE, OURS)].row()["images_per_second"], config, ranks)
    if options.json:
        rows = [{**contender._asdict(), **timing.row()} for contender, timing in timings.items()]
        append_row(options.json, {"bench": what, "rows": rows, "config": config_as_dict(config)}, ranks.device)
    return 0


def _loader(config: Config, ranks: Ranks, options: Any) -> tuple[str, Timings]:
    from .loader import time_loader
    from .photographs import write_photographs

    against = [name for name in options.against.split(",") if name]
    check_peers(against)
    source = config.data.path
    if not config.data.path:
        path = PHOTOGRAPHS.with_name(f"photographs-{options.images}")
        path.parent.mkdir(parents=True, exist_ok=True)
        config = replace(config, data=replace(config.data, path=str(write_photographs(path, options.images))))
        source = f"{options.images} ImageNet-like JPEGs made from photographs of scikit-image and scikit-learn ({path})"
    batch = config.runtime.batch_size_per_device
    count = max(2, options.images_per_turn // batch)
    timings = time_loader(config, ranks, turns=options.turns, batches_per_turn=count, against=against)
    return f"loader, {config.model.image_size_px} px, batch {batch}: {source}", timings


def _parity(arguments: Sequence[str]) -> int:
    """Prints how the operations differ from timm's: no speed, so nothing of the configuration matters but the size."""
    parser = config_parser("deit-fast bench parity", "Our augmentation against timm's and Pillow's, as Markdown.")
    parser.add_argument("--model.image_size_px", type=int, default=224, help="side of the images that are compared")
    parser.add_argument("--json", metavar="FILE", help="append the rows as one JSON line")
    options = parse_arguments(parser, arguments)
    from deit_fast.dali_pipelines.native import plugin

    from . import native_parity, parity

    size, console = options.model.image_size_px, Console(soft_wrap=True)
    rows = list(parity.parity_rows(size))
    console.print(parity.markdown_table(rows), markup=False, highlight=False)
    native_rows = native_parity.table(size) if plugin.is_available() else []
    console.print(f"\n{plugin.describe()}\n", markup=False, highlight=False)
    if native_rows:
        console.print(native_parity.markdown_table(native_rows), markup=False, highlight=False)
    if options.json:
        record = {
            "bench": "parity",
            "graph": [asdict(row) for row in rows],
            "native": [row._asdict() for row in native_rows],
        }
        append_row(options.json, record, torch.device("cpu"))
    return 0


def append_row(path: str, record: dict[str, Any], device: torch.device) -> None:
    """One JSON line with the environment it was measured in."""
    with Path(path).open("a") as file:
        file.write(json.dumps({**record, "environment": describe_environment(device)}) + "\n")


def _step(config: Config, ranks: Ranks, options: Any) -> tuple[str, Timings]:
    from .step import time_step

    timings = time_step(config, ranks, turns=options.turns)
    batch = config.runtime.batch_size_per_device
    return f"step on synthetic images, {config.model.name}, batch {batch}", timings


def show(title: str, timings: Timings) -> None:
    """Prints the table; the last column is the CPU time as a multiple of the workload's first, round by round."""
    table = Table(title=title, title_justify="left")
    for heading in ("medians", "by", "images/s", "min - max", "CPU-ms/image", "x first"):
        table.add_column(heading, justify="left" if heading in ("medians", "by") else "right", no_wrap=True)
    firsts: dict[str, Timing] = {}
    for contender, timing in timings.items():
        row = timing.row()
        first = firsts.setdefault(contender.workload, timing)
        table.add_row(
            contender.workload,
            contender.name,
            f"{row['images_per_second']:,.1f}",
            f"{row['images_per_second_min']:,.1f} - {row['images_per_second_max']:,.1f}",
            f"{row['cpu_ms_per_image']:.2f}",
            "" if timing is first else f"{first.times_cheaper_than(timing):.2f}",
        )
    Console(width=max(TABLE_WIDTH, Console().width)).print(table)


def show_verdict(images_per_second: float, config: Config, ranks: Ranks) -> None:
    """Holds a measured step against the budget, and says when the model is not the budget's."""
    required = REQUIRED_IMAGES_PER_SECOND / BUDGET_DEVICES
    text = (
        f"required {REQUIRED_IMAGES_PER_SECOND:,.1f} images/s ({required:,.1f} on each of {BUDGET_DEVICES}); measured "
        f"{images_per_second:,.1f} on one {ranks.device.type} device: {images_per_second / required:.3f} of its share, "
        f"{projected_days(images_per_second):,.1f} days for 300 epochs of ImageNet-1k on this one device"
    )
    if not config.model.name.startswith("deit_base"):
        text += f". The budget is DeiT-B's; this is {config.model.name}"
    Console(soft_wrap=True).print(text, highlight=False)
