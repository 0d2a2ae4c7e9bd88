"""The benchmarks: that they run on real images, say what they measured, and append rows that can be read again."""

import json
from pathlib import Path

import pytest

from deit_fast.benchmarks.timing import Timing, time_in_turns
from deit_fast.cli import main


def test_loader(photographs, tmp_path, capsys):
    arguments = ["bench", "loader", "--data.path", str(photographs), "--turns", "2", "--images-per-turn", "32"]
    arguments += ["--runtime.batch_size_per_device", "16", "--mix.group_size", "16", "--model.image_size_px", "64"]
    for _ in range(2):
        assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    text = capsys.readouterr().out
    assert "bilinear geometry: not the recipe" in text
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    full = rows[0]["rows"]["full recipe"]
    assert full["images_per_turn"] == 32
    assert full["images_per_second_min"] <= full["images_per_second"] <= full["images_per_second_max"]
    assert rows[0]["rows"]["validation"]["images_per_turn"] == 12
    assert rows[0]["environment"]["cpu_cores"] >= 1


def test_loader_makes_photographs_when_it_has_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["bench", "loader", "--images", "20", "--turns", "1", "--images-per-turn", "8"]
    arguments += ["--runtime.batch_size_per_device", "8", "--mix.group_size", "8", "--model.image_size_px", "32"]
    assert main(arguments) == 0
    assert len(list(Path("runs/bench").rglob("*.jpg"))) == 20
    assert "made from photographs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("recipe", ["demo_student_distilled", "demo_student"])
def test_step(recipe, tmp_path, capsys):
    arguments = ["bench", "step", "--config", recipe, "--distill.teacher", "resnet10t", "--turns", "2"]
    arguments += ["--runtime.batch_size_per_device", "8", "--mix.group_size", "8"]
    assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "required 1,482.8 images/s" in text
    assert "The budget is DeiT-B's; this is deit_mini" in text
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert ("teacher forward" in row["rows"]) == (recipe == "demo_student_distilled")
    assert row["config"]["runtime"]["batch_size_per_device"] == 8


def test_turns_are_interleaved():
    order = []
    contenders = {name: lambda name=name: order.append(name) or 5 for name in "ab"}
    timings = time_in_turns(contenders, turns=2)
    assert order == ["a", "b", "a", "b", "a", "b"]  # a turn each to warm up, then rounds
    assert timings["a"].images == [5, 5]


def test_a_row_holds_median_and_spread():
    row = Timing(images=[10, 10, 10], seconds=[1.0, 2.0, 5.0], cpu_seconds=[1.0, 1.0, 4.0]).row()
    assert row["images_per_second"] == 5
    assert (row["images_per_second_min"], row["images_per_second_max"]) == (2, 10)
    assert row["cpu_ms_per_image"] == 100


def test_what_to_measure_has_to_be_said(capsys):
    assert main(["bench"]) == 2
    assert "deit-fast bench loader" in capsys.readouterr().err
