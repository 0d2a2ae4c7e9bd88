"""`deit-fast bench compare A B`: two runs side by side, and what differs between their machines and configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deit_fast.bench_records import Record, read_records
from deit_fast.cli import write_json
from deit_fast.config_file import config_parser, parse_arguments

from .compare import CONFIDENCE, RESAMPLES, Comparison, Interval, compare_rows, differing_facts
from .options import say
from .table import print_table


def run(arguments: Sequence[str]) -> int:
    """Parses, compares, shows; ValueError for wrong use."""
    parser = config_parser("deit-fast bench compare", "Which differences between two runs are beyond noise.")
    parser.add_argument("before", metavar="A", help="file of JSON lines written by --json; its last record counts")
    parser.add_argument("after", metavar="B", help="another; with several kinds of bench, the last of each kind")
    parser.add_argument("--json", metavar="FILE", help="write the comparison as JSON")
    options = parse_arguments(parser, arguments)
    pairs = newest_pairs(options.before, options.after)
    results = [compare_pair(before, after) for before, after in pairs]
    for result in results:
        show(result)
    write_json(options.json, [as_json(result) for result in results])
    return 0


def newest_pairs(before: str, after: str) -> list[tuple[Record, Record]]:
    """The last timed record of each kind of bench that both files hold; ValueError when they share none."""
    first, second = (
        {record["bench"]: record for record in read_records(path) if is_timed(record)} for path in (before, after)
    )
    if not (shared := [bench for bench in first if bench in second]):
        raise ValueError(
            f"{before} and {after} hold no timed record of the same bench: {', '.join(first) or 'none'} against "
            f"{', '.join(second) or 'none'}"
        )
    return [(first[bench], second[bench]) for bench in shared]


def is_timed(record: Record) -> bool:
    """Whether it has turns: parity, accuracy and the resources of kernels have none."""
    return any(row.get("turn_images_per_second") for row in record["rows"])


def compare_pair(before: Record, after: Record) -> dict[str, Any]:
    """Rows that both have, contenders that one lacks, and the facts that differ."""
    names = [[(row["workload"], row["name"]) for row in record["rows"]] for record in (before, after)]
    return {
        "before": before,
        "after": after,
        "rows": compare_rows(before, after),
        "only_before": [name for name in names[0] if name not in names[1]],
        "only_after": [name for name in names[1] if name not in names[0]],
        "config": differing_facts(before, after, "config"),
        "environment": differing_facts(before, after, "environment"),
    }


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """Plain values; the records themselves stay in their files."""
    rows: list[Comparison] = result["rows"]
    plain = [
        {
            **row._asdict(),
            "speed": interval_as_json(row.speed),
            "cpu": None if row.cpu is None else interval_as_json(row.cpu),
        }
        for row in rows
    ]
    titles = {side: {key: result[side][key] for key in ("bench", "time", "title")} for side in ("before", "after")}
    return {**result, **titles, "rows": plain}


def interval_as_json(interval: Interval) -> dict[str, Any]:
    """With the judgement."""
    return {**interval._asdict(), "beyond_noise": interval.beyond_noise}


def show(result: dict[str, Any]) -> None:
    """The table of rows, and the lines of what differs besides."""
    before, after = result["before"], result["after"]
    title = f"A {before['title']} ({before['time']})\nB {after['title']} ({after['time']})"
    headings = ("workload", "by", "A images/s", "B images/s", "B / A", "CPU-ms B / A", "beyond noise")
    print_table(title, headings, map(cells, result["rows"]), text_columns=2)
    say(
        f"Medians; in brackets their {CONFIDENCE:.0%} interval by a bootstrap over turns ({RESAMPLES:,} draws). "
        "Of rows that do not differ, about 1 in 20 looks different by chance."
    )
    for side, name in (("only_before", "A"), ("only_after", "B")):
        for workload, contender in result[side]:
            say(f"only in {name}: {workload}, {contender}")
    for section in ("config", "environment"):
        for key, one, other in result[section]:
            say(f"{section}: {key}: {one} -> {other}")


def cells(row: Comparison) -> list[str]:
    """A row of the table."""
    cpu = "" if row.cpu is None else interval_text(row.cpu)
    figures = f"{row.before:,.1f}", f"{row.after:,.1f}", interval_text(row.speed), cpu
    return [row.workload, row.name, *figures, judgement(row)]


def interval_text(interval: Interval) -> str:
    """`1.24 (1.20 - 1.31)`"""
    return f"{interval.ratio:.3f} ({interval.low:.3f} - {interval.high:.3f})"


def judgement(row: Comparison) -> str:
    """Which of both figures differ beyond noise, and which way."""
    words = []
    if row.speed.beyond_noise:
        words.append("faster" if row.speed.ratio > 1 else "slower")
    if row.cpu is not None and row.cpu.beyond_noise:
        words.append("less CPU" if row.cpu.ratio < 1 else "more CPU")
    return ", ".join(words) or "no"
