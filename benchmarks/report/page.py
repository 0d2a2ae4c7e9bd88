"""The report as a page: the verdict first, then what it rests on. A section without rows is left out."""

from __future__ import annotations

import json

from deit_fast.bench_records import Record
from deit_fast.budget import BUDGET_DAYS, BUDGET_DEVICES, REQUIRED_IMAGES_PER_SECOND
from deit_fast.gpus import gpu_of_driver
from deit_fast.page import Page
from deit_fast.page.page import format_number

from ..accuracy.show import add_to_page
from . import figures, roofline
from .results import Results, Row, devices_of, machine, provenance, stages, totals
from .verdict_text import judge

LATENCY = "Line: the turns, each by the mean of its steps; diamonds: p50, p95 and p99 of single steps."
ZOOM = "Drag to move, Shift and wheel to zoom, double click to reset."


def build_page(results: Results) -> Page:
    """All sections for which there are rows."""
    judged = results.judged()
    page = Page("deit_fast against its budget", _subtitle(judged))
    page.verdict(**judge(judged)._asdict())
    if judged:
        page.cards(_cards(judged))
    step, loader = judged or results.latest("train", "step"), results.latest("loader")
    if step:
        _stages(page, step)
    if measured := [record for record in (step, loader) if record]:
        _throughput(page, measured)
    if loader:
        _loaders(page, loader)
    if step:
        _arithmetic(page, step)
    if kernels := results.latest("kernels"):
        _kernels(page, kernels)
    if step:
        _latency(page, step)
    _memory(page, measured)
    _history(page, results)
    if accuracy := results.latest("accuracy"):
        add_to_page(page, accuracy)
    _sources(page, results)
    return page


def _subtitle(judged: Record | None) -> str:
    budget = f"DeiT-B, 300 epochs of ImageNet-1k in {BUDGET_DAYS:g} days on {BUDGET_DEVICES} GPUs: "
    budget += f"{REQUIRED_IMAGES_PER_SECOND:,.1f} images/s."
    return budget if judged is None else f"{budget} Measured: {judged['title']}."


def required(record: Record) -> float:
    """Images/s that the budget asks of as many devices as took part."""
    return REQUIRED_IMAGES_PER_SECOND / BUDGET_DEVICES * devices_of(record)


def _cards(record: Record) -> list[tuple[str, str, str]]:
    verdict = record["verdict"]
    mfu, half = verdict.get("mfu"), verdict.get("days_at_half_of_peak")
    return [
        (
            "images/s measured",
            format_number(float(verdict["measured_images_per_second"])),
            f"{format_number(float(verdict['measured_per_device']))} on each of {verdict['devices']}",
        ),
        ("300 epochs", f"{verdict['projected_days']:,.1f} days", f"the budget is {BUDGET_DAYS:g}"),
        (
            "of the hardware's peak",
            "not known" if mfu is None else f"{mfu:.1%}",
            "MFU" if half is None else f"at 50 %: {half:,.1f} days",
        ),
        ("teacher", verdict["teacher"], verdict["model"]),
    ]


def _stages(page: Page, record: Record) -> None:
    if not stages(record):
        return
    page.section(
        "Where the time of an image goes",
        "Stages measured alone. Each of the loader's holds those before it; the step's follow one another; then whole "
        "steps, in which loader and step run beside each other. What limits is red.",
    )
    page.figure(figures.waterfall(record, required(record)), f"{record['title']}. {provenance(record)} {ZOOM}")


def _throughput(page: Page, records: list[Record]) -> None:
    page.section(
        "Throughput against the budget",
        f"Whatever is left of the dashed line is too slow for its share of {REQUIRED_IMAGES_PER_SECOND:,.1f} images/s.",
    )
    found = [row for record in records for row in record["rows"] if figures.is_recipe(row)]
    rows = list({figures.named(row): row for row in reversed(found)}.values())[::-1]  # a stage by the first that has it
    asked = max(required(record) for record in records)
    page.figure(figures.throughput(rows, asked), f"Medians, with the 20th to 80th percentile of the turns. {ZOOM}")


