"""Runs a step as a program of its own and keeps what came of it."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .steps import Step, StepError

KEPT_LINES = 60
"""Of a step's output, on the page; the whole is in its log."""


@dataclass
class Result:
    """What came of a step."""

    held: bool
    text: str
    seconds: float
    log: str
    tail: str


def run_step(step: Step, folder: Path) -> Result:
    """Runs it to its end, with its output in a log; the result is kept in results.json."""
    log = folder / f"{step.name.replace(' ', '_')}.log"
    start = time.monotonic()
    with log.open("w") as file:
        code = subprocess.run(step.command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    seconds = time.monotonic() - start
    output = log.read_text(errors="replace")
    held, text = judge(step, code, output)
    tail = "\n".join(output.splitlines()[-KEPT_LINES:])
    result = Result(held, text, round(seconds, 1), log.name, tail)
    results = read_results(folder) | {step.name: result}
    (folder / "results.json").write_text(json.dumps({name: asdict(one) for name, one in results.items()}, indent=2))
    return result


def judge(step: Step, code: int, output: str) -> tuple[bool, str]:
    """Whether it held, and a line about it: what it found, or its last words."""
    if code != 0:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return False, f"exit code {code}: {lines[-1] if lines else 'no output'}"
    try:
        return True, step.read(output)
    except StepError as error:
        return False, str(error)
    except (OSError, ValueError, LookupError, TypeError) as error:
        return False, f"its result cannot be read ({type(error).__name__}: {error})"


def read_results(folder: Path) -> dict[str, Result]:
    """Those of earlier calls; empty when there were none."""
    path = folder / "results.json"
    if not path.is_file():
        return {}
    return {name: Result(**values) for name, values in json.loads(path.read_text()).items()}
