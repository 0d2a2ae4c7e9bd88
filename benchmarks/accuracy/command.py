"""`deit-fast bench accuracy`: no, soft and hard distillation, by a ConvNet and by a ViT, over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deit_fast.bench_records import Record, append_record
from deit_fast.config import DataConfig
from deit_fast.config_file import config_parser, parse_arguments
from deit_fast.distributed import one_process
from deit_fast.open_images import open_images

from ..records import build_record
from ..table import print_table
from .experiment import Result, Teacher, rows_of, run_experiment
from .fashion_mnist import DEBIAN, write_fashion_mnist
from .intervals import difference, verdict
from .show import CLAIM_HEADINGS, HEADINGS, claim_rows, table_rows
from .variants import CLAIMS, HARD, Plan, TeacherName, Variant

HELP = {
    "images": "training images, the same number of each class",
    "val_images": "validation images, the same number of each class",
    "epochs": "of a student",
    "teacher_epochs": "of the ConvNet",
    "vit_teacher_epochs": "of the ViT that teaches",
    "seeds": "runs of each variant",
}


def run(arguments: Sequence[str]) -> int:
    """Trains what is missing, shows, writes; ValueError for wrong use."""
    options = parse_arguments(_parser(), arguments)
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    if min(asdict(plan).values()) < 1:
        raise ValueError(f"bench accuracy needs at least 1 of everything, got {asdict(plan)}")
    console = Console(soft_wrap=True, highlight=False)
    counts = {"train": plan.images, "val": plan.val_images}
    folder = Path(options.folder)
    with one_process(options.device, "deit-fast bench accuracy") as ranks:
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"fashion_mnist_{plan.images}_{plan.val_images}"
        data = Path(options.data) if options.data else write_fashion_mnist(made, counts, Path(options.fashion_mnist))
        teachers, results = run_experiment(plan, data, folder, ranks, partial(console.print, markup=False))
        record = record_of(plan, data, teachers, results, ranks.device)
    show(record)
    if options.json:
        append_record(options.json, record)
    return 0


def record_of(
    plan: Plan,
    data: Path,
    teachers: dict[TeacherName, Teacher],
    results: dict[Variant, list[Result]],
    device: torch.device,
) -> Record:
    """A row a variant, and the claims with what was found of them."""
    top1 = {variant: [run["top1"]["average"] for run in runs] for variant, runs in results.items()}
    claims = []
    for text, better, other in CLAIMS:
        found = difference(top1[better], top1[other])
        claims.append({"claim": text, "difference": found.mean, "low": found.low, "high": found.high})
        claims[-1]["holds"] = verdict(found)
    name = "Fashion-MNIST" if data.name.startswith("fashion_mnist") else data.name
    images = len(open_images(DataConfig(path=str(data)), "train"))  # --data brings its own number
    return build_record(
        "accuracy",
        f"DeiT-mini at 32 px, {plan.epochs} epochs of {images:,} images of {name}",
        rows_of(teachers, results),
        device,
        config={"plan": asdict(plan), "student": results[HARD][0]["config"]},
        claims=claims,
        teachers={name: teacher.top1 for name, teacher in teachers.items()},
    )


def show(record: Record) -> None:
    """Prints both tables."""
    print_table(record["title"], HEADINGS, table_rows(record))
    print_table("What the paper claims", CLAIM_HEADINGS, claim_rows(record))


def _parser() -> Any:
    name = "deit-fast bench accuracy"
    parser = config_parser(name, "What the recipe claims, shown on few images.", usage=f"{name} [options]")
    for field in fields(Plan):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=field.default, help=HELP[field.name])
    parser.add_argument(
        "--data", metavar="DIR", help="a folder with train/ and val/, used whole, instead of Fashion-MNIST"
    )
    parser.add_argument("--fashion-mnist", metavar="DIR", default=str(DEBIAN), help="its files")
    parser.add_argument("--folder", metavar="DIR", default="runs/bench/accuracy", help="runs and results")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", metavar="FILE", help="append the result as one JSON line")
    return parser
