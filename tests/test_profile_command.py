"""`deit-fast profile` as a user runs it: its files, its page in a browser, its comparison, its errors."""

import json
import re
import sys
from pathlib import Path

import pytest
from pages import opened
from small_runs import STEPS_PER_EPOCH

from deit_fast.cli import main
from deit_fast.profile.advice import advise
from deit_fast.profile.command import publish
from deit_fast.profile.compare import compare_records
from deit_fast.profile.trace import read_trace

DEMO = Path(__file__).parents[1] / "docs" / "profile_demo.json"
OPTIONS = {
    "--config": "demo_student_distilled",
    "--schedule.epochs": 5,
    "--schedule.warmup_epochs": 0,
    "--distill.teacher": "resnet10t",
    "--distill.teacher_image_size_px": 32,
    "--runtime.batch_size_per_device": 16,
    "--mix.group_size": 16,
    "--steps": 3,
    "--warm-up-steps": 1,
    "--loader-batches": 1,
}


def command(data, folder, teacher, **changes):
    options = OPTIONS | {"--data.path": data, "--out": folder, "--distill.teacher_checkpoint": teacher} | changes
    return ["profile", *(str(text) for pair in options.items() for text in pair)]


@pytest.fixture(scope="module")
def folder(few_digits, teacher_checkpoint, tmp_path_factory):
    """What a profile leaves."""
    out = tmp_path_factory.mktemp("profile") / "out"
    assert main(command(few_digits, out, teacher_checkpoint, **{"--json": out.parent / "record.json"})) == 0
    return out


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "profile.json").read_text())


def test_it_writes_report_record_and_trace_and_no_checkpoint(folder, record):
    assert {path.name for path in folder.iterdir()} == {"profile.json", "report.html", "trace_rank0.json.gz", "run"}
    assert not list(folder.rglob("*.pt"))
    assert json.loads((folder.parent / "record.json").read_text()) == record
    assert record["config"]["distill"]["teacher"] == "resnet10t"
    assert record["step"]["steps"] == 3
    phases = {row["phase"]: row["mean_ms"] for row in record["phases"]}
    assert phases.keys() >= {
        "fetch",
        "feed",
        "mix",
        "teacher",
        "forward",
        "loss",
        "backward",
        "optimizer",
        "EMA",
        "log",
    }
    assert sum(phases.values()) == pytest.approx(record["step"]["mean_ms"])
    assert [row["operator"] for row in record["loader"]["operators"]][:2] == ["ExternalSource", "io.file.Read"]
    assert record["operators"]["waits"] == []
    trace = read_trace(folder / "trace_rank0.json.gz")
    assert trace.num_steps == 2
    modules = {row["module"] for row in record["operators"]["modules"]}
    assert modules >= {"teacher", "patch embedding", "attention", "MLP", "norm", "head", "optimizer"}


def test_the_parts_of_the_model_have_their_backward(record):
    rows = {row["module"]: row for row in record["operators"]["modules"]}
    assert rows["teacher"]["backward_ms"] == 0
    for part in ("attention", "MLP", "norm", "head"):
        assert rows[part]["backward_ms"] > 0, part
    # a backward is two forwards of products; what is not attributed would show here
    unknown = rows.get("gradients of weights", {"backward_ms": 0})["backward_ms"]
    assert unknown < 0.2 * sum(row["backward_ms"] for row in rows.values())


