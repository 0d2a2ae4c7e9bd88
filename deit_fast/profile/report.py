"""The page of a profile: the cause first, then phases, loader, operators, idle time, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deit_fast.budget import REQUIRED_IMAGES_PER_SECOND
from deit_fast.page import Page

from . import phase_figures, work_figures

MIB = 2**20
MOST_ROWS = 12


def write_report(record: dict[str, Any], path: Path) -> Path:
    """Writes the page of a record."""
    page = Page("Where a step's time goes", subtitle(record))
    head(page, record)
    for part in (phases, loader, operators, idle, memory):
        part(page, record)
    page.section("What was run")
    page.details("Configuration", json.dumps(record["config"], indent=2))
    page.details("Environment", json.dumps(record["environment"], indent=2))
    return page.write(path)


def subtitle(record: dict[str, Any]) -> str:
    """Model, batch, devices, machine, commit."""
    environment, ranks = record["environment"], record["world_size"]
    where = environment["cpu"] if record["device_type"] == "cpu" else environment["device"]
    return (
        f"{record['model']}, {record['precision']}, {record['images_per_step']:,} images a step on {ranks} "
        f"{'process' if ranks == 1 else 'processes'} ({where}), commit {environment['commit'] or 'unknown'}"
    )


def head(page: Page, record: dict[str, Any]) -> None:
    """The verdict with its advice, and the figures that everybody asks for."""
    advice = record["advice"]
    lines = [one["line"] for one in advice]
    if not advice:
        page.verdict("Nothing stands out", True, ["No rule of the advice found more than 5 % of the step to gain."])
    else:
        page.verdict(advice[0]["headline"], False if advice[0]["kind"] == "fault" else None, lines)
    step, cost = record["step"], record["overhead"]
    page.cards(
        [
            ("step", f"{step['p50_ms']:,.1f} ms", f"median of {step['steps']}; p95 {step['p95_ms']:,.1f} ms"),
            ("images/s", f"{step['images_per_second']:,.0f}", f"budget for DeiT-B {REQUIRED_IMAGES_PER_SECOND:,.1f}"),
            ("waiting for data", f"{record['loader']['wait_share']:.1%}", record["loader"]["who_waits"]),
            (
                "measuring costs",
                f"{cost['share']:.3%}",
                f"{cost['marks_per_step']:.0f} marks of {cost['mark_us']:.1f} us a step",
            ),
        ]
    )


def phases(page: Page, record: dict[str, Any]) -> None:
    """Phases, ranks, timeline, steps."""
    on_device = record["device_type"] == "cuda"
    clock = "the device's clock (events on its stream)" if on_device else "the host's clock"
    page.section("Phases", f"Of each rank's mean step, by {clock}. The phases add up to the step.")
    page.figure(phase_figures.phase_bars(record), "Mean milliseconds of each phase, rank by rank")
    between_ranks = ["least rank ms", "most rank ms"] if record["world_size"] > 1 else []
    page.table(
        ["phase", "mean ms", "median ms", "p95 ms", "share %", "host ms", *between_ranks],
        [
            [
                row["phase"], row["mean_ms"], row["p50_ms"], row["p95_ms"], 100 * row["share"], row["host_ms"],
                *(choose(row["by_rank_ms"]) for choose in (min, max)[: len(between_ranks)]),
            ]
            for row in record["phases"]
        ],
    )  # fmt: skip
    slow = record["straggler"]
    if slow is not None:
        page.text(
            f"The slowest rank is {slow['rank']} on {slow['host']}: {slow['behind_ms']:,.2f} ms a step behind the "
            f"others, most of it in {slow['phase']} ({slow['phase_ms']:,.2f} ms against "
            f"{slow['others_phase_ms']:,.2f})."
        )
    page.figure(
        phase_figures.timeline(record),
        f"The first {phase_figures.SHOWN_STEPS} recorded steps, one after another. Drag to move, Shift + wheel to "
        "zoom, double click to reset",
    )
    cost = record["overhead"]
    page.figure(
        phase_figures.step_times(record),
        f"Every measured step. Recorded and bare steps in turns: medians {cost['recorded_p50_ms']:,.2f} and "
        f"{cost['bare_p50_ms']:,.2f} ms (bare: 20 to 80 % within {cost['bare_p20_ms']:,.2f} to "
        f"{cost['bare_p80_ms']:,.2f} ms)",
    )


def loader(page: Page, record: dict[str, Any]) -> None:
    """Who waits for whom, and what the loader's operators cost."""
    data = record["loader"]
    alone, decoding = data["alone"], data["decoder_share"]
    decoder = (
        "the native crop decodes, crops, resizes and flips in one operator, so decoding is not told apart"
        if decoding is None
        else f"decoding is {decoding:.0%} of its CPU time"
    )
    page.section(
        "Loader",
        f"In the run, {data['who_waits']}: its batch was there in {data['batch_ready_share']:.0%} of the steps (queue "
        f"of {data['prefetch']}). Alone it gives {alone['images_per_second']:,.0f} images/s on "
        f"{alone['cores_used']:.2f} cores a process ({data['backend']} backend, {data['num_threads']} threads, "
        f"{alone['cpu_ms_per_image']:.2f} CPU-ms an image); the step could take "
        f"{data['step_could_take_images_per_second']:,.0f}; {decoder}.",
    )
    if data["operators"]:
        page.figure(
            work_figures.loader_waterfall(record),
            "The pipeline grown operator by operator: what each adds. DALI keeps no times of its own; a difference "
            "smaller than the noise can be negative",
        )
        page.table(
            ["up to and with", "DALI's operator", "of", "adds CPU-ms", "CPU-ms an image", "images/s", "cores used"],
            [
                [
                    work_figures.meaning(row["operator"]), row["operator"], row["operators"],
                    row["cpu_ms"], row["total_cpu_ms"], row["images_per_second"],
                    row["cores_used"],
                ]
                for row in data["operators"]
            ],
        )  # fmt: skip


