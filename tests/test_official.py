"""Other programs as contenders: stopped between turns, ended with us, and the official one with its patches."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image, ImageOps

from deit_fast.benchmarks import official_patches
from deit_fast.benchmarks.comparable import as_option
from deit_fast.benchmarks.official import official_arguments, official_contender
from deit_fast.benchmarks.official_run import Shares, in_turns
from deit_fast.benchmarks.process_tree import Stopwatch
from deit_fast.benchmarks.steady_program import SteadyProgram
from deit_fast.benchmarks.timing import Contender
from deit_fast.benchmarks.train_peers import check_against, official_programs, share_lines, shares, works_against
from deit_fast.config import Config
from deit_fast.data import open_train_and_val
from deit_fast.distributed import Ranks

STAND_IN = """
import json, os, sys, time
os.setpgrp()
if not os.fork():  # a worker that reads ahead without end
    while True: pass
def report(images): print(json.dumps({"images": images, "seconds": 0.1, "parts": {"loader": 0.05}}), flush=True)
report(0)
for line in sys.stdin:
    until = time.process_time() + 0.3
    while time.process_time() < until: pass
    report(8 * int(line))
"""


def program(source, steps=3):
    folder = tempfile.TemporaryDirectory()
    return SteadyProgram("the stand-in", [sys.executable, "-c", source], folder, steps)


def group_is_alive(group):
    """Whether any process of the group runs or is stopped; killed ones may wait for init as zombies."""
    states = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(int(line.split()[0]) == group and line.split()[1][0] != "Z" for line in states.splitlines())


def test_a_program_works_in_its_turns_only():
    """Its worker burns a core while it may; between turns it gets no CPU time."""
    prepare = program(STAND_IN)
    turn = prepare()
    watch = Stopwatch()
    time.sleep(0.5)
    between = watch.read()[1]
    assert turn() == 24
    during = watch.read()[1] - between
    assert during >= 0.25 > 3 * between
    assert prepare()() == 24  # the same process goes on
    assert prepare.reports == [{"images": 24, "seconds": 0.1, "parts": {"loader": 0.05}}] * 2
    group = prepare.process.pid
    prepare.close()
    assert not group_is_alive(group)


def test_a_program_ends_with_us_even_if_we_are_killed(tmp_path):
    """The one that is measured against is stopped, and could not see that nobody is there any more."""
    source = f"""
import sys, tempfile, time
from deit_fast.benchmarks.steady_program import SteadyProgram
started = SteadyProgram("the stand-in", [sys.executable, "-c", {STAND_IN!r}], tempfile.TemporaryDirectory(), 3)
started()
print(started.process.pid, flush=True)
time.sleep(60)
"""
    ours = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    group = int(ours.stdout.readline())
    assert group_is_alive(group)
    ours.kill()
    ours.wait()
    deadline = time.monotonic() + 20
    while alive := group_is_alive(group):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            break
        time.sleep(0.05)
    assert not alive


def test_a_program_that_fails_is_quoted():
    with pytest.raises(RuntimeError, match="the stand-in ended: KeyError: 'teacher'"):
        program("raise KeyError('teacher')")()


def test_shares_are_those_of_the_measured_turns():
    """The turn to warm up does not count, and a long turn counts for more than a short one."""
    stand_in = program("")
    turns = (9.0, 9.0), (1.0, 0.5), (3.0, 0.1)
    stand_in.reports = [{"images": 8, "seconds": s, "parts": {"loader": 0.0, "teacher": t}} for s, t in turns]
    found = shares({Contender("end to end", "deit main.py"): stand_in}, turns=2)
    assert found == {"deit main.py": {"loader": 0.0, "teacher": pytest.approx(0.15)}}
    assert share_lines(found) == ["deit main.py: loader 0%, teacher 15% of the time"]


def test_batches_pass_in_turns():
    """Two to warm up, then as many as each command says; a report follows the last step of a turn, not its batch."""
    batches = ((torch.zeros(4, 3), torch.zeros(4)) for _ in itertools.count())
    reports, shares, counts = io.StringIO(), Shares(), []
    turns = in_turns(batches, 2, io.StringIO("3\n1\n"), reports, shares)
    with pytest.raises(SystemExit):
        counts.extend(reports.getvalue().count("\n") for _ in turns)
    assert counts == [0, 0, 1, 1, 1, 2]
    lines = [json.loads(line) for line in reports.getvalue().splitlines()]
    assert [line["images"] for line in lines] == [8, 12, 4]
    assert all(line["parts"]["loader"] > 0 and line["parts"]["teacher"] == 0 for line in lines)


def test_patches(monkeypatch):
    """What the official files ask of timm 0.3 and older Pillow works with today's."""
    monkeypatch.setattr(ImageOps, "posterize", ImageOps.posterize)  # to be put back
    model = timm.models.vision_transformer.VisionTransformer
    monkeypatch.setattr(model, "__init__", model.__init__)
    monkeypatch.setattr(timm.data.transforms, "_pil_interp", None, raising=False)  # to be taken away afterwards
    monkeypatch.delattr(timm.data.transforms, "_pil_interp")
    official_patches.posterize_to_no_bits()
    official_patches.pretrained_arguments()
    official_patches.timm_names()
    assert timm.data.transforms._pil_interp("bicubic") == Image.Resampling.BICUBIC
    image = Image.effect_noise((8, 8), 99).convert("RGB")
    assert ImageOps.posterize(image, 0).getextrema() == ((0, 0),) * 3
    assert ImageOps.posterize(image, 8).tobytes() == image.tobytes()
    tiny = model(img_size=32, embed_dim=12, depth=1, num_heads=1, num_classes=2, pretrained_cfg=None, cache_dir=None)
    assert tiny.head.out_features == 2
    with official_patches.CpuAutocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_wrong_use_is_named(few_digits, tmp_path):
    config = Config()
    config = replace(config, data=replace(config.data, path=str(few_digits)))
    images, _ = open_train_and_val(config.data)
    with pytest.raises(ValueError, match=r"main.py is not there.*git clone"):
        official_contender(tmp_path, config, images, workers=1, steps_per_turn=1)
    for name in ("main", "engine", "losses", "utils"):
        (tmp_path / f"{name}.py").touch()
    for key, value in (("augment.policy", "three"), ("loss.cosub", True), ("model.drop_path_mode", "subset")):
        with pytest.raises(ValueError, match=f"{key} {as_option(value)} is not compared; use --{key}"):
            official_contender(tmp_path, changed(config, key, value), images, workers=1, steps_per_turn=1)
    with pytest.raises(ValueError, match="data.path"):
        official_contender(tmp_path, config, object(), workers=1, steps_per_turn=1)


