"""What every measuring verb takes on its command line, and what it does with the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from deit_fast.config import Config
from deit_fast.config_file import add_config_arguments, config_parser, parse_config
from deit_fast.distributed import Ranks

from .records import Record, append_record
from .table import show_table
from .timing import Timings

Options = Any
"""What jsonargparse gives: one attribute an option."""


def measuring_parser(what: str, turns: int) -> Any:
    """The parser of `deit-fast bench WHAT`, with the options that all measuring verbs share."""
    parser = config_parser(f"deit-fast bench {what}", "Measures on this machine, in interleaved turns.")
    parser.add_argument("--turns", type=int, default=turns, help="measured turns of each contender")
    parser.add_argument("--warm-up-turns", type=int, default=1, help="turns of each contender before, not measured")
    parser.add_argument("--json", metavar="FILE", help="append the result as one JSON line")
    return parser


def parse_measuring(parser: Any, arguments: Sequence[str], default_recipe: str) -> tuple[Config, Options]:
    """The configuration, by `default_recipe` where no --config is given, and the other options."""
    add_config_arguments(parser)
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", default_recipe, *arguments]
    config, options = parse_config(parser, list(arguments))
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
