"""The benchmarks: that they run on real images, say what they measured, and append rows that can be read again."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch

from deit_fast.bench_records import read_records
from deit_fast.benchmarks.assembled import assemble
from deit_fast.benchmarks.peers import CROP, FULL
from deit_fast.benchmarks.process_tree import Stopwatch
from deit_fast.benchmarks.step import batch_of
from deit_fast.benchmarks.timing import OURS, Contender, Timing, time_in_turns
from deit_fast.benchmarks.timm_step import TimmStep, timm_student
from deit_fast.cli import main
from deit_fast.config import Config
from deit_fast.dali_pipelines.native.plugin import is_available
from deit_fast.distributed import Ranks
from deit_fast.model import create_student
from deit_fast.precision import choose_precision

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))

OF_TINY_STEPS = [
    "--distill.teacher", "resnet10t", "--distill.teacher_image_size_px", "32",
    "--runtime.batch_size_per_device", "8", "--mix.group_size", "8", "--data.num_threads", "1",
]  # fmt: skip


def rows_by_contender(record):
    return {(row["workload"], row["name"]): row for row in record["rows"]}


def test_loader(photographs, tmp_path, capsys):
    packed = ["--output", str(tmp_path / "packed"), "--shrink-px", "100"]
    assert main(["data", "pack", "--input", str(photographs), *packed]) == 0
    arguments = [
        "bench",
        "loader",
        "--packed",
        str(tmp_path / "packed"),
        "--data.path",
        str(photographs),
        "--turns",
        "1",
        "--images-per-turn",
        "32",
    ]
    arguments += ["--runtime.batch_size_per_device", "16", "--mix.group_size", "16", "--model.image_size_px", "64"]
    arguments += ["--against", "timm,torchvision", "--data.num_threads", "1"]
    assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    text = capsys.readouterr().out
    assert "bilinear (not the recipe)" in text
    assert "3 views a decoding (not the recipe)" in text
    record = json.loads((tmp_path / "rows.jsonl").read_text())
    rows = rows_by_contender(record)
    full = rows["full recipe", "deit_fast graph"]
    assert full["images_per_turn"] == 32
    assert full["images_per_second_min"] <= full["images_per_second"] <= full["images_per_second_max"]
    validation = {name: row["images_per_turn"] for (workload, name), row in rows.items() if workload == "validation"}
    assert validation == dict.fromkeys(validation, 32)  # of 12 images, which come again for all alike
    assert {name for _, name in rows} >= {"timm", "torchvision"}
    assert [workload for workload, name in rows if name.startswith("deit_fast graph, packed, ")] == [CROP, FULL]
    assert (("full recipe", "deit_fast native") in rows) == is_available()
    assert all(rows["full recipe", peer]["images_per_turn"] == 32 for peer in ("timm", "torchvision"))
    assert all(row["cpu_ms_per_image"] > 0 for row in rows.values())
    assert record["environment"]["cpu_cores"] >= 1
    assert rows["file read", OURS]["images_per_turn"] == rows["decode of whole images", OURS]["images_per_turn"] == 32
    mean_size = np.mean([path.stat().st_size for path in (photographs / "train").rglob("*.jpg")])
    assert record["bytes_per_image"] == pytest.approx(mean_size)


def test_a_loaders_turn_has_images(capsys):
    assert main(["bench", "loader", "--images-per-turn", "0"]) == 2
    assert "--images-per-turn must be at least 1, got 0" in capsys.readouterr().err


def test_loader_makes_photographs_when_it_has_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["bench", "loader", "--images", "20", "--turns", "1", "--images-per-turn", "8"]
    arguments += ["--runtime.batch_size_per_device", "8", "--mix.group_size", "8", "--model.image_size_px", "32"]
    assert main(arguments) == 0
    assert len(list(Path("runs/bench").rglob("*.jpg"))) == 20
    assert "made from photographs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("recipe", ["demo_student_distilled", "demo_student"])
def test_step(recipe, tmp_path, capsys):
    arguments = ["bench", "step", "--config", recipe, *OF_TINY_STEPS, "--turns", "2", "--against", "timm"]
    assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "required 1,482.8 images/s" in text
    assert "The budget is DeiT-B's; this is deit_mini" in text
    assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0  # appended
    row, _ = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (("teacher forward", OURS) in rows_by_contender(row)) == (recipe == "demo_student_distilled")
    assert row["config"]["runtime"]["batch_size_per_device"] == 8
    assert (row["schema"], row["bench"]) == (1, "step")
    teacher = "teacher resnet10t" if recipe == "demo_student_distilled" else "no teacher"
    assert f", {choose_precision('auto', ALONE.device)}, {teacher}, batch 8" in row["title"]
    whole = rows_by_contender(row)["whole step", OURS]
    assert whole["step_ms_p50"] <= whole["step_ms_p99"]
    assert row["verdict"]["measured_images_per_second"] == whole["images_per_second"]
    assert row["verdict"]["mfu"] == pytest.approx(whole["mfu"])
    assert rows_by_contender(row)["whole step", "timm"]["tflops_per_image"] == whole["tflops_per_image"]


def test_turns_are_interleaved():
    order = []
    contenders = {Contender("work", name): lambda name=name: lambda: order.append(name) or 5 for name in "ab"}
    timings = time_in_turns(contenders, turns=2)
    assert order == ["a", "b", "a", "b", "a", "b"]  # a turn each to warm up, then rounds
    assert timings["work", "a"].images == [5, 5]


def test_a_row_holds_median_and_spread():
    timing = Timing(images=[10, 10, 10], seconds=[1.0, 2.0, 5.0], cpu_seconds=[1.0, 1.0, 4.0])
    row = timing.row()
    assert row["images_per_second"] == 5
    assert (row["images_per_second_min"], row["images_per_second_max"]) == (2, 10)
    assert row["images_per_second_p20"] == pytest.approx(2 + 0.4 * 3)
    assert row["cpu_ms_per_image"] == row["cores_per_1000_images_per_second"] == 100
    assert row["step_ms_p50"] is None
    assert row["mfu"] is None
    assert timing.times_cheaper_than(Timing([10] * 3, [1.0] * 3, [3.0, 5.0, 4.0])) == 3


def test_cpu_time_covers_living_children():
    watch = Stopwatch()
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=PIPE, stdout=PIPE, text=True) as child:
        assert child.stdout.readline() == "done\n"
        assert watch.read()[1] >= 0.45
        child.communicate("\n")


def test_what_to_measure_has_to_be_said(capsys):
    assert main(["bench"]) == 2
    assert "deit-fast bench loader" in capsys.readouterr().err


def test_train_times_every_stage_and_the_whole(few_digits, tmp_path, capsys):
    arguments = ["bench", "train", "--config", "demo_student_distilled", *OF_TINY_STEPS, "--data.path", str(few_digits)]
    arguments += ["--turns", "2", "--steps-per-turn", "3"]
    assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    (record,) = read_records(str(tmp_path / "rows.jsonl"))
    rows = rows_by_contender(record)
    stages = {"file read", "decode of whole images", CROP, FULL, "mixing", "teacher forward", "student forward"}
    stages |= {"student backward", "loss", "optimizer + moving average", "whole step", "end to end"}
    assert {name for name, _ in rows} >= stages
    whole = rows["end to end", OURS]
    assert (whole["images_per_turn"], whole["turns"], whole["warm_up_turns"]) == (24, 2, 1)
    assert whole["step_ms_p50"] <= whole["step_ms_p95"] <= whole["step_ms_p99"]
    assert whole["peak_memory_bytes"] == {"torch": None, "dali": None}  # the host's would be all contenders' together
    # a step with the teacher asks for the teacher's arithmetic besides, and for no more
    cached, teacher = rows["end to end, cached labels", OURS], rows["teacher forward", OURS]
    assert whole["tflops_per_image"] == pytest.approx(cached["tflops_per_image"] + teacher["tflops_per_image"])
    assert cached["tflops_per_image"] == pytest.approx(3 * rows["student forward", OURS]["tflops_per_image"])
    assert {teacher: verdict["teacher"] for teacher, verdict in record["verdicts"].items()} == {
        "live": "live", "cached": "cached",
    }  # fmt: skip
    assert record["verdict"]["measured_images_per_second"] == whole["images_per_second"]
    assert 0 <= record["stalls"]["end to end"]["data_wait_fraction"] < 1
    assert record["scaling"] is None
    assert f", {choose_precision('auto', ALONE.device)}, teacher resnet10t, from JPEG" in record["title"]
    assert "MFU" in capsys.readouterr().out


@pytest.mark.slow
def test_train_under_torchrun_tells_scaling(few_digits, tmp_path):
    """Two gloo processes: one record, of both, and one device alone beside them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "deit_fast", "bench", "train", "--config", "demo_student_distilled", *OF_TINY_STEPS]
    command += ["--data.path", str(few_digits), "--turns", "2", "--json", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (record,) = read_records(str(tmp_path / "rows.jsonl"))
    rows = rows_by_contender(record)
    together, alone = rows["end to end", OURS], rows["end to end, one device alone", OURS]
    assert (together["images_per_turn"], alone["images_per_turn"]) == (2 * 2 * 8, 2 * 8)
    assert record["verdict"]["devices"] == record["scaling"]["devices"] == 2
    ratios = [
        both / (2 * one)
        for both, one in zip(together["turn_images_per_second"], alone["turn_images_per_second"], strict=True)
    ]
    assert record["scaling"]["efficiency"] == pytest.approx(statistics.median(ratios))
    assert "scaling efficiency" in done.stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--against", "nobody"], "--against nobody"),
        (["--against", "timm", "--distill.kind", "soft"], "distill.kind soft"),
        (["--against", "timm", "--runtime.accumulate_steps", "2"], "runtime.accumulate_steps 1"),
        (["--against", "timm", "--optim.clip_grad_norm", "1"], "use --optim.clip_grad_norm null"),
        (["--against", "timm", "--model.drop_path_mode", "subset"], "use --model.drop_path_mode independent"),
        (["--turns", "0"], "--turns must be at least 1"),
    ],
)
def test_what_the_step_is_not_measured_against(options, named, capsys):
    assert main(["bench", "step", "--config", "demo_student_distilled", *OF_TINY_STEPS, *options]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("name", ["deit_mini_distilled_patch8_32", "deit_mini_patch8_32", "deit3_mini_patch8_32"])
def test_timms_student_has_our_weights(name):
    """The peer trains the same model: names and shapes of its state dict are ours."""
    config = replace(Config(), model=replace(Config().model, name=name, image_size_px=32))
    ours = create_student(name, num_classes=7, image_size_px=32, drop_path_rate=0.1, attention="reference")
    theirs = timm_student(config, 7)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_timms_step_has_our_loss():
    """Without mixing and drop-path, on the same weights: the same gradients as our own step's."""
    model = replace(Config().model, name="deit_mini_distilled_patch8_32", image_size_px=32, drop_path_rate=0.0)
    mix = replace(Config().mix, probability=0.0, group_size=8)
    distill = replace(Config().distill, kind="hard", teacher="resnet10t", teacher_image_size_px=32)
    runtime = replace(Config().runtime, batch_size_per_device=8, device="cpu", precision="fp32")
    config = replace(Config(), model=model, mix=mix, distill=distill, runtime=runtime)
    parts = assemble(config, tuple("abcdefghij"), ALONE)
    batch = batch_of(parts)
    peer = TimmStep(config, 10, torch.device("cpu"), "fp32")
    peer.student.load_state_dict(parts.state.student.state_dict())
    answers = parts.teacher(batch.images)
    peer.teacher = lambda _images: answers
    peer(batch.images, batch.labels)
    parts.step(parts.teacher)(batch, 0, [0])
    ours = dict(parts.state.student.named_parameters())
    for name, parameter in peer.student.named_parameters():
        torch.testing.assert_close(parameter.grad, ours[name].grad, atol=1e-6, rtol=1e-3)


def test_the_stopwatch_measures_the_work_and_not_itself():
    """Waiting takes wall time and no CPU; ten walks through /proc, milliseconds each, are in neither.

    In a process of its own: workers that other tests left are below this one.
    """
    source = """
import time
from deit_fast.benchmarks.process_tree import Stopwatch, below
watch = Stopwatch()
time.sleep(0.2)
wall, cpu = watch.read()
assert 0.2 <= wall
assert cpu < 0.1, cpu
start = time.process_time()
walks = sum(Stopwatch().read()[1] for _ in range(10))
assert walks < 0.1 * (time.process_time() - start), walks
"""
    subprocess.run([sys.executable, "-c", source], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_on_a_gpu_tells_its_memory_and_peak(photographs, tmp_path):
    arguments = ["bench", "train", "--config", "deit_tiny_distilled", "--distill.teacher", "resnet10t", "--turns", "2"]
    arguments += ["--runtime.batch_size_per_device", "16", "--mix.group_size", "16", "--steps-per-turn", "4"]
    arguments += ["--data.path", str(photographs), "--runtime.device", "cuda"]
    assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    (record,) = read_records(str(tmp_path / "rows.jsonl"))
    whole = rows_by_contender(record)["end to end", OURS]
    assert whole["peak_memory_bytes"]["torch"] > 50e6
    assert whole["peak_memory_bytes"]["dali"] > 0
    assert whole["step_ms_p50"] > 0
    assert record["environment"]["gpu"]["driver_version"]
