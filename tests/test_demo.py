"""The demo: what it writes and shows; at full length it has to reach 90 %."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from deit_fast.budget import REQUIRED_IMAGES_PER_SECOND, projected_days
from deit_fast.cli import main
from deit_fast.config_file import add_config_arguments, config_parser, parse_config
from deit_fast.demo import RUN, run_demo, show_result, student_recipe
from deit_fast.distributed import Ranks

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digits_in_place(few_digits, tmp_path):
    """100 of the digits where the demo would write all: an epoch is one step."""
    shutil.copytree(few_digits, tmp_path / RUN / "digits")


def one_epoch(recipe):
    parser = config_parser("test", "test")
    add_config_arguments(parser)
    config, _ = parse_config(parser, ["--config", recipe])
    return replace(config, schedule=replace(config.schedule, epochs=1, warmup_epochs=0))


@pytest.mark.parametrize("student", ["demo_student_distilled", "demo_student"])
@pytest.mark.usefixtures("digits_in_place")
def test_a_short_demo_writes_its_result(student):
    result = run_demo(one_epoch("demo_teacher"), one_epoch(student), ALONE)
    assert json.loads(Path("runs/demo/result.json").read_text()) == result
    assert result["top1"].keys() == {"teacher", "cls", "dist", "average"}
    assert (result["top1"]["dist"] is None) == (student == "demo_student")
    speed = result["images_per_second"]
    assert result["budget"] == {
        "required_images_per_second": REQUIRED_IMAGES_PER_SECOND,
        "projected_days": projected_days(speed),
    }
    assert 0 < result["data_wait_fraction"] < 1
    assert result["config"]["model"]["name"] in ("deit_mini_distilled_patch8_32", "deit_mini_patch8_32")
    assert result["environment"]["packages"]["torch"]
    if student == "demo_student_distilled":
        assert Path(result["config"]["distill"]["teacher_checkpoint"]).is_file()
    console = Console(record=True, width=200, quiet=False)
    show_result(result, console)
    text = console.export_text()
    assert f"{result['top1']['teacher']:.2f} %" in text
    assert "no forecast for DeiT-B" in text


@pytest.mark.usefixtures("digits_in_place")
def test_a_demo_replaces_what_an_earlier_one_left():
    first, second = (run_demo(one_epoch("demo_teacher"), one_epoch("demo_student"), ALONE) for _ in range(2))
    assert first["top1"] == second["top1"]


def test_the_student_follows_the_kind_of_distillation():
    assert student_recipe([]) == "demo_student_distilled"
    assert student_recipe(["--distill.kind", "soft"]) == "demo_student_distilled"
    assert student_recipe(["--distill.kind", "none"]) == "demo_student"
    assert student_recipe(["--optim.lr", "1", "--distill.kind=none"]) == "demo_student"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--distill.kind", "none"]], ids=["distilled", "none"])
def test_the_whole_demo_reaches_90_percent(arguments):
    assert main(["demo", *arguments]) == 0
    top1 = json.loads(Path("runs/demo/result.json").read_text())["top1"]
    assert top1["average"] >= 90
    assert top1["teacher"] >= 95
