"""The report: that it says what the rows say, as a page in a browser and as tables in Markdown."""

import json
import re
from pathlib import Path

import pytest
from bench_records import kernels_record, loader_record, record, row, step_record, verdict
from pages import opened

from deit_fast.benchmarks import loader_stages, peers, step, train
from deit_fast.benchmarks.report import figures, results, roofline
from deit_fast.benchmarks.report.markdown import RESULTS, rewritten, write_plots
from deit_fast.benchmarks.report.page import build_page, peak_tflops
from deit_fast.benchmarks.report.results import gather, read_files
from deit_fast.benchmarks.report.verdict_text import advice_for, judge
from deit_fast.cli import main

ROOT = Path(__file__).parents[1]


def write_rows(path, *records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def train_record(images_per_second, devices=8, **more):
    rows = [row("end to end", "deit_fast", [images_per_second * factor for factor in (0.99, 1, 1.01)])]
    return record("train", rows, verdict=verdict(images_per_second, devices=devices, **more), world_size=devices)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    before = step_record(0.8, time="2026-11-20T02:00:00+00:00", commit="0ldc0de")
    rows = write_rows(folder / "rows.jsonl", step_record(), before)
    loader = write_rows(folder / "loader.jsonl", loader_record(), kernels_record())
    assert main(["bench", "report", str(rows), str(loader), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.mark.parametrize(("width_px", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_page_shows_the_rows(chromium, report, width_px, scheme):
    with opened(chromium, report, width_px=width_px, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width_px
        assert page.locator(".verdict.bad .headline").inner_text() == (
            "The budget is missed: 412.0 of 1,482.8 images/s, 3.60 times too slow"
        )
        assert "deit-fast teacher-cache" in page.locator(".verdict li").first.inner_text()
        assert page.locator(".card strong").first.inner_text() == "412.0"
        plots = page.locator("figure .plot")
        ms = [1e3 / one["images_per_second"] for one in step_record()["rows"]]
        waterfall = plots.nth(0).locator("path[aria-roledescription=bar]")
        widths_px = [waterfall.nth(i).bounding_box()["width"] for i in range(waterfall.count())]
        assert [width / max(widths_px) for width in widths_px] == pytest.approx([t / max(ms) for t in ms], abs=0.01)
        assert all(f"{t:.3g} ms" in plots.nth(0).inner_text() for t in ms)
        speeds = plots.nth(1).inner_text()
        for one in [*step_record()["rows"], *loader_record()["rows"][::2][:2]]:
            digits = 0 if one["images_per_second"] >= 10_000 else 1
            assert f"{one['images_per_second']:,.{digits}f} images/s" in speeds
        assert "1,735 images/s, 1.11 CPU-ms" in plots.nth(2).inner_text()
        assert plots.count() == 9  # waterfall, throughput, 2 loaders, arithmetic, roofline, latency, memory, commits
        for i in range(9):
            assert plots.nth(i).locator("svg [role=graphics-symbol]").count() > 0
        first = page.locator("table").last.locator("tbody tr").first.locator("td").all_inner_texts()
        assert first[:4] == ["step", "mixing", "deit_fast", "39,800"]


def test_the_kept_rows_fit_a_narrow_window(chromium, tmp_path):
    """Their legends too: what of a drawing is beyond its right end cannot be scrolled to."""
    rows = [str(path) for path in sorted(RESULTS.glob("*.jsonl"))]
    assert main(["bench", "report", *rows, "--out", str(tmp_path / "report.html")]) == 0
    with opened(chromium, tmp_path / "report.html", width_px=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ends = page.locator(".role-legend-label text").evaluate_all(
            "nodes => nodes.map(node => node.closest('svg').getBoundingClientRect().right"
            " - node.getBoundingClientRect().right)"
        )
        assert len(ends) > 8
        assert min(ends) >= -1


@pytest.mark.parametrize(
    ("judged", "good", "headline"),
    [
        (train_record(1500), True, "The budget is met: 1,500.0 of 1,482.8 images/s"),
        (train_record(1400), False, "The budget is missed: 1,400.0 of 1,482.8 images/s, 1.06 times too slow"),
        (train_record(190, devices=1), None, "A device does its share, 190.0 of 185.4"),
        (train_record(150, devices=1), False, "150.0 of 185.4 images/s on each device"),
        (train_record(1500, model="deit_tiny_patch16_224"), None, "No verdict: the budget is DeiT-B's"),
        (step_record(4.0, verdict=verdict(1648.0)), None, "end to end is not measured"),
        (None, None, "No step was measured"),
    ],
)
def test_the_verdict_says_no_more_than_was_measured(judged, good, headline):
    judgement = judge(judged)
    assert judgement.good is good
    assert headline in judgement.headline


def test_the_end_to_end_run_of_the_budgets_model_is_what_counts():
    tiny = train_record(9000, model="deit_tiny_patch16_224")
    found = gather([train_record(1500), step_record(9.0), tiny])
    assert found.judged()["bench"] == "train"
    assert found.judged()["verdict"]["is_budget_model"]


def test_a_later_run_of_another_model_does_not_take_the_verdicts_place():
    tiny = step_record(verdict=verdict(3000.0, model="deit_tiny_patch16_224"), time="2026-11-30T00:00:00+00:00")
    page = build_page(gather([step_record(title="the budget's step"), tiny])).html()
    assert "Measured: the budget&#x27;s step." in page
    assert page.count("the budget&#x27;s step. 8 x Made-up GPU") >= 2  # waterfall and arithmetic are of the same call


def test_the_hosts_memory_is_shown_as_no_contenders():
    """All contenders lived in the process of which older rows tell."""
    older = [{**one, "peak_memory_bytes": {"torch": None, "process": 9 * 2**30}} for one in step_record()["rows"]]
    assert "Memory at the peak" not in build_page(gather([record("step", older, verdict=verdict(412.0))])).html()
    assert "Memory at the peak" in build_page(gather([step_record()])).html()


def test_rows_are_called_as_they_are_written():
    assert results.LOADER_STAGES == (loader_stages.READ, loader_stages.DECODE, peers.CROP, peers.FULL)
    assert results.STEP_STAGES == step.PARTS
    assert results.TOTALS == (step.WHOLE, train.END_TO_END)
    assert results.ALONE == train.ALONE


def test_every_stage_of_a_step_has_its_advice():
    advice = [advice_for(stage) for stage in ("file read", "augmentation", *results.STEP_STAGES)]
    assert None not in advice
    assert advice[0] == advice[1]
    assert len(set(advice)) == 5  # loader, mixing and loss, teacher, student, optimizer


def test_the_waterfall_ends_where_the_stages_add_up():
    values = figures.waterfall(step_record(), 1482.8)["data"]["values"]
    stages = [value for value in values if value["label"].startswith(("mixing", "teacher", "student", "optimizer"))]
    assert stages[-1]["end"] == pytest.approx(sum(1e3 / row["images_per_second"] for row in step_record()["rows"][:5]))
    assert [value["colour"] for value in values].count("var(--bad)") == 1
    assert next(value for value in values if value["colour"] == "var(--bad)")["label"] == "teacher forward"


def test_over_commits_a_line_joins_what_has_the_same_title():
    """A step with another teacher is no slower commit."""
    records = [step_record(), step_record(0.5, title="another teacher"), step_record(1.1)]
    spec = figures.history(records)
    assert spec["encoding"]["detail"]["field"] == "series"
    lines = {}
    for point in spec["data"]["values"]:
        if point["what"] == "step: whole step":
            lines.setdefault(point["series"], []).append(point["relative"])
    assert list(lines.values()) == [[1, pytest.approx(1.1)], [1]]


def test_the_roof_is_the_data_sheets_and_the_peak_that_of_the_mfu():
    assert peak_tflops(step_record()) == pytest.approx(138.0)
    spec = roofline.roofline(kernels_record()["rows"][:2], (989e12, 3.35e12))
    ridge = spec["layer"][1]["data"]["values"][1]
    assert ridge == {"flop_per_byte": pytest.approx(295.2, abs=0.1), "tflop_per_second": pytest.approx(989)}
    assert spec["data"]["values"][0]["flop_per_byte"] == pytest.approx(175)


def test_the_readme_and_the_rows_agree():
    """Every table between markers is what the kept rows give; `deit-fast bench report --markdown FILE` makes it so."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        assert rewritten(path.read_text(), path.name) == path.read_text(), f"deit-fast bench report --markdown {path}"


def test_a_table_follows_its_rows(tmp_path):
    write_rows(tmp_path / "loader.jsonl", loader_record(0.5), loader_record(time="2026-11-26T00:00:00+00:00"))
    write_rows(tmp_path / "step.jsonl", step_record())
    old = "# A\n\n<!-- rows: loader -->\nold 9,999\n<!-- /rows -->\n\ntext 7\n\n<!-- rows: step -->\n<!-- /rows -->\n"
    text = rewritten(old, "README.md", tmp_path)
    assert "| deit_fast native | 1,735 (1.11) | 1,368 (1.39) |\n" in text  # the newest record's
    assert "| timm | 482 (3.98) | 325 (5.68) |\n" in text
    assert re.search(r"\| whole step \| 409\.9 \| [\d.]+ - [\d.]+ \| 1\.00 \| 40\.9% \|", text)
    assert "2 cores" not in text
    assert "1 x Made-up GPU; torch 2.14.1, dali-cuda120 2.4.0; 2026-11-26, at abc1234, medians of 3 turns." in text
    assert "9,999" not in text
    assert "text 7" in text
    assert rewritten(text, "README.md", tmp_path) == text


def test_turns_too_short_for_a_cpu_time_have_none(tmp_path):
    rows = [row("decode", name, [10.0, 11.0], cpu_ms=None) for name in ("deit_fast", "timm")]
    write_rows(tmp_path / "loader.jsonl", record("loader", rows))
    write_rows(tmp_path / "step.jsonl", record("step", rows))
    text = "".join(f"<!-- rows: {name} -->\n<!-- /rows -->\n" for name in ("loader", "step"))
    assert "| timm | 10 (-) |" in rewritten(text, "README.md", tmp_path)
    assert figures.contenders(rows)["data"]["values"][0]["text"] == "10 images/s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- rows: loader -->\n", "README.md: a `<!-- rows: NAME -->` needs"),
        ("<!-- rows: nothing -->\n<!-- /rows -->\n", "README.md asks for rows nothing"),
    ],
)
def test_markers_without_end_or_rows_are_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        rewritten(text, "README.md", tmp_path)


def test_what_is_no_row_is_named(tmp_path, capsys):
    path = write_rows(tmp_path / "rows.jsonl", step_record(), {"schema": 2})
    with pytest.raises(ValueError, match=r"rows.jsonl line 2 is no record"):
        read_files([path])
    assert main(["bench", "report", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "x.html")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert main(["bench", "report", str(path)]) == 2
    assert "--out FILE.html" in capsys.readouterr().err


def test_kept_rows_can_be_read_and_drawings_follow_them(tmp_path):
    """A file may have no rows yet: its table then says that nothing was measured."""
    for path in sorted(RESULTS.glob("*.jsonl")):
        assert all(one["bench"] == path.stem.split("-")[0] for one in read_files([path]).records)
    for text in sorted((ROOT / "docs").glob("*.md")):
        write_plots(text.read_text(), tmp_path / "before")  # whatever was drawn before, in this process, does not show
        for drawing in write_plots(text.read_text(), tmp_path):
            assert drawing.read_text() == (text.parent / drawing.name).read_text()
