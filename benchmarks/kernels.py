"""`deit-fast bench kernels`: every kernel against eager torch, torch.compile and SDPA's backends.

Correctness comes first: outputs and gradients may be at most twice as far from fp64 as eager torch's in the same dtype;
what fails is shown as wrong and not timed. Then a forward and backward is timed in interleaved turns: median, 20th and
80th percentile, and the bandwidth and rate that the bytes and operations of the ideal implementation give.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deit_fast.gpus import Gpu, gpu_of_driver

from .first_line import first_line
from .kernel_contenders import Contest, Function, Sizes, contests
from .table import print_table
from .timing import Timing

CHECKED_IMAGES = 4
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Of the largest value: what two roundings in other places may do."""
BUSY_CYCLES = 4_000_000
"""About 2 ms of a GPU: longer than the host takes to launch what is timed."""


def forward_backward(
    function: Function, inputs: dict[str, Tensor], leaves: tuple[str, ...]
) -> Callable[[], list[Tensor]]:
    """One call: outputs, and gradients of the leaves for incoming gradients of 1."""
    given = {name: value.detach().requires_grad_() if name in leaves else value for name, value in inputs.items()}
    wanted = [given[name] for name in leaves]

    def call() -> list[Tensor]:
        outputs = function(**given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if not wanted:
            return list(outputs)
        ones = [torch.ones_like(output) for output in outputs]
        return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, wanted, ones)]

    return call


def is_correct(contest: Contest, function: Function) -> bool:
    """Against the reference in fp64."""
    wide = {name: value.double() if value.is_floating_point() else value for name, value in contest.inputs.items()}
    reference = contest.run("reference")
    truth = forward_backward(reference, wide, contest.leaves)()
    eager, ours = (forward_backward(f, contest.inputs, contest.leaves)() for f in (reference, function))
    for true, plain, mine in zip(truth, eager, ours, strict=True):
        floor = FLOOR.get(mine.dtype, 1e-5) * true.abs().max().item() + 1e-7
        if not (mine.double() - true).abs().max() <= 2 * (plain.double() - true).abs().max() + floor:
            return False
    return True


def contenders(contest: Contest, compiled: bool) -> dict[str, Function]:
    """Each backend, and the reference compiled."""
    functions = {name: contest.run(backend) for name, backend in contest.backends.items()}
    if compiled:
        functions["torch.compile"] = torch.compile(contest.run("reference"), dynamic=False)  # as a run
    return functions


def time_contest(contest: Contest, functions: dict[str, Function], turns: int, device: str) -> dict[str, list[float]]:
    """Seconds of each turn, in rounds; one turn each to warm up."""
    calls = {name: forward_backward(f, contest.inputs, contest.leaves) for name, f in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            taken = _seconds(call, device)
            if turn:
                seconds[name].append(taken)
    return seconds


def _seconds(call: Callable[[], object], device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(BUSY_CYCLES)  # else a short kernel's time would be that of the host's launches
    start_event.record()
    call()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1e3


def known_gpu(device: str) -> Gpu | None:
    """Its data sheet, when it is in the table."""
    return gpu_of_driver(torch.cuda.get_device_name()) if device == "cuda" else None


def measure_kernels(
    sizes: Sizes, dtype: torch.dtype, device: str, *, turns: int, compiled: bool, only: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """A row for each kernel and implementation; ValueError for an unknown kernel."""
    found = contests(sizes, dtype, device)
    if unknown := set(only) - {contest.name for contest in found}:
        raise ValueError(f"unknown kernel {', '.join(sorted(unknown))}; kernels: {', '.join(c.name for c in found)}")
    # in fp64, the whole batch of attention weights would not fit
    small = contests(replace(sizes, batch=min(CHECKED_IMAGES, sizes.batch)), dtype, device)
    gpu = known_gpu(device)
    rows = []
    for contest, checked in zip(found, small, strict=True):
        if only and contest.name not in only:
            continue
        functions = contenders(contest, compiled)
        fails = {name: why_not(checked, function) for name, function in functions.items()}
        timed = time_contest(contest, {n: f for n, f in functions.items() if fails[n] is None}, turns, device)
        rows += [kernel_row(contest, name, timed.get(name), gpu, sizes.batch, fails[name]) for name in functions]
    return rows


def why_not(contest: Contest, function: Function) -> str | None:
    """What keeps an implementation from being timed: `wrong`, or its error; None: nothing."""
    try:
        return None if is_correct(contest, function) else "wrong"
    except Exception as error:  # noqa: BLE001 - compilers and drivers fail with anything; the others are still timed
        return first_line(error)


def kernel_row(
    contest: Contest, name: str, seconds: list[float] | None, gpu: Gpu | None, batch: int, fails: str | None = "wrong"
) -> dict[str, Any]:
    """Of one implementation, from the seconds of its turns on `batch` images; None: it `fails`, and was not timed."""
    row: dict[str, Any] = {"workload": contest.name, "name": name}
    if seconds is None:
        return row | {"correct": False, "fails": fails}
    median = statistics.median(seconds)
    p20, *_, p80 = statistics.quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else (median, median)
    row |= {"correct": True, **Timing([batch] * len(seconds), seconds, warm_up_turns=1).row()}
    row |= {"ms": 1e3 * median, "ms_p20": 1e3 * p20, "ms_p80": 1e3 * p80}
    row |= {"gb_per_second": contest.bytes / median / 1e9, "tflop_per_second": contest.flops / median / 1e12}
    if gpu is not None:
        bound = max(contest.bytes / gpu.memory_bytes_per_second, contest.flops / gpu.half_flops)
        row["share_of_bound"] = bound / median
    return row


def fastest(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Kernel -> the fastest correct backend, `torch.compile` counting as reference, which it compiles."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["correct"] and (row["workload"] not in best or row["ms"] < best[row["workload"]]["ms"]):
            best[row["workload"]] = row
    return {kernel: row["name"].replace("torch.compile", "reference") for kernel, row in best.items()}


def show_kernels(rows: list[dict[str, Any]], title: str) -> None:
    """Prints the table."""
    headings = ("kernel", "implementation", "ms (median)", "p20 - p80", "GB/s", "TFLOP/s", "of the bound")
    print_table(title, headings, map(_cells, rows), text_columns=2)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    names = row["workload"], row["name"]
    if not row["correct"]:
        return *names, row["fails"], "-", "-", "-", "-"
    return (
        *names,
        f"{row['ms']:.3f}",
        f"{row['ms_p20']:.3f} - {row['ms_p80']:.3f}",
        f"{row['gb_per_second']:,.1f}",
        f"{row['tflop_per_second']:.2f}" if row["tflop_per_second"] else "-",
        f"{row['share_of_bound']:.0%}" if "share_of_bound" in row else "-",
    )
