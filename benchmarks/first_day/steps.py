"""The steps of the first day: what each runs, what it promises, and how its outcome is read."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from deit_fast.bench_records import read_records

from ..photographs import PHOTOGRAPHS, photographs_path
from ..report import verdict_text

Read = Callable[[str], str]
"""The step's output -> what it found, in a line; StepError when it ended well and yet did not hold."""
PYTHON = [sys.executable, "-m"]
TESTS = Path(__file__).parents[2] / "tests"


class StepError(RuntimeError):
    """Why a step did not hold, though its program ended well."""


@dataclass(frozen=True)
class Step:
    """A program, run by itself: what breaks one does not touch the next."""

    name: str
    promise: str
    command: list[str]
    read: Read


@dataclass(frozen=True)
class Plan:
    """What the steps have in common."""

    out: Path
    device: str
    devices: int
    config: str
    data: str | None
    minutes: float
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Recipe, device and images of every verb."""
        images = ["--data.path", self.data] if self.data else []
        return ["--config", self.config, "--runtime.device", self.device, *images, *self.overrides]

    @property
    def rows(self) -> Path:
        """Of all benchmarks."""
        return self.out / "rows.jsonl"


def build_steps(plan: Plan) -> list[Step]:
    """In the order in which one would look: first whether it is right, then how fast it is, then why."""
    verb = [*PYTHON, "deit_fast"]
    images, tuned, found = plan.out / "images.json", plan.out / "tuned.yaml", plan.out / "doctor.json"
    tune = ["tune", *plan.arguments, "--minutes", str(plan.minutes), "--out", str(tuned)]
    use = ["--runtime.tuned", str(tuned)]
    steps = [
        Step("doctor", "the machine is fit", [*verb, "doctor", *plan.arguments, "--json", str(found)],
             lambda _output: read_doctor(found)),
        Step("tests", "all tests marked gpu pass", [*PYTHON, "pytest", str(TESTS), "-m", "gpu", "-q"], read_tests),
        Step("images", "the GPU makes the CPU's images",
             [*verb, "bench", "images", *plan.arguments, "--json", str(images)], lambda _output: read_images(images)),
        Step("tune", "the correct candidates are measured", [*verb, *tune], lambda _output: read_tuned(tuned)),
    ]  # fmt: skip
    for what in ("kernels", "loader", "step", "train"):
        steps.append(bench_step(plan, what, [] if what == "kernels" else [*plan.arguments, *use]))
    figures = plan.out / "bench.html"
    report = [*verb, "bench", "report", str(plan.rows), "--out", str(figures)]
    steps.append(
        Step("bench report", "the figures are one page", report, lambda _output: str(figures.resolve(strict=True)))
    )
    steps.append(profile_step(plan, verb, use))
    return steps


def bench_step(plan: Plan, what: str, arguments: list[str]) -> Step:
    """A verb of bench; `train` on all devices."""
    many = what == "train" and plan.devices > 1
    torchrun = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", str(plan.devices), "-m"]
    command = [*(torchrun if many else PYTHON), "deit_fast", "bench", what, *arguments, "--json", str(plan.rows)]
    if what == "kernels":
        command += ["--device", plan.device]
    return Step(f"bench {what}", PROMISES[what], command, lambda _output: read_bench(plan.rows, what))


PROMISES = {
    "kernels": "every kernel is correct, and its time is known",
    "loader": "the loader's speed is known",
    "step": "the step's speed is known",
    "train": "the run keeps the budget",
}


def profile_step(plan: Plan, verb: list[str], use: list[str]) -> Step:
    """The run that bench measured; a teacher's weights need not be here."""
    folder = plan.out / "profile"
    images = [] if plan.data else ["--data.path", str(photographs_path(PHOTOGRAPHS))]
    command = [*verb, "profile", *plan.arguments, *images, *use, "--random-teacher", "--out", str(folder)]
    return Step("profile", "the time of a step is accounted for", command, lambda _output: read_profile(folder))


def read_doctor(path: Path) -> str:
    """How many findings of each level."""
    levels = [finding["level"] for finding in json.loads(path.read_text())["findings"]]
    return ", ".join(f"{levels.count(level)} {level}" for level in dict.fromkeys(levels))


def read_tests(output: str) -> str:
    """pytest's last line; a suite in which everything was skipped did not hold."""
    last = next((line for line in reversed(output.splitlines()) if re.search(r"\d+ (passed|failed|skipped)", line)), "")
    if not re.search(r"[1-9]\d* passed", last):
        raise StepError(f"no test passed: {last.strip('= ') or 'pytest said nothing'}")
    return last.strip("= ")


def read_images(path: Path) -> str:
    """The largest mean difference."""
    rows = json.loads(path.read_text())
    worst = max(rows, key=lambda row: row["mean"])
    where = f"{worst['pipeline']}, {worst['view']}"
    return f"{len(rows)} comparisons; largest mean {worst['mean']:.3f} grey levels ({where})"


def read_tuned(path: Path) -> str:
    """What was chosen, and what is left."""
    content = yaml.safe_load(path.read_text())
    chosen = ", ".join(f"{key} {value}" for key, value in content["chosen"].items())
    return chosen + (f"; not measured: {', '.join(content['left'])}" if content["left"] else "")


def read_bench(path: Path, what: str) -> str:
    """The newest record: its verdict, or its fastest row; StepError for a wrong kernel or a budget that is missed."""
    record = [record for record in read_records(str(path)) if record["bench"] == what][-1]
    fails = [row for row in record["rows"] if row.get("correct") is False]
    # that another's does not run here is told in its row; only ours has to
    if bad := [row for row in fails if row["fails"] == "wrong" or row["name"] == "triton"]:
        raise StepError("; ".join(f"{row['name']} of {row['workload']}: {row['fails']}" for row in bad))
    verdict = record["verdict"]
    if verdict is None:
        return f"{len(record['rows'])} rows: {record['title']}"
    judgement = verdict_text.judge(record)
    text = (
        f"{verdict['measured_per_device']:,.1f} images/s a device. {judgement.headline}; "
        f"limit: {verdict['limiting_stage']}"
    )
    if what == "train" and judgement.good is False:
        raise StepError(text)
    return text


def read_profile(folder: Path) -> str:
    """The first piece of advice."""
    record = json.loads((folder / "profile.json").read_text())
    advice = [f"{one['headline']}: {one['line']}" for one in record["advice"]]
    return advice[0] if advice else "nothing stands out"
