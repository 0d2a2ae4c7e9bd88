"""The page of the first day: what held, what did not, and where to read on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deit_fast.page import Page

from .run import Result
from .steps import Step

STATES = {True: "held", False: "did not hold", None: "not run"}


def write_page(steps: list[Step], results: dict[str, Result], environment: dict[str, Any], folder: Path) -> Path:
    """Writes report.html: verdict, a table of all steps, then each with the end of its log."""
    page = Page("The first day with a GPU", f"{environment['device']}, {environment['cpu_cores']} CPU cores")
    failed = [step.name for step in steps if step.name in results and not results[step.name].held]
    left = [step.name for step in steps if step.name not in results]
    good = False if failed else None if left else True
    page.verdict(headline(len(steps), failed, left), good, [f"{name}: {results[name].text}" for name in failed])
    page.table(
        ("step", "", "minutes", "what it promises"),
        [row(step, results.get(step.name)) for step in steps],
        sortable=False,
    )
    page.section(
        "The steps",
        f"Logs, rows and results are in `{folder}`, the figures as a page in `bench.html`, the profile in "
        "`profile/report.html`; a step is run again by `--only NAME`.",
    )
    for step in steps:
        if result := results.get(step.name):
            told = f"$ {' '.join(step.command)}\n\n{result.tail}"
            page.details(f"{step.name} {STATES[result.held]}: {result.text}", told)
    page.section("Measured on")
    page.details("environment", json.dumps(environment, indent=2))
    return page.write(folder / "report.html")


def headline(count: int, failed: list[str], left: list[str]) -> str:
    """What the reader came for."""
    if failed:
        return f"{len(failed)} of {count} steps did not hold: {', '.join(failed)}"
    if left:
        return f"What was run held; not run: {', '.join(left)}"
    return f"All {count} steps held"


def row(step: Step, result: Result | None) -> tuple[str, str, float | None, str]:
    """A line of the table."""
    if result is None:
        return step.name, STATES[None], None, step.promise
    return step.name, STATES[result.held], round(result.seconds / 60, 1), step.promise
