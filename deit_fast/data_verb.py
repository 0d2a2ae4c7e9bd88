"""What the verbs of `deit-fast data` share: options, lines, a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .config_file import config_parser, parse_arguments
from .environment import available_cores

Step = TypeVar("Step")


def say(line: str) -> None:
    """Prints a line whole: a pipe has no width of its own."""
    Console(soft_wrap=True).print(line, markup=False, highlight=False)


def verb_parser(verb: str, description: str, workers: str | None) -> ArgumentParser:
    """A parser with --json, and with --workers where `workers` says what they are."""
    parser = config_parser(f"deit-fast data {verb}", description, usage=f"deit-fast data {verb} [options]")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    if workers:
        parser.add_argument("--workers", type=int, default=available_cores(), help=f"{workers}; default: all cores")
    return parser


def parse_verb(parser: ArgumentParser, arguments: list[str]) -> Any:
    """The options; ValueError of one line for wrong arguments."""
    options = parse_arguments(parser, arguments)
    if getattr(options, "workers", 1) < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    return options


def with_progress(title: str, total: int, steps: Iterable[Step], size: Callable[[Step], int]) -> Iterator[Step]:
    """Passes the steps on and shows a bar on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        for step in steps:
            bar.advance(task, size(step))
            yield step
