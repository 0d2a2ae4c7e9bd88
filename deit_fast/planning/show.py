"""A plan on the terminal: days, cost and limit first, then what they follow from; and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from deit_fast.budget import REQUIRED_IMAGES_PER_SECOND
from deit_fast.start_report import batch_warning
from deit_fast.teacher import teacher_runtime

from .anchors import GIVEN
from .plan import Outlook, Plan
from .stages import IMAGENET_BYTES_PER_IMAGE
from .suggest import options_of, suggest_batch

GIB, MIB = 2**30, 2**20


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """The plan in full, for JSON; every figure in it is a prediction or counted."""
    known = asdict(plan)
    for memory, plain in zip(plan.memory, known["memory"], strict=True):
        plain |= {"total_bytes": memory.total_bytes, "fits": memory.fits}
    for outlook, plain in ((plan.slow, known["slow"]), (plan.fast, known["fast"])):
        plain["limit"] = outlook.limit
    return {"schema": 1, "plan": "predicted, not measured", "is_supported": plan.machine.gpu.is_supported, **known}


def show_plan(plan: Plan, price: float | None, console: Console) -> None:
    """Ten seconds of reading, then the tables."""
    _show_answer(plan, price, console)
    _show_speed(plan, console)
    _show_memory(plan, console)
    _show_demand(plan, console)
    console.print("Formulas and sources: docs/plan.md. Nothing on this page was measured on that machine.")


def between(plan: Plan, value: Callable[[Outlook], float], form: str) -> str:
    """The values at both ends of the range, the lower first; one where they look the same."""
    low, high = sorted((value(plan.slow), value(plan.fast)))
    texts = (format(low, form), format(high, form))
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} - {texts[1]}"


def limits(plan: Plan) -> str:
    """`compute; next JPEG engines, from 78,400 images/s`; of both ends where these differ."""
    texts = []
    for outlook in (plan.slow, plan.fast):
        following = [f"; next {name}, from {rate:,.0f} images/s" for name, rate in list(outlook.stages.items())[1:2]]
        texts.append("".join([outlook.limit, *following]))
    if plan.slow.limit == plan.fast.limit:
        return texts[1]
    return f"at {plan.slow.student_mfu:.0%} MFU {texts[0]}; at {plan.fast.student_mfu:.0%} {texts[1]}"


def _show_answer(plan: Plan, price: float | None, console: Console) -> None:
    config, machine = plan.config, plan.machine
    teacher = f" with teacher {plan.teacher.name}" if plan.teacher else ""
    console.print(
        f"[bold]PREDICTED, not measured[/]  {plan.student.name} at {config.model.image_size_px} px{teacher}, "
        f"{config.schedule.epochs} epochs of {plan.num_images:,} images, {machine.gpus} x {machine.gpu.name}",
        highlight=False,
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    hours = between(plan, lambda o: 24 * o.days, ",.1f")
    table.add_row("  days", f"[bold]{between(plan, lambda o: o.days, ',.2f')}[/] ({hours} hours)")
    if price is not None:
        cost = between(plan, lambda o: o.cost or 0.0, ",.0f")
        table.add_row("  cost", f"[bold]{cost}[/] at {price:g} for a GPU and hour")
    else:
        gpu_hours = between(plan, lambda o: o.days * 24 * machine.gpus, ",.0f")
        table.add_row("  GPU hours", f"{gpu_hours} (--price gives the cost)")
    table.add_row("  speed", f"{between(plan, lambda o: o.images_per_second, ',.0f')} images/s")
    table.add_row("  limit", limits(plan))
    table.add_row("  memory", memory_line(plan))
    budget = f"{between(plan, lambda o: o.margin, '.2f')} x the {REQUIRED_IMAGES_PER_SECOND:,.1f} images/s"
    table.add_row("  budget", f"{budget} of DeiT-B in 3 days on 8 GPUs")
    console.print(table, highlight=False)
    for warning in warnings(plan):
        console.print(f"[bold]warning:[/] {warning}", highlight=False)


def memory_line(plan: Plan) -> str:
    """Whether the batch fits, and which would."""
    memory = plan.chosen_memory
    verb = "fits" if memory.fits else "does NOT fit"
    taken = f"{memory.total_bytes / GIB:.1f} of {memory.usable_bytes / GIB:.1f} GiB"
    text = f"batch {memory.batch_size} a GPU {verb}: {taken}; largest {plan.memory[0].largest_batch_size:,}"
    if len(plan.memory) > 1:
        text += f", with runtime.checkpoint_activations {plan.memory[1].largest_batch_size:,}"
    return text


def warnings(plan: Plan) -> list[str]:
    """What makes the plan not runnable as it stands, each with its mend."""
    found = []
    gpu = plan.machine.gpu
    if not gpu.is_supported:
        torch_version = f"the pinned torch {torch.__version__}"
        found.append(f"{gpu.name} (sm_{gpu.architecture}) is NOT SUPPORTED: {torch_version} holds no code for it")
    if not plan.student.embed_dim and plan.student_utilisation.basis != GIVEN:
        found.append(
            f"the range of MFU was published for transformers, and {plan.student.name} is none: give yours by --mfu"
        )
    found += _fp32_warnings(plan)
    other_batch = batch_warning(plan.config, plan.global_batch)
    if other_batch is not None:
        found.append(other_batch)
    if other_batch is not None or not plan.chosen_memory.fits:
        try:
            suggested = suggest_batch(plan.config, plan.machine, plan.student, plan.teacher)
        except ValueError as error:
            found.append(str(error))
        else:
            found.append(f"to keep the recipe's global batch within memory: {options_of(suggested)}")
    return found


def _fp32_warnings(plan: Plan) -> list[str]:
    runtime = plan.config.runtime
    models = (
        ("student", runtime.precision, plan.student_utilisation, "--mfu"),
        ("teacher", teacher_runtime(runtime, runtime.precision).precision, plan.teacher_utilisation, "--teacher-mfu"),
    )
    return [
        f"the {name} computes in fp32, and the peak is that of half precision: give its share of that by {option}"
        for name, precision, reached, option in models
        if precision == "fp32" and reached is not None and reached.basis != GIVEN
    ]


def _show_speed(plan: Plan, console: Console) -> None:
    table = _table("Speed, images/s over all GPUs (the lowest is the limit)", "", "low end", "high end")
    ends = (plan.slow, plan.fast)

    def row(name: str, value: Callable[[Outlook], str]) -> None:
        table.add_row(name, *(value(end) for end in ends))

    row("student's share of the peak (MFU)", lambda o: f"{o.student_mfu:.1%}")
    if plan.teacher is not None:
        row("teacher's share of the peak", lambda o: f"{o.teacher_mfu:.1%}")
        row("student's share of the device's time", lambda o: f"{o.student_share:.0%}")
    for stage in plan.slow.stages:
        row(stage, lambda o, stage=stage: f"{o.stages[stage]:,.0f}")  # type: ignore[misc]
    row("images/s", lambda o: f"[bold]{o.images_per_second:,.0f}[/]")
    row("  of one GPU", lambda o: f"{o.images_per_second / plan.machine.gpus:,.0f}")
    row(f"step of {plan.global_batch:,} images, ms", lambda o: f"{1e3 * o.step_seconds:,.1f}")
    row("  all-reduce, at least, ms", lambda o: f"{1e3 * o.all_reduce_seconds:,.1f}")
    console.print(table)
    student, teacher = plan.student, plan.teacher
    flops = f"{student.parameters:,} parameters, {student.forward_flops / 1e9:.2f} GFLOP forward, x 3 a step"
    console.print(f"  student: {flops} (counted)", highlight=False)
    if teacher is not None:
        console.print(
            f"  teacher: {teacher.parameters:,} parameters, {teacher.forward_flops / 1e9:.2f} GFLOP (counted)",
            highlight=False,
        )
    for line in plan.student_utilisation.basis:
        console.print(f"  MFU from: {line}", highlight=False)
    for line in plan.teacher_utilisation.basis if plan.teacher_utilisation else ():
        console.print(f"  teacher's from: {line}", highlight=False)


def _show_memory(plan: Plan, console: Console) -> None:
    headings = ["kept", "computed again"][: len(plan.memory)]
    batch = plan.chosen_memory.batch_size
    table = _table(f"Memory of one GPU, GiB, batch {batch}; activations are", "", *headings)
    for part in plan.memory[0].parts:
        table.add_row(part, *(f"{memory.parts.get(part, 0) / GIB:.2f}" for memory in plan.memory))
    table.add_row("together", *(f"[bold]{memory.total_bytes / GIB:.2f}[/]" for memory in plan.memory))
    table.add_row("planned for (90 % of the GPU)", *(f"{memory.usable_bytes / GIB:.2f}" for memory in plan.memory))
    table.add_row("largest batch", *(f"{memory.largest_batch_size:,}" for memory in plan.memory))
    console.print(table)
    counted = [plan.student.kept, plan.student.recomputed]
    for name, activations in zip(headings, counted, strict=False):
        if activations is not None:
            console.print(
                f"  {name}: {activations.saved_bytes_per_image / MIB:.1f} MiB an image saved for the backward, "
                f"{activations.peak_bytes_per_image / MIB:.1f} at most (counted; not compiled)",
                highlight=False,
            )


def _show_demand(plan: Plan, console: Console) -> None:
    table = _table("What the machine has to give at that speed", "", "low end", "high end", "")
    ends = (plan.slow.demand, plan.fast.demand)
    loader = f"{plan.loader.cpu_ms_per_image:.2f} CPU-ms an image: {plan.loader.source}"
    table.add_row("CPU cores of the loader, in all", *(f"{d.loader_cores:.1f}" for d in ends), loader)
    load = "no hardware decoder stated"
    if ends[0].decoder_load is not None:
        load = (
            f"{between(plan, lambda o: o.demand.decoder_load or 0.0, '.0%')} of its JPEG engines, by an A100's 7,000/s"
        )
    table.add_row("JPEGs/s decoded by each GPU", *(f"{d.decodes_per_second_per_gpu:,.0f}" for d in ends), load)
    reads = f"{IMAGENET_BYTES_PER_IMAGE / 1e3:.0f} KB a file"
    repeats = plan.config.data.repeats
    reads += f", read once for {repeats} views" if plan.machine.nodes == 1 and repeats > 1 else ""
    table.add_row("disk MB/s, in all", *(f"{d.disk_bytes_per_second / 1e6:,.0f}" for d in ends), reads)
    if plan.machine.gpus > 1:
        ring = (f"{d.network_bytes_per_second_per_gpu / 1e9:.1f}" for d in ends)
        link = f"each GPU has {plan.machine.gpu.link_bytes_per_second / 1e9:,.0f}"
        table.add_row("all-reduce GB/s of each GPU", *ring, link)
    if plan.machine.nodes > 1:
        rate = (f"{d.network_bits_per_second_per_node / 1e9:,.0f}" for d in ends)
        table.add_row("network Gbit/s of each machine", *rate, f"{plan.machine.nodes} machines")
    console.print(table)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        text = heading == "" or index == 0
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text)
    return table
