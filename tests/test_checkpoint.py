"""Saves are whole or not there; loading runs no code and names the file."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from deit_fast.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint


def state(step, size=4):
    return {"step": step, "model": {"w": torch.full((size,), float(step))}, "optimizer": {}, "config": {}}


def test_a_save_reads_back_and_only_the_newest_stay(tmp_path):
    for step in (1, 2, 10, 100):
        save_checkpoint(tmp_path, state(step), keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000010.pt", "step_000000100.pt"]
    newest = newest_checkpoint(tmp_path)
    assert load_checkpoint(newest)["model"]["w"].tolist() == [100.0] * 4


def test_no_checkpoint_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_a_failed_write_keeps_the_last_good_one_and_leaves_nothing_half_written(tmp_path):
    save_checkpoint(tmp_path, state(1), keep_last=1)
    unsaveable = state(2) | {"optimizer": {"code": lambda: None}}
    with pytest.raises(Exception, match=r"pickle|lambda"):
        save_checkpoint(tmp_path, unsaveable, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    bad = state(3)
    bad["model"]["w"][1] = float("nan")
    with pytest.raises(RuntimeError, match="w are not finite at step 3"):
        save_checkpoint(tmp_path, bad, keep_last=1)
    assert list(tmp_path.iterdir()) == []


SAVER = """
import sys, torch
from pathlib import Path
from deit_fast.checkpoint import save_checkpoint
step = 0
while True:
    step += 1
    save_checkpoint(Path(sys.argv[1]), {"step": step, "model": {"w": torch.full((2_000_000,), float(step))},
                    "optimizer": {}, "config": {}}, keep_last=2)
    print(step, flush=True)
"""


def test_kill_minus_nine_while_saving_leaves_a_whole_checkpoint(tmp_path):
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2):
            process.stdout.readline()
        time.sleep(0.003)  # into the middle of the next save
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        saved = load_checkpoint(newest_checkpoint(tmp_path))
        assert torch.equal(saved["model"]["w"], torch.full((2_000_000,), float(saved["step"])))


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch HERE",)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "step_000000001.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step_000000001.pt cannot be read"):
        load_checkpoint(path)


def test_a_truncated_file_is_named(tmp_path):
    path = save_checkpoint(tmp_path, state(1, size=10_000), keep_last=1)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(path)


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1, "model": RunsCode(), "optimizer": {}, "config": {}}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt cannot be read"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "HERE").exists()


def test_a_file_of_plain_weights_is_not_a_checkpoint_to_resume(tmp_path):
    torch.save({"head.weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"model\.init_checkpoint"):
        load_checkpoint(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "missing.pt")
