"""Markdown tables between markers, rewritten from the rows that are kept with the source.

A text says which rows it wants by `<!-- rows: NAME -->` and `<!-- /rows -->`; NAME is a file of benchmarks/results. So
every figure between them can be traced to a row, and a test fails where the two differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from deit_fast.bench_records import Record
from deit_fast.page.plots import write_svg

from ..accuracy.show import accuracy_plot, accuracy_table
from ..table import markdown
from .figures import named
from .results import Results, Row, provenance, read_files

RESULTS = Path(__file__).parents[1] / "results"
BLOCK = re.compile(
    r"^(?P<open><!-- rows: (?P<name>[\w-]+) -->\n).*?^(?P<close><!-- /rows -->)$", re.DOTALL | re.MULTILINE
)
OPENING = re.compile(r"^<!-- rows: ", re.MULTILINE)
DASH = "-"


def rewritten(text: str, source: str, folder: Path = RESULTS) -> str:
    """The text with every block made anew; ValueError, naming the source, for a block without end or without rows."""
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        raise ValueError(f"{source}: a `<!-- rows: NAME -->` needs a line of its own, and a `<!-- /rows -->` below")

    def block(match: re.Match[str]) -> str:
        path = folder / f"{match['name']}.jsonl"
        if not path.is_file():
            raise ValueError(f"{source} asks for rows {match['name']}, but there is no {path}")
        return f"{match['open']}{table_of(read_files([path]))}{match['close']}"

    return BLOCK.sub(block, text)


def write_plots(text: str, folder: Path, rows: Path = RESULTS) -> list[Path]:
    """Draws what the blocks of a text refer to, `NAME.svg` beside it; returns what was written."""
    written = []
    for match in BLOCK.finditer(text):
        record = read_files([rows / f"{match['name']}.jsonl"]).latest("accuracy")
        if record is not None:
            write_svg(accuracy_plot(record), folder / plot_name(record))
            written.append(folder / plot_name(record))
    return written


def plot_name(record: Record) -> str:
    """`accuracy.svg`"""
    return f"{record['bench']}.svg"


def table_of(results: Results) -> str:
    """The newest record as a table, and below it where it was measured."""
    record = results.latest("loader", "step", "train", "kernels", "accuracy")
    if record is None:
        return "Not measured.\n"
    tables: dict[str, Callable[[Record], str]] = {
        "loader": loader_table,
        "kernels": kernels_table,
        "accuracy": accuracy_table,
    }
    table = tables.get(record["bench"], step_table)(record)
    if record["bench"] == "accuracy":
        table = f"![A dot a seed, the mean with its 95 % interval]({plot_name(record)})\n\n{table}"
    return f"{table}\n{record['title'][0].upper()}{record['title'][1:]}. {provenance(record)}\n"


def loader_table(record: Record) -> str:
    """Contenders by workloads: images/s (CPU-ms an image)."""
    workloads = list(dict.fromkeys(row["workload"] for row in record["rows"]))
    names = list(dict.fromkeys(row["name"] for row in record["rows"]))
    cells = {(row["name"], row["workload"]): speed_and_cost(row) for row in record["rows"]}
    rows = [[name, *(cells.get((name, workload), "") for workload in workloads)] for name in names]
    return markdown(["images/s (CPU-ms an image)", *workloads], rows)


def speed_and_cost(row: Row) -> str:
    """`1,735 (1.11)`"""
    return f"{row['images_per_second']:,.0f} ({cost(row)})"


def cost(row: Row) -> str:
    """CPU-ms an image; turns may be too short to tell."""
    return DASH if row["cpu_ms_per_image"] is None else f"{row['cpu_ms_per_image']:,.2f}"


def step_table(record: Record) -> str:
    """Stages and whole steps with their spread."""
    rows = [
        [
            named(row),
            f"{row['images_per_second']:,.1f}",
            f"{row['images_per_second_p20']:,.1f} - {row['images_per_second_p80']:,.1f}",
            cost(row),
            DASH if row["mfu"] is None else f"{row['mfu']:.1%}",
        ]
        for row in record["rows"]
    ]
    return markdown(["", "images/s", "p20 - p80", "CPU-ms an image", "MFU"], rows)


def kernels_table(record: Record) -> str:
    """Kernels by implementations."""
    rows = [
        [row["workload"], row["name"], f"{row['ms']:.3f}", f"{row['gb_per_second']:,.0f}"]
        for row in record["rows"]
        if row.get("ms")
    ]
    return markdown(["kernel", "by", "ms", "GB/s"], rows, text_columns=2)