def changed(config, key, value):
    section, name = key.split(".")
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def test_the_official_program_is_told_what_we_do():
    """What changes a step reaches the command line of main.py, and nothing stands there as None."""
    for key, value, told in (
        ("model.drop_path_rate", 0.3, "--drop-path=0.3"),
        ("augment.erase_mode", "const", "--remode=const"),
        ("augment.erase_count", 3, "--recount=3"),
        ("mix.probability", 0.5, "--mixup-prob=0.5"),
        ("mix.switch_probability", 0.1, "--mixup-switch-prob=0.1"),
        ("loss.label", "bce", "--bce-loss"),
        ("optim.clip_grad_norm", 1.0, "--clip-grad=1.0"),
        ("optim.ema_decay", None, "--no-model-ema"),
    ):
        assert told in official_arguments(changed(Config(), key, value), 2)
        assert told not in official_arguments(Config(), 2)
    assert not any("None" in argument for argument in official_arguments(Config(), 2))


def test_under_torchrun_one_process_has_the_whole_batch(photographs, tmp_path, monkeypatch):
    """On the first rank, with the threads of all: the variable by which torchrun takes them away is not handed on."""
    for name in ("main.py", "engine.py", "losses.py", "utils.py"):
        (tmp_path / name).touch()
    config = changed(changed(Config(), "data.path", str(photographs)), "distill.kind", "none")
    config = changed(config, "runtime.batch_size_per_device", 8)
    images, _ = open_train_and_val(config.data)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ranks = Ranks(rank=0, world_size=2, local_rank=0, local_world_size=2, device=torch.device("cpu"))
    programs = official_programs(str(tmp_path), config, ranks, images, steps=1)
    try:
        for program in programs.values():
            assert "--batch-size=16" in program.command
            assert f"--num_workers={2 * ranks.cores}" in program.command
            assert "OMP_NUM_THREADS" not in program.environment
    finally:
        for program in programs.values():
            program.close()
    assert [work.prepare()() for work in works_against({}, 1.0).values()] == [0, 0]
    with pytest.raises(ValueError, match="on the CPU of one machine"):
        check_against(str(tmp_path), config, replace(ranks, world_size=4), images)


@pytest.mark.slow
def test_the_official_program(photographs):
    """A checkout of facebookresearch/deit trains a small model on our files; the teacher has a share of its time."""
    directory = os.environ.get("DEIT_FAST_OFFICIAL")
    if directory is None:
        pytest.skip("set DEIT_FAST_OFFICIAL to a checkout of facebookresearch/deit")
    config = Config()
    config = replace(
        config,
        data=replace(config.data, path=str(photographs)),
        model=replace(config.model, name="deit_tiny_distilled_patch16_224"),
        distill=replace(config.distill, kind="hard", teacher="resnet10t"),
        runtime=replace(config.runtime, batch_size_per_device=4),
    )
    images, _ = open_train_and_val(config.data)
    prepare = official_contender(
        directory, config, images, workers=1, steps_per_turn=2, warm_up_steps=1, bf16_autocast=True
    )
    watch = Stopwatch()
    assert prepare()() == 8
    assert watch.read()[1] > 0
    (report,) = prepare.reports
    assert 0 < report["parts"]["teacher"] < report["seconds"]
    assert Path(prepare.folder.name, "teacher.pth").exists()
    prepare.close()
    assert not Path(prepare.folder.name).exists()
