"""`deit-fast bench kernels --resources`: registers, spills, shared memory and widths of every kernel, with no GPU."""

from __future__ import annotations

from collections.abc import Callable

import triton

from deit_fast.kernels.budget import ARCHITECTURES, Row, measure, read_budget, write_budget
from deit_fast.kernels.cases import all_cases

from .table import markdown, print_table

HEADINGS = ("registers", "stack_bytes", "spill_instructions", "shared_bytes", "programs_per_sm", "load_bytes",
            "store_bytes", "mma_over_ideal")  # fmt: skip


def architectures(text: str) -> list[int]:
    """`all`, or numbers with commas: 80,90; ValueError for one that is not planned for."""
    if text == "all":
        return list(ARCHITECTURES)
    known = {str(architecture): architecture for architecture in ARCHITECTURES}
    chosen = [part.strip().removeprefix("sm_") for part in text.split(",")]
    if not set(chosen) <= set(known):
        raise ValueError(f"--resources takes all, or some of {', '.join(known)} with commas between, got {text}")
    return [known[part] for part in chosen]


def kernel_resources(chosen: list[int], progress: Callable[[str], None]) -> dict[str, dict[str, Row]]:
    """Compiles every case for each architecture; `progress` is told what is next."""
    rows: dict[str, dict[str, Row]] = {}
    for architecture in chosen:
        rows[f"sm_{architecture}"] = {}
        for case in all_cases():
            progress(f"sm_{architecture} {case.name}")
            rows[f"sm_{architecture}"][case.name] = measure(case, architecture)
    return rows


def show_resources(rows: dict[str, dict[str, Row]]) -> None:
    """A table for each architecture."""
    for architecture, cases in rows.items():
        title = f"{architecture}, Triton {triton.__version__}, read from the compiled code: no GPU was used"
        headings = ["launch", *(heading.replace("_", " ") for heading in HEADINGS)]
        figures = {name: [str(row.get(heading, "-")) for heading in HEADINGS] for name, row in cases.items()}
        print_table(title, headings, [[name, *cells] for name, cells in figures.items()])


def budget_markdown() -> str:
    """The budget file as a table of docs/kernels.md."""
    rows = read_budget()["rows"]
    table = []
    for case in all_cases():
        found = {architecture: cases[case.name] for architecture, cases in rows.items()}
        cells = [f"{row['registers']} / {row['programs_per_sm']}" for row in found.values()]
        ratios = [f"{row['mma_over_ideal']:.2f} {name}" for name, row in found.items() if "mma_over_ideal" in row]
        table.append([case.name, *cells, ", ".join(ratios) or "-"])
    headings = ["launch", *rows, "products / ideal"]
    return markdown(headings, table, text_columns=len(headings))


def save_budget(rows: dict[str, dict[str, Row]]) -> None:
    """Makes these rows, of all architectures, the budget."""
    assert set(rows) == {f"sm_{architecture}" for architecture in ARCHITECTURES}
    write_budget(rows, triton.__version__)
