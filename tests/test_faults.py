"""Nothing lost: processes killed, signals sent, disks filled, ranks stopped, for real; the runs end bit-identical."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from small_runs import ALONE, assert_same, config, saved, stop_at
from test_distributed import TORCHRUN, arguments

from deit_fast.checkpoint import load_checkpoint, newest_checkpoint, newest_readable_checkpoint
from deit_fast.interrupt import StopRequest, StopVote
from deit_fast.trainer import Trainer
from deit_fast.watchdog import name_the_late

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for_checkpoint(folder, process, count=1, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    while len(list(folder.glob("step_*.pt"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs(number):
    return f"--schedule.epochs={number}"


def run_killed(command, folder, kills, seed):
    """Starts a run, kills it (-9) `kills` times at random moments after a save of its own, and lets it end."""
    moments = random.Random(seed)
    for _ in range(kills):
        before = newest_checkpoint(folder)
        process = start([*command, "--checkpoint.resume=auto"])
        deadline = time.monotonic() + 180
        while newest_checkpoint(folder) == before:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        assert process.poll() is None  # it still trains
        process.kill()
        process.communicate()
    process = start([*command, "--checkpoint.resume=auto"])
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


def check_killed(command, tmp_path, kills):
    """`command` without its folder; it saves after every step, so that a kill is likely to fall into a save."""
    command = [sys.executable, *command, "--checkpoint.every_steps=1", "--eval.every_epochs=100"]
    run_killed([*command, f"--checkpoint.dir={tmp_path / 'broken'}"], tmp_path / "broken", kills, seed=0)
    whole = start([*command, f"--checkpoint.dir={tmp_path / 'whole'}"])
    _, error = whole.communicate(timeout=300)
    assert whole.returncode == 0, error
    one, other = (newest_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    assert one.name == other.name
    assert_same(load_checkpoint(one), load_checkpoint(other))
    assert not list((tmp_path / "broken").glob("*.partial"))
    rows = [json.loads(line)["step"] for line in (tmp_path / "broken" / "steps.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))  # what was done twice is told once


def test_kill_minus_nine_then_resume_ends_bit_identical(few_digits, tmp_path):
    check_killed(arguments(few_digits, tmp_path, 32, epochs(20)), tmp_path, kills=1)


@pytest.mark.slow
def test_the_demo_killed_at_five_random_moments_ends_bit_identical(digits, teacher_checkpoint, tmp_path):
    """The demo's own recipe and images, distillation included, for four epochs."""
    options = {
        "config": "demo_student_distilled",
        "data.path": digits,
        "distill.teacher": "resnet10t",
        "distill.teacher_checkpoint": teacher_checkpoint,
        "runtime.device": "cpu",
    }
    command = ["-m", "deit_fast", "train", *(f"--{key}={value}" for key, value in options.items()), epochs(4)]
    check_killed(command, tmp_path, kills=5)


@pytest.mark.slow
def test_a_run_stopped_at_five_random_steps_ends_bit_identical(digits, tmp_path):
    """Each stop is a real SIGTERM; the demo's teacher, whose batch norm has buffers."""
    whole = Trainer(config(digits, tmp_path / "whole", recipe="demo_teacher"), ALONE)
    steps = random.Random(3).sample(range(whole.last_step - 1), 5)
    expected = saved(whole.fit())
    for step in sorted(steps):
        trainer = Trainer(
            config(digits, tmp_path / "broken", "--checkpoint.resume", "auto", recipe="demo_teacher"), ALONE
        )
        stop_at(trainer, step)
        assert not trainer.fit().finished
    ended = Trainer(config(digits, tmp_path / "broken", "--checkpoint.resume", "auto", recipe="demo_teacher"), ALONE)
    assert_same(expected, saved(ended.fit()))


@pytest.fixture
def small_disk(tmp_path):
    """(a folder on a disk of 40 MB, a function that leaves it `free` bytes); without mount rights a file-size limit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(folder)], capture_output=True)
    if mounted.returncode == 0:

        def fill():
            size = os.statvfs(folder)
            (folder / "filler").write_bytes(b"x" * (size.f_bavail * size.f_frsize - 50_000))

        yield folder, fill, lambda: (folder / "filler").unlink()
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield (
            folder,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1])),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_the_run_goes_on_and_the_last_good_checkpoint_stays(few_digits, small_disk, capfd):
    folder, fill, free = small_disk
    options = ("--schedule.epochs", "4", "--checkpoint.keep_last", "1", "--eval.every_epochs", "9")
    trainer = Trainer(config(few_digits, folder / "run", *options, recipe="demo_student"), ALONE)
    mix, good = trainer.train_step.mix, []

    def wrapped(batch, step, groups):
        if step == 4:  # the save after step 6 meets a full disk
            trainer.writer.wait()
            fill()
        if step == 8:  # that after step 9 does not
            trainer.writer.wait()
            good.append(newest_checkpoint(folder / "run").name)
            assert load_checkpoint(folder / "run" / good[0])["step"] == 3
            free()
        return mix(batch, step, groups)

    trainer.train_step.mix = wrapped
    outcome = trainer.fit()
    assert good == ["step_000000003.pt"]
    assert outcome.finished
    assert outcome.unsaved is None
    assert load_checkpoint(outcome.checkpoint)["step"] == 12
    text = capfd.readouterr().err
    assert "the checkpoint of step 6 could not be written" in text
    assert "the last good one is step_000000003.pt" in text


def test_a_damaged_newest_checkpoint_is_passed_over(few_digits, tmp_path, caplog):
    outcome = Trainer(config(few_digits, tmp_path / "run", recipe="demo_student"), ALONE).fit()
    outcome.checkpoint.write_bytes(outcome.checkpoint.read_bytes()[:-3000])
    assert newest_readable_checkpoint(tmp_path / "run").name == "step_000000003.pt"
    assert "step_000000006.pt cannot be read" in caplog.text
    again = config(few_digits, tmp_path / "run", "--checkpoint.resume", "auto", recipe="demo_student")
    assert Trainer(again, ALONE).state.step == 3


def test_the_best_checkpoint_is_that_of_the_best_evaluation(few_digits, tmp_path):
    Trainer(config(few_digits, tmp_path / "run", recipe="demo_student"), ALONE).fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    score = [max(row["val"]["top1"]["average"], row["val_ema"]["top1"]["average"]) for row in rows]
    best = rows[score.index(max(score))]
    assert load_checkpoint(tmp_path / "run" / "best.pt")["step"] == best["step"]


def workers(process):
    """The ranks' process ids under a torchrun, in no order."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in children.split()]


def end(process):
    """Ends a torchrun and its ranks: killed alone it would leave them running."""
    for pid in workers(process):
        os.kill(pid, signal.SIGKILL)
    process.kill()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGUSR1])
def test_a_signal_to_any_one_rank_saves_and_ends_all_with_exit_code_0(few_digits, tmp_path, number):
    process = start([*TORCHRUN, *arguments(few_digits, tmp_path / "run", 16, epochs(5000))])
    try:
        wait_for_checkpoint(tmp_path / "run", process)
        os.kill(max(workers(process)), number)  # one rank only; the launcher knows nothing of it
        output, error = process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode == 0, error
    assert "stopped at step" in output
    newest = newest_checkpoint(tmp_path / "run")
    assert load_checkpoint(newest)["step"] == int(newest.stem.split("_")[1])


@pytest.mark.slow
def test_a_dead_rank_restarts_all_from_the_last_save_and_a_hang_names_the_rank(few_digits, tmp_path):
    """torchrun's restart: first a rank is killed, then, in the second life, one is stopped (SIGSTOP) for ever."""
    command = [*TORCHRUN[:-2], "--max-restarts", "2", *TORCHRUN[-2:]]
    extra = (epochs(60), "--checkpoint.resume=auto", "--runtime.hang_timeout_s=30", "--eval.every_epochs=100")
    process = start([*command, *arguments(few_digits, tmp_path / "run", 16, *extra)])
    try:
        wait_for_checkpoint(tmp_path / "run", process)
        first = workers(process)
        os.kill(max(first), signal.SIGKILL)
        deadline = time.monotonic() + 120
        while not (second := set(workers(process)) - set(first)) or len(second) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        newest = newest_checkpoint(tmp_path / "run")
        while newest_checkpoint(tmp_path / "run") == newest and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None, process.stderr.read()
        os.kill(max(second), signal.SIGSTOP)
        _, error = process.communicate(timeout=300)
    finally:
        end(process)
    assert process.returncode == 0, error
    assert "has done no step for 30 s" in error
    assert "rank 1 is not heard of" in error or "rank 0 is not heard of" in error or "Rank 0, which keeps" in error
    assert load_checkpoint(newest_checkpoint(tmp_path / "run"))["step"] == 180


def test_a_run_goes_on_with_another_number_of_processes(few_digits, tmp_path):
    """Two processes of 16 go on where one of 32 stopped, and accumulation of 2 x 16 where those did."""
    extra = (epochs(2), "--checkpoint.resume=auto", "--eval.every_epochs=100")
    first = Trainer(config(few_digits, tmp_path / "run", "--runtime.precision", "fp32", "--schedule.warmup_epochs", "0",
                           "--eval.every_epochs", "100", "--eval.batch_size_per_device", "16", recipe="demo_student"),
                    ALONE)  # fmt: skip
    whole_run = config(few_digits, tmp_path / "whole", "--runtime.precision", "fp32", "--schedule.warmup_epochs", "0",
                       recipe="demo_student")  # fmt: skip
    stop_at(first, 1)
    assert first.fit().step == 2
    two = start([*TORCHRUN, *arguments(few_digits, tmp_path / "run", 16, *extra)])
    assert two.wait(timeout=200) == 0, two.stderr.read()
    one, other = saved(Trainer(whole_run, ALONE).fit()), load_checkpoint(newest_checkpoint(tmp_path / "run"))
    assert other["step"] == 6
    for name, value in one["model"].items():
        assert (value - other["model"][name]).abs().mean() < 1e-5, name


def test_late_ranks_are_named():
    assert (
        name_the_late({0: (7, 99.0), 1: (6, 99.5)}, 100.0, 3.0)
        == "rank 1 is behind, at step 6; the others wait at step 7"
    )
    assert name_the_late({0: (7, 99.0), 1: (7, 80.0), 2: (7, 70.0)}, 100.0, 3.0).startswith(
        "ranks 1, 2 are not heard of"
    )
    assert name_the_late({0: (7, 99.0), 1: (7, 99.0)}, 100.0, 3.0).startswith("All ranks stand at step 7")


def test_alone_a_stop_is_agreed_at_once():
    stop = StopRequest()
    vote = StopVote(ALONE, stop)
    assert not vote.agreed()
    stop.requested = True
    assert vote.agreed()