def _loaders(page: Page, record: Record) -> None:
    page.section(
        "Loaders",
        "The same images, cores and number of workers, in interleaved turns. Blue: ours; green: ours, cheaper than the "
        f"recipe; grey: others. {record['title'][0].upper()}{record['title'][1:]}. {provenance(record)}",
    )
    for workload in dict.fromkeys(row["workload"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["workload"] == workload]
        if len(rows) > 1:  # a stage that nobody else was asked for stands above, against the budget
            page.figure(figures.contenders(rows), "Medians, with the 20th to 80th percentile of the turns.")


def _arithmetic(page: Page, record: Record) -> None:
    peak = peak_tflops(record)
    if peak is None or not any(row.get("tflops_per_image") for row in record["rows"]):
        return
    page.section(
        "How much of the arithmetic is reached",
        "images/s x FLOPs of an image (2 a multiply-add), against the peak of the devices in the run's precision.",
    )
    page.figure(roofline.arithmetic(record["rows"], peak), f"{record['title']}. {provenance(record)} {ZOOM}")


def peak_tflops(record: Record) -> float | None:
    """TFLOP/s of all devices: what makes a row's MFU of its speed; None where no row has one."""
    for row in record["rows"]:
        if row.get("mfu") and row.get("tflops_per_image"):
            return float(row["images_per_second"] * row["tflops_per_image"] / row["mfu"])
    return None


def _kernels(page: Page, record: Record) -> None:
    rows = [row for row in record["rows"] if row.get("ms")]
    if not rows:
        return
    gpu = gpu_of_driver(str(record["environment"]["device"]))
    page.section("Kernels", "Forward and backward of each kernel by each implementation: the roofline of the step.")
    if any(row.get("tflop_per_second") for row in rows):
        roof = None if gpu is None else (gpu.half_flops, gpu.memory_bytes_per_second)
        note = "Dashed: the data sheet's roof." if roof else "No roof: its bandwidth is not known."
        page.figure(roofline.roofline(rows, roof), f"{note} {provenance(record)} {ZOOM}")
    headings = ("kernel", "by", "ms", "GB/s", "TFLOP/s", "of the bound")
    keys = ("workload", "name", "ms", "gb_per_second", "tflop_per_second", "share_of_bound")
    page.table(headings, [[row.get(key) or None for key in keys] for row in rows])


def _latency(page: Page, record: Record) -> None:
    rows = [row for row in totals(record) if row.get("step_ms_p50") is not None]
    if not rows:
        return
    page.section("Steps are not all alike", "A steep line is a steady step; p95 and p99 see the tail to the right.")
    page.figure(figures.latency(rows), f"{LATENCY} {provenance(record)} {ZOOM}")
    keys = ("step_ms_p50", "step_ms_p95", "step_ms_p99")
    cells = [[figures.named(row), *(row[key] for key in keys), row["turns"]] for row in rows]
    page.table(("step", "p50 ms", "p95 ms", "p99 ms", "turns"), cells)


def _memory(page: Page, records: list[Record]) -> None:
    rows = [row for record in records for row in record["rows"] if figures.is_main(row) and figures.has_memory(row)]
    if not rows:
        return
    page.section("Memory at the peak", "On a device: torch's, and what else was taken there, DALI's pools above all.")
    page.figure(figures.memory(rows), "The largest of all turns.")


def _history(page: Page, results: Results) -> None:
    timed = [record for record in results.records if record["bench"] in ("train", "step", "loader")]
    if len(timed) < 2:
        return
    page.section("Over commits", "Only records of the same title on the same machine are held against each other.")
    page.figure(figures.history(timed), "Medians with p20 to p80; 100 % is a series' first record.")


def _sources(page: Page, results: Results) -> None:
    page.section("All rows", "What the page is made of. `deit-fast bench compare` holds two files against each other.")
    rows = [(record, row) for record in results.records for row in record["rows"] if row.get("images_per_second")]
    headings = ("bench", "workload", "by", "images/s", "p20", "p80", "CPU-ms", "MFU", "commit")
    page.table(headings, [_cells(record, row) for record, row in rows])
    for record in results.records:
        kept = {key: record.get(key) for key in ("verdict", "config", "environment")}
        page.details(f"{record['bench']}: {record.get('title', '')}, {machine(record)}", json.dumps(kept, indent=2))


def _cells(record: Record, row: Row) -> list[str | int | float | None]:
    return [
        record["bench"],
        row["workload"],
        row["name"],
        row["images_per_second"],
        row.get("images_per_second_p20"),
        row.get("images_per_second_p80"),
        row.get("cpu_ms_per_image"),
        row.get("mfu"),
        record["environment"].get("commit"),
    ]
