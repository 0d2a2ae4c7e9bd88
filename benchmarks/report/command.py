"""`deit-fast bench report`: rows as a page for people, or as the tables of a Markdown file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .markdown import RESULTS, rewritten, write_plots
from .page import build_page
from .results import read_files


def run(arguments: Sequence[str]) -> int:
    """Parses, writes, says where; ValueError for wrong use."""
    options = _parser().parse_args(arguments)
    if bool(options.out) == bool(options.markdown):
        raise ValueError("bench report takes --out FILE.html for a page of ROWS, or --markdown FILE.md for its tables")
    console = Console(soft_wrap=True, highlight=False)
    if options.markdown:
        if options.rows:
            raise ValueError(f"--markdown takes its rows from {RESULTS}, by their markers; leave {options.rows[0]} out")
        if not options.markdown.is_file():
            raise ValueError(f"--markdown {options.markdown} is not there")
        text = rewritten(options.markdown.read_text(), str(options.markdown))
        options.markdown.write_text(text)
        for path in [options.markdown, *write_plots(text, options.markdown.parent)]:
            console.print(str(path), markup=False)
        return 0
    if not options.rows:
        raise ValueError("bench report needs files of rows: deit-fast bench report rows.jsonl --out report.html")
    console.print(str(build_page(read_files(options.rows)).write(options.out)), markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("deit-fast bench report", description=__doc__, allow_abbrev=False)
    parser.add_argument("rows", nargs="*", type=Path, metavar="ROWS.jsonl", help="what `bench ... --json FILE` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write a self-contained page")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE.md",
        help="rewrite the tables between `<!-- rows: NAME -->` and `<!-- /rows -->` from benchmarks/results/NAME.jsonl",
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser
