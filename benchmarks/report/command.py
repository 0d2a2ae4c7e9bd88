"""`deit-fast bench report`: rows as a page for people, or as the tables of a Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from deit_fast.config_file import config_parser, parse_arguments

from .markdown import RESULTS, rewritten, write_plots
from .page import build_page
from .results import read_files


def run(arguments: Sequence[str]) -> int:
    """Parses, writes, says where; ValueError for wrong use."""
    options = parse_arguments(_parser(), arguments)
    if bool(options.out) == bool(options.markdown):
        raise ValueError("bench report takes --out FILE.html for a page of ROWS, or --markdown FILE.md for its tables")
    console = Console(soft_wrap=True, highlight=False)
    if options.markdown:
        markdown = Path(options.markdown)
        if options.rows:
            raise ValueError(f"--markdown takes its rows from {RESULTS}, by their markers; leave {options.rows[0]} out")
        if not markdown.is_file():
            raise ValueError(f"--markdown {markdown} is not there")
        text = rewritten(markdown.read_text(), str(markdown))
        markdown.write_text(text)
        for path in [markdown, *write_plots(text, markdown.parent)]:
            console.print(str(path), markup=False)
        return 0
    if not options.rows:
        raise ValueError("bench report needs files of rows: deit-fast bench report rows.jsonl --out report.html")
    console.print(str(build_page(read_files(map(Path, options.rows))).write(Path(options.out))), markup=False)
    return 0


def _parser() -> Any:
    usage = "deit-fast bench report ROWS.jsonl ... --out FILE.html, or --markdown FILE.md"
    parser = config_parser("deit-fast bench report", "Rows as a page, or as tables of a text.", usage=usage)
    parser.add_argument("rows", nargs="*", metavar="ROWS.jsonl", help="what `bench ... --json FILE` wrote")
    parser.add_argument("--out", metavar="FILE.html", help="write a self-contained page")
    parser.add_argument(
        "--markdown",
        metavar="FILE.md",
        help="rewrite the tables between `<!-- rows: NAME -->` and `<!-- /rows -->` from benchmarks/results/NAME.jsonl",
    )
    return parser
