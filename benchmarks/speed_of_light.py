"""`deit-fast bench kernels --speed-of-light GPU`: a lower bound of each kernel's time, from its compiled code. A model.

    HBM      bytes that have to cross it once / its bandwidth
    MMA      matrix products executed, with padding / peak
    issue    warp instructions executed / (4 a clock and multiprocessor)
    special  exponentials and their like (MUFU) executed / (1/2 a clock and multiprocessor, for a warp)
    bound    the largest of these

Executed = instructions of the compiled kernel, loops times their trips, times warps and programs. No latency, no L2, no
launch, no last wave: what a GPU measures is longer. Nothing here was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deit_fast.gpus import GPUS, Gpu
from deit_fast.kernels.cases import Case, all_cases
from deit_fast.kernels.resources import compile_ahead, disassemble, executed, mma_flops

from .options import say
from .table import print_table

HEADINGS = ("launch", "bytes", "operations", "MB", "GFLOP", "HBM us", "MMA us", "issue us", "special us", "bound")


@dataclass(frozen=True)
class Chip:
    """What the data sheet says beyond `gpus.GPUS`: multiprocessors, and the boost clock at which its peak is stated."""

    gpu: Gpu
    multiprocessors: int
    clock_hz: float


CHIPS = {
    "a100": Chip(GPUS["a100"], 108, 1.41e9),
    "h100": Chip(GPUS["h100"], 132, 1.98e9),
    "b200": Chip(GPUS["b200"], 148, 1.965e9),
}


def bounds(case: Case, chip: Chip) -> dict[str, float]:
    """Microseconds by each limit."""
    gpu = chip.gpu
    launch = case.launch(gpu.architecture)
    machine_code = disassemble(compile_ahead(launch, gpu.architecture))[1]
    opcodes = executed(machine_code, case.trips(launch))
    programs = math.prod(launch.grid) / case.branches
    warps = launch.num_warps * programs
    multiplied = mma_flops(opcodes, launch.num_warps) * programs
    cycles = chip.multiprocessors * chip.clock_hz
    special = sum(count for opcode, count in opcodes.items() if opcode.startswith("MUFU"))
    return {
        "HBM": 1e6 * case.bytes / gpu.memory_bytes_per_second,
        "MMA": 1e6 * multiplied / gpu.half_flops,
        "issue": 1e6 * sum(opcodes.values()) * warps / (4 * cycles),
        "special": 1e6 * special * warps / (0.5 * cycles),
    }


def show_speed_of_light(name: str) -> list[dict[str, object]]:
    """Prints the table; returns its rows. ValueError for an unknown GPU."""
    if name not in CHIPS:
        raise ValueError(f"--speed-of-light takes {', '.join(CHIPS)}, got {name}")
    chip = CHIPS[name]
    gpu = chip.gpu
    title = f"Lower bounds on {gpu.name} for DeiT-B, batch 256: a model, not measured"
    rows: list[dict[str, object]] = []
    cells = []
    for case in all_cases():
        limits = bounds(case, chip)
        bound = max(limits, key=lambda limit: limits[limit])
        figures = [case.bytes / 1e6, case.flops / 1e9, *limits.values()]
        names = case.name, case.bytes_formula, case.flops_formula
        cells.append([*names, *(f"{figure:,.1f}" for figure in figures), f"{bound} {limits[bound]:,.1f}"])
        rows.append({"launch": case.name, "bytes": case.bytes, "flops": case.flops, "bound": bound, **limits})
    print_table(title, HEADINGS, cells, text_columns=3)
    cycles = f"{chip.multiprocessors} x {chip.clock_hz / 1e9:.2f} GHz"
    say(
        f"u = 2 B N C bytes, one bf16 pass (fp32: 4). HBM = bytes / {gpu.memory_bytes_per_second / 1e12:.2f} TB/s; "
        f"MMA = executed products / {gpu.half_flops / 1e12:,.0f} TFLOP/s; issue = warp instructions / (4 x {cycles}); "
        f"special = MUFU / (0.5 x {cycles}); bound = the largest. A model: nothing was run."
    )
    return rows
