"""The whole way on real images in a few minutes without a GPU: data, teacher, distilled student, evaluation, budget."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .budget import REQUIRED_IMAGES_PER_SECOND, projected_days
from .config import Config
from .config_file import config_as_dict
from .digits import write_digits
from .distributed import Ranks
from .environment import describe_environment
from .trainer import Outcome, Trainer

RUN = Path("runs/demo")
TEACHER_RECIPE = "demo_teacher"
STUDENT_RECIPES = {True: "demo_student_distilled", False: "demo_student"}
"""By whether there is distillation."""


def student_recipe(arguments: Sequence[str]) -> str:
    """The student's recipe for the command line: `--distill.kind none` wants the model without distillation token."""
    kind = "hard"
    for i, argument in enumerate(arguments):
        if argument == "--distill.kind" and i + 1 < len(arguments):
            kind = arguments[i + 1]
        elif argument.startswith("--distill.kind="):
            kind = argument.split("=", 1)[1]
    return STUDENT_RECIPES[kind != "none"]


def run_demo(teacher: Config, student: Config, ranks: Ranks) -> dict[str, Any] | None:
    """Trains teacher and student on the digits, and writes `result.json` of the run; returns it.

    None when a signal stopped the run. What an earlier demo left in its folder is replaced.
    """
    data = write_digits(RUN / "digits", teacher.runtime.seed)
    teacher = _in_run(teacher, data, "teacher")
    student = _in_run(student, data, "student")
    shutil.rmtree(student.checkpoint.dir, ignore_errors=True)
    shutil.rmtree(teacher.checkpoint.dir, ignore_errors=True)

    taught = Trainer(teacher, ranks, "teacher").fit()
    if not taught.finished:
        return None
    if student.distill.kind != "none":
        distill = replace(student.distill, teacher=teacher.model.name, teacher_checkpoint=str(taught.checkpoint))
        student = replace(student, distill=distill)
    outcome = Trainer(student, ranks, "student").fit()
    if not outcome.finished:
        return None
    result = describe_result(student, taught, outcome, ranks)
    (RUN / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _in_run(config: Config, data: Path, name: str) -> Config:
    return replace(
        config,
        data=replace(config.data, path=str(data)),
        checkpoint=replace(config.checkpoint, dir=str(RUN / name), resume="none"),
    )


def describe_result(student: Config, taught: Outcome, outcome: Outcome, ranks: Ranks) -> dict[str, Any]:
    """What `result.json` holds."""
    assert taught.scores is not None
    assert outcome.scores is not None
    return {
        "top1": {"teacher": taught.scores.top1["average"], **outcome.scores.top1},
        "top1_ema": outcome.ema_scores.top1 if outcome.ema_scores else None,
        "images_per_second": outcome.images_per_second,
        "data_wait_fraction": outcome.data_wait_fraction,
        "budget": {
            "required_images_per_second": REQUIRED_IMAGES_PER_SECOND,
            "projected_days": projected_days(outcome.images_per_second),
        },
        "config": config_as_dict(student),
        "environment": describe_environment(ranks.device),
    }


def show_result(result: dict[str, Any], console: Console) -> None:
    """Prints the closing table."""
    top1 = result["top1"]
    table = Table(
        title="deit-fast demo: handwritten digits, 360 validation images", title_justify="left", show_header=False
    )
    table.add_column("")
    table.add_column("", justify="right")
    for label, key in (
        ("teacher top-1", "teacher"),
        ("student top-1 by [CLS]", "cls"),
        ("student top-1 by distillation token", "dist"),
        ("student top-1, average of both", "average"),
    ):
        table.add_row(label.replace("[", r"\["), "-" if top1[key] is None else f"{top1[key]:.2f} %")
    table.add_row("student training speed", f"{result['images_per_second']:,.0f} images/s")
    table.add_row("share of time waiting for data", f"{result['data_wait_fraction']:.1%}")
    console.print(table)
    days = result["budget"]["projected_days"]
    model, size = result["config"]["model"]["name"], result["config"]["model"]["image_size_px"]
    console.print(
        f"At this speed the budget's 300 x 1,281,167 images would take {days:,.1f} days on this machine. It is the "
        f"arithmetic of this demo ({model}, {size} px, on {result['environment']['device']}), no forecast for DeiT-B "
        f"at 224 px; the budget asks for {REQUIRED_IMAGES_PER_SECOND:,.1f} images/s of DeiT-B (3 days on 8 GPUs).",
        highlight=False,
    )
    console.print(f"Written: {RUN / 'result.json'}", highlight=False)
