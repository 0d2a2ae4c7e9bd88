"""`deit-fast tune`: measures what is fastest here and writes it down for `train` and `bench`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deit_fast.benchmarks.options import say
from deit_fast.benchmarks.photographs import PHOTOGRAPHS, make_photographs
from deit_fast.benchmarks.step import NUM_CLASSES
from deit_fast.cli import write_json
from deit_fast.config import Config
from deit_fast.config_file import add_config_arguments, config_parser, parse_config
from deit_fast.config_rules import check_config
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.distributed import Ranks, one_process
from deit_fast.environment import describe_environment
from deit_fast.interrupt import stop_signals_interrupt
from deit_fast.open_images import open_images
from deit_fast.start_report import prepare_host
from deit_fast.tuned import as_text, conditions, tuned_path

from .journal import Journal
from .loader_workload import LoaderWorkload
from .question import Workload
from .questions import QUESTIONS
from .search import Search
from .step_workload import StepWorkload
from .teacher_workload import TeacherWorkload


def run(arguments: Sequence[str]) -> int:
    """Parses, measures, writes; ValueError for wrong use."""
    parser = config_parser(
        "deit-fast tune",
        "Measures the correct candidates for everything that the configuration leaves to us (auto, null), and writes "
        "the fastest into a file that train and bench take over. Run again, it goes on where it was cut.",
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="time for the measurements; those left are named")
    parser.add_argument(
        "--out", metavar="FILE", help="the tuned file; default: by device and model in the user's cache"
    )
    parser.add_argument("--only", default="", metavar="QUESTION,QUESTION", help="some of the questions; default: all")
    parser.add_argument("--again", action="store_true", help="measure the questions again that were measured before")
    parser.add_argument(
        "--processes", type=int | None, help="that will share the cores; default: one for each GPU here"
    )
    parser.add_argument("--json", metavar="FILE", help="write the answers as JSON")
    add_config_arguments(parser)
    config, chosen = parse_config(parser, arguments, "deit_base_distilled")
    if chosen.minutes <= 0:
        raise ValueError(f"--minutes must be above 0, got {chosen.minutes}")
    check_config(config)
    questions = chosen_questions(chosen.only)
    deadline = time.monotonic() + 60 * chosen.minutes
    again = [question.name for question in questions] if chosen.again else []
    with stop_signals_interrupt(), one_process(config.runtime.device, "deit-fast tune") as alone:
        ranks = as_one_of(chosen.processes or processes_here(alone.device), alone)
        prepare_host(config, ranks)
        journal = open_journal(config, ranks, chosen.out, again)
        say(f"tuning {config.model.name} for {journal.valid_for['device']}, {ranks.cores} cores -> {journal.path}")
        values = Search(config, ranks, workloads(config, ranks), journal, deadline, say).run(questions)
    say_result(journal, values)
    write_json(chosen.json, {"path": str(journal.path), "chosen": values, "left": journal.left})
    return 0


def chosen_questions(only: str) -> list[Any]:
    """All questions, or those named; ValueError for one that there is not."""
    names = [question.name for question in QUESTIONS]
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"--only {unknown[0]}: the questions are {', '.join(names)}")
    return [question for question in QUESTIONS if not wanted or question.name in wanted]


def processes_here(device: torch.device) -> int:
    """As `torchrun` would start them."""
    return torch.cuda.device_count() if device.type == "cuda" else 1


def as_one_of(processes: int, alone: Ranks) -> Ranks:
    """This process with its share of the cores only, as in a run with one process for each device."""
    return replace(alone, local_world_size=processes)


def open_journal(config: Config, ranks: Ranks, out: str | None, again: Sequence[str]) -> Journal:
    """The tuned file, with what it is valid for."""
    path = Path(out) if out else tuned_path(config, ranks.device)
    measured_with = {
        "runtime.batch_size_per_device": config.runtime.batch_size_per_device,
        "cores": ranks.cores,
        "data.path": config.data.path,
    }
    journal = Journal(path, conditions(config, ranks.device), measured_with, again)
    journal.environment = describe_environment(ranks.device)
    return journal


def workloads(config: Config, ranks: Ranks) -> dict[str, Workload]:
    """Those that can be run here; a loader needs images."""
    images = find_images(config)
    step = StepWorkload(ranks, max(NUM_CLASSES, 0 if images is None else len(images.classes)))
    found: dict[str, Workload] = {"step": step, "teacher": TeacherWorkload(ranks, NUM_CLASSES)}
    return found if images is None else found | {"loader": LoaderWorkload(ranks, images, step)}


def find_images(config: Config) -> ImageSet | None:
    """Those of data.path, or photographs; None, said, when neither is there."""
    if config.data.path:
        return open_images(config.data, "train")
    try:
        folder = make_photographs(PHOTOGRAPHS)
    except RuntimeError as error:
        say(f"the loader is not tuned: {error}")
        return None
    return open_images(replace(config.data, path=str(folder)), "train")


def say_result(journal: Journal, values: dict[str, Any]) -> None:
    """What was chosen, what is left, and where the file is used."""
    text = " ".join(f"--{key} {as_text(value)}" for key, value in values.items())
    say(f"chosen: {text or 'nothing'}")
    if journal.left:
        say(f"not measured, for want of time: {', '.join(journal.left)}; run deit-fast tune again to go on")
    say(f"{journal.path}: train and bench use it on this device for this model (runtime.tuned auto)")
