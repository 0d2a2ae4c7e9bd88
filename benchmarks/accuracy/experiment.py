"""Runs what is missing of the experiment: a (variant, seed) that was finished is read, not trained again."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deit_fast.checkpoint import PATTERN, checkpoint_path
from deit_fast.config import Config
from deit_fast.config_file import config_as_dict, differing_keys
from deit_fast.distributed import Ranks, process_group
from deit_fast.metrics import JsonLines
from deit_fast.trainer import Outcome, Trainer

from .variants import CONVNET, VARIANTS, VIT, Plan, TeacherName, Variant, student_config, teacher_config

Result = dict[str, Any]
"""What result.json of a run holds: top1 by head, top1_ema, step, cpu_seconds, images_per_second, config."""


class Run(NamedTuple):
    """A training, and how it is called."""

    config: Config
    title: str
    keeps_weights: bool = True
    """Else they go when it is done, and its result stays."""

    @property
    def result_file(self) -> Path:
        """There when it is done."""
        return Path(self.config.checkpoint.dir) / "result.json"


@dataclass(frozen=True)
class Teacher:
    """A checkpoint to learn from, and how good it is."""

    checkpoint: Path
    top1: float


def finished_run(run: Run, ranks: Ranks) -> Result:
    """Trains unless it was done before, from where it was stopped; returns what its result.json holds.

    ValueError when it was done with other settings; RuntimeError when a signal asked to stop.
    """
    config, path = run.config, run.result_file
    if path.is_file():
        result: Result = json.loads(path.read_text())
        _check_same(result["config"], config, path)
        return result
    before = time.process_time()
    outcome = Trainer(config, ranks, run.title).fit()
    if not outcome.finished:
        raise RuntimeError(f"stopped in {run.title}; the same command goes on from there")
    result = _result(outcome, config, time.process_time() - before)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)
    for weights in () if run.keeps_weights else path.parent.glob(PATTERN):
        weights.unlink()
    return result


def finished_runs(runs: Sequence[Run], ranks: Ranks) -> list[Result]:
    """Each run's result, in their order. On a CPU as many train at once as there are cores, a process on each.

    So small a model keeps one core busy: two threads of it are hardly faster than one.
    """
    for run in runs:
        if run.result_file.is_file():
            finished_run(run, ranks)  # refuses other settings before minutes are spent
    if ranks.device.type == "cpu":
        train_on_cores([run for run in runs if not run.result_file.is_file()])
    return [finished_run(run, ranks) for run in runs]


def train_on_cores(runs: Sequence[Run]) -> None:
    """Trains the runs, shared out over the cores; RuntimeError, once all ended, when one did not finish."""
    cores = os.sched_getaffinity(0)
    context = multiprocessing.get_context("spawn")
    processes = []
    try:
        for k, core in enumerate(sorted(cores)[: len(runs)]):
            os.sched_setaffinity(0, {core})  # inherited: torch counts its threads by it, and the loader its own
            processes.append(context.Process(target=_train, args=(runs[k :: len(cores)],), daemon=True))
            processes[-1].start()
    finally:
        os.sched_setaffinity(0, cores)
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("not all runs finished, see above; the same command goes on from there")


def _train(runs: Sequence[Run]) -> None:
    with process_group("cpu") as ranks:
        for run in runs:
            try:
                finished_run(run, ranks)
            except (RuntimeError, ValueError, OSError) as error:
                sys.exit(f"deit-fast: {run.title}: {error}")


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
    folders = {VIT: folder / "teacher_vit", CONVNET: folder / "teacher_convnet"}
    runs = [Run(teacher_config(model, plan, data, of), f"teacher {model}") for model, of in folders.items()]
    vit, convnet = (
        Teacher(checkpoint_path(of, result["step"]), result["top1"]["average"])
        for of, result in zip(folders.values(), finished_runs(runs, ranks), strict=True)
    )
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


def run_experiment(
    plan: Plan, data: Path, folder: Path, ranks: Ranks, say: Callable[[str], None]
) -> tuple[dict[TeacherName, Teacher], dict[Variant, list[Result]]]:
    """Teachers, then the students of each seed before those of the next."""
    teachers = train_teachers(plan, data, folder, ranks)
    for name, teacher in teachers.items():
        say(f"teacher {name}: {teacher.top1:.2f} %")
    students = [(variant, seed) for seed in range(plan.seeds) for variant in VARIANTS]
    runs = []
    for variant, seed in students:
        checkpoint = teachers[variant.teacher].checkpoint if variant.teacher else None
        config = student_config(variant, plan, data, folder / variant.folder / f"seed_{seed}", seed, checkpoint)
        runs.append(Run(config, f"{variant.name}, seed {seed}", keeps_weights=False))
    results: dict[Variant, list[Result]] = {variant: [] for variant in VARIANTS}
    for (variant, _), run, result in zip(students, runs, finished_runs(runs, ranks), strict=True):
        results[variant].append(result)
        say(f"{run.title}: {result['top1']['average']:.2f} %")
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
