"""Timings as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .timing import Timing, Timings

TABLE_WIDTH = 160
"""Characters; a file or a pipe has no width of its own, and a name cut short is worth little."""
HEADINGS = ("medians", "by", "images/s", "p20 - p80", "CPU-ms/image", "x first", "MFU", "GB")


def show_table(title: str, timings: Timings) -> None:
    """Prints a line for each contender; `x first` is its CPU time as a multiple of its workload's first, by rounds."""
    table = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right", no_wrap=True)
    firsts: dict[str, Timing] = {}
    for contender, timing in timings.items():
        row = timing.row()
        first = firsts.setdefault(contender.workload, timing)
        memory = row["peak_memory_bytes"]["torch"]
        table.add_row(
            contender.workload,
            contender.name,
            f"{row['images_per_second']:,.1f}",
            f"{row['images_per_second_p20']:,.1f} - {row['images_per_second_p80']:,.1f}",
            f"{row['cpu_ms_per_image']:.2f}",
            "" if timing is first else f"{first.times_cheaper_than(timing):.2f}",
            "" if row["mfu"] is None else f"{row['mfu']:.1%}",
            "" if memory is None else f"{memory / 1e9:.2f}",
        )
    Console(width=max(TABLE_WIDTH, Console().width)).print(table)
