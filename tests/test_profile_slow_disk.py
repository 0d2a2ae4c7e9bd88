"""A disk that is slow indeed, below DALI's own threads: the profile tells it from a slow loader and a slow rank."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_distributed import TORCHRUN

SOURCE = Path(__file__).with_name("slow_open.c")
OPTIONS = {
    "--config": "demo_student",
    "--schedule.epochs": 20,
    "--schedule.warmup_epochs": 0,
    "--runtime.device": "cpu",
    "--runtime.batch_size_per_device": 8,
    "--mix.group_size": 8,
    "--steps": 5,
    "--warm-up-steps": 2,
    "--loader-batches": 2,
}
SLOW_MS = 40
PARTLY = """#!/bin/sh
[ "${RANK:-1}" = 1 ] && export LD_PRELOAD="$SLOW_OPEN"
exec "$@"
"""


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """A command before another that gives rank 1, or a process alone, the slow disk."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the slow disk")
    folder = tmp_path_factory.mktemp("slow")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "slow_open.so", SOURCE, "-ldl"], check=True)
    (folder / "partly.sh").write_text(PARTLY)
    (folder / "partly.sh").chmod(0o755)
    return folder / "partly.sh"


def record_of(launcher, partly, data, out):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "SLOW_US": str(1000 * SLOW_MS),
        "SLOW_OPEN": str(partly.with_name("slow_open.so")),
    }
    options = OPTIONS | {"--data.path": data, "--out": out}
    command = [
        *launcher, str(partly), sys.executable, "-m", "deit_fast", "profile",
        *(str(text) for pair in options.items() for text in pair),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "profile.json").read_text())


@pytest.mark.slow
def test_a_slow_disk_is_named_first_and_the_storage_is_blamed(few_digits, tmp_path, partly):
    """Its smaller twin, with a slow iterator, is in test_profile.py."""
    record = record_of([], partly, few_digits, tmp_path)
    first = record["advice"][0]
    assert first["cause"] == "data"
    assert "so it is the storage" in first["mend"]
    assert record["loader"]["who_waits"] == "the step waits for the loader"
    assert record["idle"]["idle_causes"]["waiting for data"] > 0.5
    read = next(row for row in record["loader"]["operators"] if row["operator"] == "io.file.Read")
    threads = record["loader"]["num_threads"]
    assert read["images_per_second"] <= 1.2 * threads * 1000 / SLOW_MS  # the growing stops being fast there


@pytest.mark.slow
def test_one_of_two_ranks_with_a_slow_disk_is_named_first_and_backward_is_not_blamed(few_digits, tmp_path, partly):
    """Its smaller twin, on a record, is in test_profile_record.py."""
    record = record_of([*TORCHRUN, "--no-python"], partly, few_digits, tmp_path)
    first = record["advice"][0]
    assert first["cause"] == "rank"
    assert first["evidence"].startswith("rank 1 ")
    assert "storage" in first["mend"]
    assert record["straggler"]["phase"] == "fetch"
    phases = {row["phase"]: row["by_rank_ms"] for row in record["phases"]}
    assert phases["all-reduce tail"][0] > 8 * SLOW_MS / 2  # the sound rank waits there,
    assert phases["backward"][0] < 8 * SLOW_MS / 2  # and not in its backward
    assert record["idle"]["idle_causes"]["waiting for a rank"] > 0.5
    assert record["all_reduce_overlap"] is not None
    assert (tmp_path / "trace_rank1.json.gz").exists()