@pytest.mark.parametrize(("width_px", "scheme"), [(1200, "light"), (380, "dark")])
def test_the_page_shows_the_record(chromium, folder, record, width_px, scheme):
    with opened(chromium, folder / "report.html", width_px=width_px, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width_px
        headline = record["advice"][0]["headline"] if record["advice"] else "Nothing stands out"
        assert page.locator(".verdict .headline").inner_text() == headline
        assert f"{record['step']['p50_ms']:,.1f} ms" in page.locator(".cards").inner_text()
        figures = page.locator(".plot")
        assert figures.count() == 8
        bars = figures.nth(0).locator("path[aria-roledescription=bar]")
        assert bars.count() == len(record["phases"])
        pieces = figures.nth(1).locator("path[aria-roledescription=bar]")
        steps = [step for step in record["ranks"][0]["steps"] if step["kind"] == "recorded"]
        assert pieces.count() == sum(len(step["marks"]) for step in steps)
        phases = page.locator("table").first
        phases.locator("th button").nth(1).click()
        longest = max(record["phases"], key=lambda row: row["mean_ms"])["phase"]
        assert phases.locator("tbody tr td").first.inner_text() == longest


def test_the_timeline_zooms(chromium, folder):
    with opened(chromium, folder / "report.html") as page:
        piece = page.locator(".plot").nth(1).locator("path[aria-roledescription=bar][aria-label*=teacher]").first
        before = piece.bounding_box()["width"]
        piece.hover()
        page.keyboard.down("Shift")
        page.mouse.wheel(0, -300)
        page.wait_for_function(
            "before => document.querySelectorAll('.plot')[1].querySelector('[aria-label*=teacher]')"
            ".getBoundingClientRect().width > before + 1",
            arg=before,
        )


def test_what_a_piece_of_the_timeline_is_shows_beside_the_pointer(chromium, folder):
    with opened(chromium, folder / "report.html") as page:
        piece = page.locator(".plot").nth(1).locator("path[aria-roledescription=bar][aria-label*=teacher]").first
        piece.scroll_into_view_if_needed()
        piece.hover()
        tip = page.locator("#vg-tooltip-element.visible")
        tip.wait_for()
        assert "teacher" in tip.inner_text()
        at, shown = piece.bounding_box(), tip.bounding_box()
        assert abs(shown["x"] - at["x"]) < 300
        assert abs(shown["y"] - at["y"]) < 300
        page.mouse.move(1, 1)
        page.locator("#vg-tooltip-element").wait_for(state="hidden")


def test_two_profiles_are_compared(folder, record, tmp_path, capsys):
    slower = json.loads(json.dumps(record))
    for step in slower["ranks"][0]["steps"]:
        if step["kind"] == "recorded":
            step["host_ms"]["forward"] += 1e4
            step["total_ms"] += 1e4
    slower["config"]["runtime"]["precision"] = "fp32"
    (tmp_path / "slower.json").write_text(json.dumps(slower))
    arguments = [
        "profile",
        "compare",
        str(folder),
        str(tmp_path / "slower.json"),
        "--json",
        str(tmp_path / "rows.json"),
    ]
    assert main(arguments) == 0
    rows = {row["phase"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert {name for name, row in rows.items() if row["differs"]} == {"forward", "step"}
    assert rows["forward"]["change_ms"] == pytest.approx(1e4)
    assert "runtime.precision: auto, fp32" in capsys.readouterr().out
    assert not any(row["differs"] for row in compare_records(record, record))


def test_the_kept_profile_of_the_demo_is_drawn_again_and_advised_as_it_was(tmp_path, capsys):
    """It is what the docs show; a changed record, rule or page has to bring a new one."""
    assert main(["profile", "report", str(DEMO), "--out", str(tmp_path / "page.html")]) == 0
    record = json.loads(DEMO.read_text())
    assert record["advice"][0]["line"].split(" (up")[0].replace("`", "") in re.sub(
        "</?code>", "", (tmp_path / "page.html").read_text()
    )
    assert [advice.line for advice in advise(record)] == [advice["line"] for advice in record["advice"]]
    assert "page.html" in capsys.readouterr().out


def test_wrong_use_is_one_line(few_digits, teacher_checkpoint, tmp_path, capsys):
    assert main(command(few_digits, tmp_path, teacher_checkpoint, **{"--steps": 0})) == 2
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is not there; `deit-fast profile --out"),
        ("{}", "is no profile"),
        ("[1]", "is no profile"),
        ('{"phases": []}', "is no profile"),
        ('{"phases": [], "schema": 0}', "has schema 0, this program reads 1; profile again"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, capsys, content, told):
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    for arguments in (["compare", str(file), str(file)], ["report", str(file)]):
        assert main(["profile", *arguments]) == 2
        assert f"{file} {told}" in capsys.readouterr().err


def test_a_report_that_could_not_be_drawn_is_told_before_anything_runs(
    few_digits, teacher_checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert main(command(few_digits, tmp_path / "out", teacher_checkpoint)) == 1
    assert "pip install 'deit-fast[report]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_is_shown_whatever_becomes_of_the_files(tmp_path, capsys):
    record = json.loads(DEMO.read_text())
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError):
        publish(record, tmp_path, None)
    assert record["advice"][0]["headline"] in capsys.readouterr().out
    assert json.loads((tmp_path / "profile.json").read_text()) == record


def test_a_run_that_is_too_short_says_so(few_digits, teacher_checkpoint, tmp_path, capsys):
    changes = {"--steps": 30, "--schedule.epochs": 1, "--runtime.batch_size_per_device": 32}
    assert main(command(few_digits, tmp_path, teacher_checkpoint, **changes)) == 2
    assert f"needs a run of 65 steps, this one has {STEPS_PER_EPOCH}" in capsys.readouterr().err
