"""`deit-fast profile --config RECIPE --data.path DIR [--steps N]`, `profile compare A B`, `profile report RECORD`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deit_fast.cli import write_json
from deit_fast.config import Config
from deit_fast.config_file import add_config_arguments, config_parser, parse_arguments, parse_config


def run(arguments: Sequence[str]) -> int:
    """Profiles, compares or draws a kept record again; ValueError for wrong use."""
    if arguments and arguments[0] in OTHERS:
        return OTHERS[arguments[0]](arguments[1:])
    parser = config_parser(
        "deit-fast profile",
        "Runs some steps of a training and says where their time goes; alone, or on several devices under torchrun. "
        "Nothing is saved of the training.",
    )
    parser.add_argument("--steps", type=int, default=30, help="recorded steps; as many bare ones run between them")
    parser.add_argument("--warm-up-steps", type=int, default=5, help="steps before them; more for CUDA graphs (11)")
    parser.add_argument("--loader-batches", type=int, default=8, help="batches of each form of the loader by itself")
    parser.add_argument(
        "--random-teacher", action="store_true", help="a teacher with first weights, as the benchmarks have it"
    )
    parser.add_argument("--out", metavar="DIR", default="runs/profile", help="report.html, profile.json and traces")
    parser.add_argument("--json", metavar="FILE", help="write the record here too")
    add_config_arguments(parser)
    config, options = parse_config(parser, arguments)
    for name in ("steps", "warm_up_steps", "loader_batches"):
        if options[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {options[name]}")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says on stderr that there is no GPU
    from deit_fast.distributed import process_group
    from deit_fast.page.plots import plotting_library
    from deit_fast.tuned import apply_first_ranks_tuned

    from .record import build_record
    from .run import Lengths, profiled_trainer, run_profile

    plotting_library()  # what the report needs is asked for before minutes are spent
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    lengths = Lengths(options.steps, options.warm_up_steps, options.loader_batches)
    with process_group(config.runtime.device) as ranks:
        config = apply_first_ranks_tuned(config, ranks)
        with with_teacher(config, options.random_teacher) as config:
            trainer = profiled_trainer(config, ranks, folder, lengths)
        measured = run_profile(trainer, folder, lengths)
        if not ranks.is_main:
            return 0
        record = build_record(trainer, measured)
    publish(record, folder, options.json)
    return 0


@contextmanager
def with_teacher(config: Config, random: bool) -> Iterator[Config]:
    """The run as it is, or with a teacher whose weights need not be here."""
    from deit_fast.open_images import open_images
    from deit_fast.teacher import random_teacher

    if not random:
        yield config
        return
    with random_teacher(config.distill, len(open_images(config.data, "train").classes)) as distill:
        yield replace(config, distill=distill)


def publish(record: dict[str, Any], folder: Path, json_file: str | None) -> None:
    """Shows a record, then keeps it: what was measured is on the screen whatever becomes of the files."""
    from .report import write_report
    from .run import trace_path

    show(record, Console())
    write_json(str(folder / "profile.json"), record)
    report = write_report(record, folder / "report.html")
    Console(soft_wrap=True).print(
        f"Report {report}; trace for ui.perfetto.dev {trace_path(folder, 0)}", highlight=False, markup=False
    )
    write_json(json_file, record)


def show(record: dict[str, Any], console: Console) -> None:
    """The phases as a table, then the advice."""
    step = record["step"]
    title = f"step {step['p50_ms']:,.1f} ms (median of {step['steps']}), {step['images_per_second']:,.0f} images/s"
    table = Table(title=title, title_justify="left")
    for heading in ("phase", "mean ms", "p95 ms", "share", "least - most rank"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for row in record["phases"]:
        spread = f"{min(row['by_rank_ms']):,.2f} - {max(row['by_rank_ms']):,.2f}"
        table.add_row(row["phase"], f"{row['mean_ms']:,.2f}", f"{row['p95_ms']:,.2f}", f"{row['share']:.1%}", spread)
    console.print(table)
    console.print(f"measuring costs {record['overhead']['share']:.3%} of the step", highlight=False)
    for number, advice in enumerate(record["advice"], 1):
        console.print(
            f"{number}. {advice['headline']}: {advice['line']}", highlight=False, markup=False, soft_wrap=True
        )
    if not record["advice"]:
        console.print("Nothing stands out.", highlight=False)


def _compare(arguments: Sequence[str]) -> int:
    parser = config_parser(
        "deit-fast profile compare", "Two profiles side by side.", usage="deit-fast profile compare A B [--json FILE]"
    )
    parser.add_argument("a", help="profile.json or its folder")
    parser.add_argument("b", help="another")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    options = parse_arguments(parser, arguments)
    from .compare import compare_records, read_record, show_comparison

    a, b = read_record(options.a), read_record(options.b)
    show_comparison(a, b, Console())
    write_json(options.json, compare_records(a, b))
    return 0


def _report(arguments: Sequence[str]) -> int:
    """A page needs neither the machine nor the data that a record was made with."""
    usage = "deit-fast profile report RECORD [--out FILE]"
    parser = config_parser("deit-fast profile report", "The page of a kept record.", usage=usage)
    parser.add_argument("record", help="profile.json or its folder")
    parser.add_argument("--out", metavar="FILE", default="profile.html", help="the page")
    options = parse_arguments(parser, arguments)
    from .compare import read_record
    from .report import write_report

    Console(soft_wrap=True).print(
        f"Report {write_report(read_record(options.record), Path(options.out))}", highlight=False, markup=False
    )
    return 0


OTHERS = {"compare": _compare, "report": _report}
