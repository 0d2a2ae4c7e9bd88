"""Records: written, read again, and what they say of the machine."""

import json
import os

import torch

from deit_fast.bench_records import SCHEMA, append_record, read_records
from deit_fast.benchmarks.provenance import GPU_FACTS, describe_machine, gpu_facts
from deit_fast.benchmarks.records import build_record, rows_of
from deit_fast.benchmarks.timing import Contender, Timing

CPU = torch.device("cpu")


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = str(tmp_path / "new" / "rows.jsonl")  # the folder is made
    rows = rows_of({Contender("full recipe", "deit_fast"): Timing([10, 10], [1.0, 2.0], [3.0, 1.0])})
    record = build_record("loader", "a title", rows, CPU, config={"data": {"prefetch": 2}}, bytes_per_image=110e3)
    append_record(path, record)
    append_record(path, record)
    assert read_records(path) == [record, record]
    assert record["schema"] == SCHEMA
    assert record["verdict"] is None
    assert record["time"].endswith("+00:00")
    (row,) = record["rows"]
    assert row["turn_images_per_second"] == [10, 5]
    assert row["turn_cpu_ms_per_image"] == [300, 100]
    assert json.loads(json.dumps(row)) == row


def test_a_blank_line_is_no_record_and_no_error(tmp_path):
    record = build_record("loader", "a title", [], CPU, config={})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(record)}\n\n{json.dumps(record)}\n  \n")
    assert read_records(str(path)) == [record, record]


def test_turns_too_short_for_cpu_time_say_so():
    row = Timing([10], [1.0]).row()
    assert row["cpu_ms_per_image"] is row["cores_per_1000_images_per_second"] is None
    assert row["turn_cpu_ms_per_image"] == []


def test_the_machine_is_told():
    machine = describe_machine(CPU)
    assert machine["cpu_cores"] == len(os.sched_getaffinity(0))
    assert machine["gpu"] is machine["cuda"] is None
    assert machine["load_average_1_min"] >= 0


def test_gpu_facts_are_those_of_nvidia_smi(tmp_path, monkeypatch):
    """A script in nvidia-smi's place, which answers for one GPU only."""
    values = [f"value of {fact}" for fact in GPU_FACTS]
    script = tmp_path / "nvidia-smi"
    script.write_text(f'#!/bin/sh\n[ "$1" = --id=GPU-1 ] || exit 6\necho "{", ".join(values)}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_facts("GPU-1") == dict(zip(GPU_FACTS, values, strict=True))
    assert gpu_facts("GPU-2") is None
    monkeypatch.setenv("PATH", "")
    assert gpu_facts("GPU-1") is None
