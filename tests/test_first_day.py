"""`make gpu`: its steps one by one on the CPU, and that what breaks is said to have broken."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from deit_fast.bench_records import append_record
from deit_fast.benchmarks.first_day.__main__ import main as first_day
from deit_fast.benchmarks.first_day.run import Result, judge, read_results, run_step
from deit_fast.benchmarks.first_day.show import headline, write_page
from deit_fast.benchmarks.first_day.steps import Plan, Step, StepError, build_steps, read_bench, read_tests, read_tuned
from deit_fast.benchmarks.image_comparison import difference
from deit_fast.benchmarks.records import build_record
from deit_fast.benchmarks.verdict import Stage, reach_verdict
from deit_fast.cli import main
from deit_fast.config import IMAGENET_STD
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.dali_pipelines.native.plugin import is_available
from deit_fast.kernels.choice import TUNABLE, has_kernel

SMALL = ("--runtime.batch_size_per_device", "8", "--mix.group_size", "8")


def plan(tmp_path, **values):
    chosen = {"device": "cpu", "devices": 1, "config": "demo_student", "data": None, "minutes": 5.0, "overrides": SMALL}
    return Plan(out=tmp_path, **(chosen | values))


def program(code, name="step", read=lambda output: output.strip()):
    return Step(name, "it works", [sys.executable, "-c", code], read)


def test_without_a_gpu_there_is_nothing_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert first_day(["--out", str(tmp_path / "gpu")]) == 0
    assert "no GPU here" in capsys.readouterr().out
    assert not (tmp_path / "gpu").exists()


def test_the_steps_in_order(tmp_path):
    steps = build_steps(plan(tmp_path, device="cuda", devices=8, config="deit_base_distilled", overrides=()))
    benches = ["bench kernels", "bench loader", "bench step", "bench train"]
    names = [step.name for step in steps]
    assert names == ["doctor", "tests", "images", "tune", *benches, "bench report", "profile"]
    by_name = {step.name: " ".join(step.command) for step in steps}
    assert "--nproc-per-node 8 -m deit_fast bench train --config deit_base_distilled" in by_name["bench train"]
    tuned = str(tmp_path / "tuned.yaml")
    assert [name for name in names if f"--runtime.tuned {tuned}" in by_name[name]] == [*benches[1:], "profile"]
    assert "profile --config deit_base_distilled --runtime.device cuda" in by_name["profile"]
    assert "--random-teacher" in by_name["profile"]  # the teacher's weights need not be here


def test_profile_alone_has_images(tmp_path, monkeypatch):
    """It is the only step whose verb makes none where --data names none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "deit_fast.benchmarks.photographs.write_photographs", lambda path, _count: path.mkdir(parents=True)
    )
    tried = []

    def look(step, _folder):
        tried.append(Path(step.command[step.command.index("--data.path") + 1]))
        return Result(tried[0].is_dir(), "", 0.0, "", "")

    monkeypatch.setattr("deit_fast.benchmarks.first_day.__main__.run_step", look)
    assert first_day(["--device", "cpu", "--out", "gpu", "--only", "profile"]) == 0
    assert len(tried) == 1


def test_a_step_that_fails_does_not_stop_the_page(tmp_path):
    steps = [
        program("print('42 things')", "one"),
        program("print('working'); raise SystemExit('the disk is full')", "two"),
        program("import os; os.kill(os.getpid(), 9)", "three"),
        program("", "four", read=lambda _output: Path("/nowhere/result.json").read_text()),
        program("", "five"),
    ]
    for step in steps[:-1]:
        run_step(step, tmp_path)
    results = read_results(tmp_path)  # as a later call finds them
    assert {name: result.held for name, result in results.items()} == {
        "one": True, "two": False, "three": False, "four": False,
    }  # fmt: skip
    assert results["one"].text == "42 things"
    assert results["two"].text == "exit code 1: the disk is full"
    assert results["three"].text == "exit code -9: no output"
    assert "cannot be read (FileNotFoundError" in results["four"].text
    environment = {"device": "NVIDIA H100", "cpu_cores": 8}
    html = write_page(steps, results, environment, tmp_path).read_text()
    assert "3 of 5 steps did not hold: two, three, four" in html
    assert html.count("did not hold</td>") == 3
    assert "not run</td>" in html
    assert "working\nthe disk is full" in html


def test_what_the_page_says_first():
    assert headline(3, [], []) == "All 3 steps held"
    assert headline(3, [], ["bench"]) == "What was run held; not run: bench"
    assert headline(3, ["tune"], ["bench"]).startswith("1 of 3 steps did not hold")


def test_a_suite_in_which_nothing_ran_did_not_hold():
    assert read_tests("....\n==== 41 passed, 2 skipped in 3.10s ====\n") == "41 passed, 2 skipped in 3.10s"
    with pytest.raises(StepError, match="no test passed: 88 skipped in 3.10s"):
        read_tests("ssss\n==== 88 skipped in 3.10s ====\n")
    with pytest.raises(StepError, match="pytest said nothing"):
        read_tests("")


def verdict(images_per_second, devices, model="deit_base_distilled_patch16_224"):
    return reach_verdict(
        images_per_second,
        devices=devices,
        teacher="live",
        stages=[Stage("full recipe", "loader", 1.0)],
        flops_per_image=137.5e9,
        peak_flops=None,
        model=model,
        image_size_px=224,
    ).as_dict()


