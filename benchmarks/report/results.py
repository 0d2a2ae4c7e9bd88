"""What a report is made of: the records of one or several files, and which of them says what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_fast.bench_records import Record, read_records
from deit_fast.page.page import format_number

from ..timing import OURS

Row = dict[str, Any]

FULL = "full recipe"
LOADER_STAGES = ("file read", "decode of whole images", "decode + crop + flip", FULL)
STEP_STAGES = (
    "mixing",
    "teacher forward",
    "student forward",
    "student backward",
    "loss",
    "optimizer + moving average",
)
TOTALS = ("whole step", "end to end")
"""How the workloads begin that hold a step's other stages."""
ALONE = "end to end, one device alone"
# As they stand in files: a report needs neither DALI nor timm, whose users write them (a test compares the names).


@dataclass(frozen=True)
class Results:
    """Records, the oldest first."""

    records: Sequence[Record]

    def latest(self, *benches: str) -> Record | None:
        """The newest record of any of these benches that has rows."""
        found = [record for record in self.records if record["bench"] in benches and record["rows"]]
        return found[-1] if found else None

    def judged(self) -> Record | None:
        """The record whose verdict counts: the budget's model first, then end to end before the step alone, newest."""
        found = [record for record in self.records if record.get("verdict")]
        return max(
            found,
            key=lambda record: (record["verdict"]["is_budget_model"], record["bench"] == "train", record["time"]),
            default=None,
        )


def read_files(paths: Iterable[Path]) -> Results:
    """The records of all files; ValueError, naming file and line, for what is none."""
    return gather(record for path in paths for record in read_records(str(path)))


def gather(records: Iterable[Record]) -> Results:
    """Records sorted by their time; those without one, from before rows had it, come first."""
    return Results(sorted(records, key=lambda record: record.get("time", "")))


def is_ours(row: Row) -> bool:
    """Whether this project did the work."""
    return bool(row["name"].startswith(OURS))


def is_total(row: Row) -> bool:
    """Whether a row is a whole step, with or without its loader."""
    return bool(row["workload"].startswith(TOTALS))


def totals(record: Record) -> list[Row]:
    """Our whole steps on all devices: with the teacher live, with cached labels, end to end."""
    return [row for row in record["rows"] if is_total(row) and is_ours(row) and row["workload"] != ALONE]


def stages(record: Record) -> list[Row]:
    """The parts of a step, each measured alone, in their order."""
    return [row for row in record["rows"] if is_ours(row) and row["workload"] in STEP_STAGES]


def loader_stages(record: Record) -> list[Row]:
    """What a loader does, each with what comes before it: read, decode, crop, the full recipe."""
    return [row for row in record["rows"] if is_ours(row) and row["workload"] in LOADER_STAGES]


def ms_per_image(row: Row) -> float:
    """Wall milliseconds an image, over all devices."""
    return 1e3 / float(row["images_per_second"])


def devices_of(record: Record) -> int:
    """How many took part."""
    return int((record.get("verdict") or {}).get("devices") or record["environment"].get("world_size", 1))


def machine(record: Record) -> str:
    """`8 x NVIDIA H100 80GB HBM3` or `2 cores of an Intel(R) Xeon(R)`."""
    environment = record["environment"]
    if environment["device"] == "cpu":
        return f"{environment['cpu_cores']} cores of {environment['cpu']}"
    return f"{devices_of(record)} x {environment['device']}"


def provenance(record: Record) -> str:
    """Where, when and with which versions a record was measured, in one sentence."""
    environment = record["environment"]
    versions = ", ".join(f"{name.removeprefix('nvidia-')} {v}" for name, v in environment["packages"].items())
    day, commit = str(record.get("time", "an unknown day"))[:10], environment.get("commit") or "an installed wheel"
    turns = {row["turns"] for row in record["rows"] if row.get("turns")}
    spread = f", medians of {format_number(max(turns))} turns" if turns else ""
    return f"{machine(record)}; {versions}; {day}, at {commit}{spread}."