def operators(page: Page, record: dict[str, Any]) -> None:
    """Parts of the model, operators, kernels, roofline, copies and waits."""
    found = record["operators"]
    launches, peaks = found["launches"], found["peaks"]
    page.section(
        "Model and operators",
        f"From a trace of torch.profiler: {launches['per_step']:,.0f} {launches['unit']} a step, "
        f"{launches['short_share_of_count']:.0%} of them under {launches['short_us']:.0f} us "
        f"({launches['short_share_of_time']:.0%} of the time). The longest are shown; profile.json has more.",
    )
    compiled = found["compile"]
    if compiled["graphs"]:
        page.text(
            f"torch.compile made {compiled['graphs']} graphs with {compiled['breaks']} graph breaks, "
            f"{compiled['recompiles_while_measured']} of them again while measured."
        )
    page.figure(work_figures.module_bars(record), "Own time of the operators of each part of the model")
    page.table(
        ["operator", "own ms a step", "share %", "calls a step"],
        [
            [row["operator"], row["self_ms_per_step"], 100 * row["share"], row["calls_per_step"]]
            for row in found["top"][:MOST_ROWS]
        ],
    )
    if found["kernels"]:
        page.table(
            ["kernel", "ms a step", "launches a step", "mean us"],
            [[row["kernel"], row["ms_per_step"], row["launches_per_step"], row["mean_us"]] for row in found["kernels"]],
        )
    page.figure(
        work_figures.roofline(record),
        f"Roofline: {peaks['flops_per_second'] / 1e9:,.0f} GFLOP/s ({peaks['dtype']} product) and "
        f"{peaks['bytes_per_second'] / 1e9:,.1f} GB/s (copy), measured on this device just now. "
        "Area is time; what comes from a cache lies above the roof",
    )
    page.table(
        ["operator", "ms a step", "calls", "GFLOP/s", "GB/s", "of the roof %", "bound by"],
        [
            [
                row["operator"], row["ms_per_step"], row["calls"], row["gflops_per_second"], row["gbytes_per_second"],
                100 * row["of_roof"], row["bound"],
            ]
            for row in found["roofline"][:MOST_ROWS]
        ],
    )  # fmt: skip
    waits = [[wait["operator"], wait["phase"], wait["calls"], f"`{wait['source']}`"] for wait in found["waits"]]
    if waits:
        page.text("Where the host waits for the device in a step that is no log step:")
        page.table(["wait", "phase", "calls", "source"], waits)
    else:
        page.text("The host waits for the device nowhere in a step that is no log step.")
    page.table(
        ["copy", "phase", "calls", "MiB a step", "source"],
        [
            [copy["kind"], copy["phase"], copy["calls"], copy["bytes"] / MIB, f"`{copy['source']}`"]
            for copy in found["copies"][:MOST_ROWS]
        ],
    )


def idle(page: Page, record: dict[str, Any]) -> None:
    """What the device does, and what it waits for."""
    page.section(
        "Busy and idle",
        "Of the device, in the traced steps, which the tracing makes longer. On a CPU, host and device are one: idle "
        "is the time between operators, in Python or waiting.",
    )
    page.figure(
        work_figures.idle_bar(record), "Compute hides communication, and both hide copies, where they run at once"
    )
    overlap = record["all_reduce_overlap"]
    if overlap is not None:
        page.text(f"{overlap:.0%} of the time of the all-reduces is hidden behind the backward.")


def memory(page: Page, record: dict[str, Any]) -> None:
    """Peak by category, timeline, gaps, and what is not torch's."""
    held = record["memory"]
    rows: list[tuple[str, int]] = [*held["held"].items()]
    rows.append(("activations and temporaries", held["activations_and_temporaries"]))
    page.section("Memory", f"The peak is in the phase {held['peak_phase'] or 'unknown'}.")
    page.figure(work_figures.memory_timeline(record), "Allocated by torch; on a CPU, since the trace began")
    allocator = held["allocator"]
    if allocator is not None:
        rows += [
            ("torch, peak allocated", allocator["allocated_peak"]),
            ("torch, peak reserved", allocator["reserved_peak"]),
            ("torch, most in split blocks", allocator["inactive_split_peak"]),
            ("DALI's pools on the device", held["dali_on_device"]),
            ("others on the device: CUDA, NCCL, other processes", held["others_on_device"]),
        ]
        page.text(f"{allocator['fragmentation']:.0%} of what torch reserved was in gaps at the peak.")
    rows.append(("resident memory of the process, peak, DALI's pools on the host included", held["process_peak"]))
    page.table(["what", "MiB"], [[name, size / MIB] for name, size in rows])
