"""What every measuring verb takes on its command line, and what it does with the result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console

from deit_fast.bench_records import Record, append_record
from deit_fast.config import Config
from deit_fast.config_file import add_config_arguments, config_parser, parse_config
from deit_fast.distributed import Ranks, choose_device

from .table import show_table
from .timing import Timings

Options = Any
"""What jsonargparse gives: one attribute an option."""


class Turns(NamedTuple):
    """How often each contender is run."""

    warm_up: int
    measured: int


FEW = Turns(1, 5)
MANY_STEPS = Turns(11, 100)
"""For single steps on a GPU: what compiles and what picks its algorithm has settled, and there is a 99th percentile."""


def measuring_parser(what: str) -> Any:
    """The parser of `deit-fast bench WHAT`, with the options that all measuring verbs share."""
    parser = config_parser(f"deit-fast bench {what}", "Measures on this machine, in interleaved turns.")
    parser.add_argument("--turns", type=int, help="measured turns of each contender; default: 5; a step on a GPU 100")
    parser.add_argument("--warm-up-turns", type=int, help="turns before, not measured; default: 1; a step on a GPU 11")
    parser.add_argument("--json", metavar="FILE", help="append the result as one JSON line")
    return parser


def parse_measuring(
    parser: Any, arguments: Sequence[str], default_recipe: str, on_gpu: Turns = FEW
) -> tuple[Config, Options]:
    """The configuration, by `default_recipe` where no --config is given, and the other options.

    on_gpu: the turns that are taken on a GPU unless the options say otherwise.
    """
    add_config_arguments(parser)
    config, options = parse_config(parser, arguments, default_recipe)
    device = choose_device(config.runtime.device, int(os.environ.get("LOCAL_RANK", "0")))
    turns = on_gpu if device.type == "cuda" else FEW
    if options.turns is None:
        options.turns = turns.measured
    if options.warm_up_turns is None:
        options.warm_up_turns = turns.warm_up
    if options.turns < 1 or options.warm_up_turns < 0:
        raise ValueError(f"--turns must be at least 1 and --warm-up-turns at least 0, got {options.turns} and "
                         f"{options.warm_up_turns}")  # fmt: skip
    return config, options


def publish(record: Record, timings: Timings, ranks: Ranks, options: Options) -> None:
    """Shows a result on the first rank, and appends it where --json says."""
    if not ranks.is_main:
        return
    show_table(record["title"], timings)
    if options.json:
        append_record(options.json, record)


def say(text: str) -> None:
    """A line for people, wrapped by their terminal."""
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