def test_the_budget_and_the_kernels_are_held_to_their_promise(tmp_path):
    """A device is held to its eighth of 1,482.8 images/s; another model than the budget's to nothing."""
    path = tmp_path / "rows.jsonl"
    rows = [{"workload": "attention", "name": "triton", "correct": True}]
    cpu = torch.device("cpu")

    def add(bench, **more):
        append_record(str(path), build_record(bench, "title", more.pop("rows", rows), cpu, config={}, **more))
        return read_bench(path, bench)

    eight = add("train", verdict=verdict(1600.0, devices=8))
    assert eight == "200.0 images/s a device. The budget is met: 1,600.0 of 1,482.8 images/s; limit: full recipe"
    assert "A device does its share" in add("train", verdict=verdict(2 * 185.4, devices=1))
    assert "No verdict: the budget is DeiT-B's" in add("train", verdict=verdict(10.0, 1, "deit_tiny_patch16_224"))
    assert "The budget is missed" in add("step", verdict=verdict(741.4, devices=8))
    for missed, devices in ((741.4, 8), (92.7, 1)):
        with pytest.raises(StepError, match="The budget is missed: .*, 2.00 times too slow; limit: full recipe"):
            add("train", verdict=verdict(missed, devices))
    step = Step("bench train", "", [], lambda _output: read_bench(path, "train"))
    held, text = judge(step, 0, "")
    assert not held
    assert text.startswith("92.7 images/s a device. The budget is missed")
    assert add("kernels") == "1 rows: title"
    other = {
        "workload": "attention",
        "name": "sdpa_cudnn",
        "correct": False,
        "fails": "RuntimeError: No available kernel",
    }
    assert add("kernels", rows=[rows[0], other]) == "2 rows: title"
    for name, fails in (("triton", "wrong"), ("triton", "OutOfResources: shared memory"), ("sdpa_cudnn", "wrong")):
        with pytest.raises(StepError, match=f"{name} of attention: {fails}"):
            add("kernels", rows=[other | {"name": name, "fails": fails}])


@pytest.mark.skipif(not is_available(), reason="the native operators are not built, and there is no GPU to compare")
def test_images_of_two_pipelines(few_digits, tmp_path):
    """As the step calls it."""
    step = {step.name: step for step in build_steps(plan(tmp_path, data=str(few_digits)))}["images"]
    assert main(step.command[3:]) == 0
    rows = json.loads((tmp_path / "images.json").read_text())
    assert [(row["view"], row["holds"]) for row in rows] == [("training", True), ("validation", True)]
    assert step.read("").startswith("2 comparisons; largest mean 0.")


def test_images_that_differ_are_found():
    """By a little everywhere, by much in a few places, or by their labels."""
    generator = torch.Generator().manual_seed(0)
    one = Batch(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8), torch.arange(8))
    grey = 1 / (255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
    assert difference("", "", [one], [one]).holds
    brighter = difference("", "", [one._replace(images=one.images + 2 * grey)], [one])
    assert (brighter.holds, brighter.mean) == (False, pytest.approx(2.0, abs=1e-3))
    spoilt = one.images.clone()
    spoilt[:, :, 0, :20] += 20 * grey[:, :, 0]
    edges = difference("", "", [one._replace(images=spoilt)], [one])
    assert (edges.holds, edges.mean < 1, edges.share_far) == (False, True, pytest.approx(20 / 1024))
    assert not difference("", "", [one._replace(labels=one.labels + 1)], [one]).holds


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_on_a_cpu(few_digits, tmp_path):
    """All but the tests marked gpu, as programs of their own, as `make gpu` starts them."""
    run = ["--device", "cpu", "--config", "demo_student_distilled", "--distill.teacher", "resnet10t", *SMALL]
    run += ["--data", str(few_digits), "--out", str(tmp_path)]
    fixed = ["--runtime.attention", "sdpa", "--runtime.compile", "false", "--data.backend", "graph"]
    fixed += ["--data.num_threads", "1", "--runtime.teacher_compile", "false", "--runtime.teacher_precision", "fp32"]
    fixed += ["--runtime.teacher_layout", "channels_last", "--runtime.teacher_fold", "true"]
    # so that tune asks of precision, prefetch and batch size only
    benches = ["bench kernels", "bench loader", "bench step", "bench train", "bench report"]
    wanted = ["doctor", "tune", *benches, "profile"]
    first_day([*run, *fixed, "--only", ",".join(wanted), "--minutes", "10"])
    results = read_results(tmp_path)
    assert [name for name in wanted if not results[name].held] == []
    assert results["tune"].text.startswith("runtime.precision ")
    assert "data.prefetch " in results["tune"].text
    assert read_tuned(tmp_path / "tuned.yaml") == results["tune"].text
    compiled = [name for name in TUNABLE if has_kernel(name, torch.device("cpu"), torch.bfloat16)]
    assert f"{11 + len(compiled)} rows" in results["bench kernels"].text  # plain torch's 11, and this CPU's kernels
    for name in ("bench step", "bench train"):
        assert "No verdict: the budget is DeiT-B's" in results[name].text
    rows = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert [row["bench"] for row in rows] == ["kernels", "loader", "step", "train"]
    profiled = json.loads((tmp_path / "profile" / "profile.json").read_text())
    chosen = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["chosen"]
    assert profiled["config"]["runtime"]["precision"] == chosen["runtime.precision"]
    assert next(phase["mean_ms"] for phase in profiled["phases"] if phase["phase"] == "teacher") > 0.1
    assert "What was run held; not run: tests, images" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests marked gpu can run here")
def test_the_gpus_tests_do_not_hold_on_a_cpu(tmp_path, capsys):
    assert first_day(["--device", "cpu", "--out", str(tmp_path), "--only", "tests"]) == 1
    assert "no test passed" in read_results(tmp_path)["tests"].text
    assert "did NOT hold" in capsys.readouterr().out
