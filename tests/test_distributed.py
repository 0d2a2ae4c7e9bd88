"""Two processes under torchrun (gloo): the same training as one process, one set of files, a stop that all agree on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def arguments(data, folder, per_device, *extra):
    options = {
        "config": "demo_student",
        "data.path": data,
        "checkpoint.dir": folder,
        "schedule.epochs": 2,
        "schedule.warmup_epochs": 0,
        "runtime.batch_size_per_device": per_device,
        "runtime.precision": "fp32",
        "runtime.device": "cpu",
        "mix.group_size": 16,
        "model.drop_path_rate": 0.1,
        "eval.every_epochs": 1,
        "eval.batch_size_per_device": 16,
    }
    return ["-m", "deit_fast", "train", *(f"--{key}={value}" for key, value in options.items()), *extra]


def run(command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_four_ranks_with_accumulation_train_what_one_trains(few_digits, tmp_path):
    """Four processes of two parts of 4 images against one of 32, mixing and drop-path on."""
    four = [*TORCHRUN[:-1], "4"]
    common = ("--mix.group_size=8", "--eval.every_epochs=2")
    run([*four, *arguments(few_digits, tmp_path / "four", 4, *common, "--runtime.accumulate_steps=2")])
    run([sys.executable, *arguments(few_digits, tmp_path / "one", 32, *common)])
    one, other = (torch.load(tmp_path / name / "step_000000006.pt", weights_only=True) for name in ("one", "four"))
    assert one["sums"].keys() == other["sums"].keys()
    for name, value in one["model"].items():
        assert (value - other["model"][name]).abs().mean() < 1e-5, name


GRADIENTS = """
import sys, torch
from small_runs import config
from deit_fast.distributed import process_group
from deit_fast.trainer import Trainer
with process_group("cpu") as ranks:
    run = config(sys.argv[1], sys.argv[2], "--runtime.precision", "fp32", "--model.drop_path_rate", "0.3",
                 "--runtime.batch_size_per_device", str(32 // ranks.world_size), "--runtime.kernels", sys.argv[3],
                 "--runtime.attention", "triton" if sys.argv[3] == "triton" else "auto", recipe="demo_student")
    trainer = Trainer(run, ranks)
    trainer.student.train()
    batch = next(trainer.train_loader.batches(0, 1))
    trainer.train_step(batch, 0, trainer.sampler.groups(0))
    loss = ranks.sum(torch.tensor(trainer.train_step.guard.take()[0].loss, dtype=torch.float64)) / ranks.world_size
    if ranks.is_main:
        torch.save([loss] + [p.grad for p in trainer.student.parameters()], sys.argv[2])
"""


@pytest.mark.parametrize(
    ("ranks", "kernels"),
    [
        (2, "reference"),
        pytest.param(4, "reference", marks=pytest.mark.slow),
        pytest.param(2, "triton", marks=pytest.mark.slow),
    ],
)
def test_gradients_and_loss_are_those_of_one_process(few_digits, tmp_path, ranks, kernels):
    """The first step: mixing by group, drop-path by view, mean over all; 4 ranks share groups of 8.

    kernels: plain torch, or all Triton kernels by their operators' CPU kernels, under DDP against one process.
    """
    (tmp_path / "gradients.py").write_text(GRADIENTS.replace('"fp32"', '"fp32", "--mix.group_size", "8"'))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(__file__)}
    saved = []
    for count in (1, ranks):
        launcher = [sys.executable] if count == 1 else [*TORCHRUN[:-1], str(count)]
        command = [*launcher, str(tmp_path / "gradients.py"), str(few_digits), str(tmp_path / f"{count}.pt"), kernels]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        saved.append(torch.load(tmp_path / f"{count}.pt"))
    (loss, *one), (other_loss, *other) = saved
    assert abs(loss - other_loss) < 1e-6 * loss
    for mine, theirs in zip(one, other, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * mine.norm() + 1e-8


TIMEOUT = """
import torch.distributed as dist
from deit_fast import cli, distributed, trainer
class Stops:
    def __init__(self, config, ranks):
        given = dist.distributed_c10d._get_default_group()._get_backend(ranks.device).options._timeout
        raise ValueError(f"given {given.total_seconds():.0f} s")
trainer.Trainer = Stops
cli.main(["train", "--config", "demo_student", "--runtime.device", "cpu", "--runtime.hang_timeout_s", "3600"])
"""


def test_a_collective_gives_up_after_the_watchdog(tmp_path):
    """Else a hang of more than torch's half an hour would end without its rank being named."""
    (tmp_path / "timeout.py").write_text(TIMEOUT)
    done = subprocess.run([*TORCHRUN, str(tmp_path / "timeout.py")], capture_output=True, text=True, timeout=100)
    assert done.stderr.count("given 7200 s") == 2, done.stderr


def test_two_ranks_train_what_one_trains(few_digits, tmp_path):
    run([*TORCHRUN, *arguments(few_digits, tmp_path / "two", 16)])
    done = run([sys.executable, *arguments(few_digits, tmp_path / "one", 32)])
    assert "images/s" in done.stdout
    rows = {}
    for name in ("one", "two"):
        rows[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["val"]["images"] for row in rows[name]] == [40, 40]  # every image once over all ranks
    for one, two in zip(rows["one"], rows["two"], strict=True):
        assert abs(one["loss"] - two["loss"]) < 1e-4 * one["loss"]
    one, two = (torch.load(tmp_path / name / "step_000000006.pt", weights_only=True) for name in ("one", "two"))
    for name, value in one["model"].items():
        # AdamW's first steps have the size of the rate whatever the gradient, so rounding is seen where it is near 0
        assert (value - two["model"][name]).abs().mean() < 1e-5, name


@pytest.mark.slow  # its twin is test_faults.py's signal to one rank
def test_a_stop_signal_saves_once_and_all_ranks_leave(few_digits, tmp_path):
    command = [*TORCHRUN, *arguments(few_digits, tmp_path / "run", 16, "--schedule.epochs=2000")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run").glob("*.pt")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    finally:
        process.kill()
    newest = max((tmp_path / "run").glob("*.pt"))
    state = torch.load(newest, weights_only=True)
    assert state["step"] == int(newest.stem.split("_")[1])
    assert not list((tmp_path / "run").glob("*.partial"))
