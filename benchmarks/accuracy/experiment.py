"""Runs what is missing of the experiment: a (variant, seed) that was finished is read, not trained again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_fast.checkpoint import PATTERN, checkpoint_path
from deit_fast.config import Config
from deit_fast.config_file import config_as_dict, differing_keys
from deit_fast.distributed import Ranks
from deit_fast.metrics import JsonLines
from deit_fast.trainer import Outcome, Trainer

from .variants import CONVNET, VARIANTS, VIT, Plan, TeacherName, Variant, student_config, teacher_config

Result = dict[str, Any]
"""What result.json of a run holds: top1 by head, top1_ema, step, cpu_seconds, images_per_second, config."""


@dataclass(frozen=True)
class Teacher:
    """A checkpoint to learn from, and how good it is."""

    checkpoint: Path
    top1: float


def finished_run(config: Config, ranks: Ranks, title: str) -> Result:
    """Trains unless it was done before, from where it was stopped; returns what its result.json holds.

    ValueError when it was done with other settings; RuntimeError when a signal asked to stop.
    """
    path = Path(config.checkpoint.dir) / "result.json"
    if path.is_file():
        result: Result = json.loads(path.read_text())
        _check_same(result["config"], config, path)
        return result
    before = time.process_time()
    outcome = Trainer(config, ranks, title).fit()
    if not outcome.finished:
        raise RuntimeError(f"stopped in {title}; the same command goes on from there")
    result = _result(outcome, config, time.process_time() - before)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)
    return result


def _check_same(before: dict[str, Any], config: Config, path: Path) -> None:
    differing = differing_keys(before, config_as_dict(config))
    if before["data"]["path"] != config.data.path:
        differing.append(f"data.path ({before['data']['path']}, now {config.data.path})")
    if differing:
        raise ValueError(f"{path} was made with other settings: {differing[0]}; choose another --folder")


def _result(outcome: Outcome, config: Config, seconds: float) -> Result:
    assert outcome.scores is not None
    return {
        "top1": outcome.scores.top1,
        "top1_ema": outcome.ema_scores.top1 if outcome.ema_scores else None,
        "step": outcome.step,
        "images_per_second": outcome.images_per_second,
        "cpu_seconds": seconds,
        "config": config_as_dict(config),
    }


def train_teachers(plan: Plan, data: Path, folder: Path, ranks: Ranks) -> dict[TeacherName, Teacher]:
    """The ViT, the ConvNet, and that epoch of the ConvNet whose top-1 is nearest to the ViT's."""
    vit = _teacher(VIT, plan, data, folder / "teacher_vit", ranks)
    convnet = _teacher(CONVNET, plan, data, folder / "teacher_convnet", ranks)
    rows = JsonLines(folder / "teacher_convnet" / "metrics.jsonl").rows()
    early = nearest_epoch(rows, vit.top1)
    kept = Teacher(checkpoint_path(folder / "teacher_convnet", early["step"]), early["val"]["top1"]["average"])
    for path in (folder / "teacher_convnet").glob(PATTERN):  # 80 MB each
        if path not in (kept.checkpoint, convnet.checkpoint):
            path.unlink()
    return {"ViT": vit, "ConvNet": convnet, "ConvNet, early": kept}


def nearest_epoch(rows: list[dict[str, Any]], top1: float) -> dict[str, Any]:
    """The row of metrics.jsonl whose weights come nearest to a top-1."""
    return min(rows, key=lambda row: abs(row["val"]["top1"]["average"] - top1))


def _teacher(model: str, plan: Plan, data: Path, folder: Path, ranks: Ranks) -> Teacher:
    result = finished_run(teacher_config(model, plan, data, folder), ranks, f"teacher {model}")
    return Teacher(checkpoint_path(folder, result["step"]), result["top1"]["average"])


def run_experiment(
    plan: Plan, data: Path, folder: Path, ranks: Ranks, say: Callable[[str], None]
) -> tuple[dict[TeacherName, Teacher], dict[Variant, list[Result]]]:
    """Teachers, then all variants of a seed before the next seed, so that what is there so far can be compared."""
    teachers = train_teachers(plan, data, folder, ranks)
    for name, teacher in teachers.items():
        say(f"teacher {name}: {teacher.top1:.2f} %")
    results: dict[Variant, list[Result]] = {variant: [] for variant in VARIANTS}
    for seed in range(plan.seeds):
        for variant in VARIANTS:
            checkpoint = teachers[variant.teacher].checkpoint if variant.teacher else None
            run = folder / variant.folder / f"seed_{seed}"
            config = student_config(variant, plan, data, run, seed, checkpoint)
            result = finished_run(config, ranks, f"{variant.name}, seed {seed}")
            for path in run.glob(PATTERN):
                path.unlink()
            results[variant].append(result)
            say(f"{variant.name}, seed {seed}: {result['top1']['average']:.2f} %")
    return teachers, results


def rows_of(teachers: dict[TeacherName, Teacher], results: dict[Variant, list[Result]]) -> list[dict[str, Any]]:
    """A row for each variant with the top-1 of its seeds, in percent."""
    rows = []
    for variant, runs in results.items():
        teacher = teachers[variant.teacher] if variant.teacher else None
        rows.append(
            {
                "workload": "student top-1",
                "name": variant.name,
                "kind": variant.kind,
                "teacher": variant.teacher,
                "teacher_top1": teacher.top1 if teacher else None,
                "seed_top1": [run["top1"]["average"] for run in runs],
                "seed_top1_cls": [run["top1"]["cls"] for run in runs],
                "seed_top1_dist": [run["top1"]["dist"] for run in runs],
                "cpu_seconds": sum(run["cpu_seconds"] for run in runs),
            }
        )
    return rows
