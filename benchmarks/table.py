"""Tables: on the terminal, of timings and of anything else, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from .timing import Timing, Timings

TABLE_WIDTH = 180
"""Characters; a file or a pipe has no width of its own, and a name cut short is worth little."""
HEADINGS = ("medians", "by", "images/s", "p20 - p80", "CPU-ms/image", "x first", "MFU", "GB")


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> None:
    """A table whose first columns are text and whose others are figures, which stand right."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < text_columns else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=max(TABLE_WIDTH, Console().width)).print(table)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """The same in Markdown."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(headings))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, rule, *rows))


def show_table(title: str, timings: Timings) -> None:
    """Prints a line for each contender; `x first` is its CPU time as a multiple of its workload's first, by rounds."""
    firsts: dict[str, Timing] = {}
    rows = []
    for contender, timing in timings.items():
        row = timing.row()
        first = firsts.setdefault(contender.workload, timing)
        memory = row["peak_memory_bytes"]["torch"]
        rows.append(
            (
                contender.workload,
                contender.name,
                f"{row['images_per_second']:,.1f}",
                f"{row['images_per_second_p20']:,.1f} - {row['images_per_second_p80']:,.1f}",
                f"{row['cpu_ms_per_image']:.2f}",
                "" if timing is first else f"{first.times_cheaper_than(timing):.2f}",
                "" if row["mfu"] is None else f"{row['mfu']:.1%}",
                "" if memory is None else f"{memory / 1e9:.2f}",
            )
        )
    print_table(title, HEADINGS, rows, text_columns=2)
