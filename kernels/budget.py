"""What each kernel may take on each architecture: `budget.yaml`, one row a launch, and what it means to be worse.

The rows are read from binaries, without a GPU: `deit-fast bench kernels --resources all --write` makes them again.
They hold for one version of Triton: another compiles the same source to other code.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import yaml

from .cases import Case

BUDGET_FILE = Path(__file__).with_name("budget.yaml")
ARCHITECTURES = (80, 90, 100, 120)
WIDE_BYTES = 8
"""A warp that moves 8 bytes a thread fills whole 32-byte sectors and 128-byte lines."""
Row = dict[str, Any]
MORE_IS_WORSE = ("registers", "stack_bytes", "spill_instructions", "shared_bytes", "narrow_loads", "narrow_stores",
                 "mma_instructions", "mma_over_ideal")  # fmt: skip
LESS_IS_WORSE = ("programs_per_sm", "load_bytes", "store_bytes")


def measure(case: Case, architecture: int) -> Row:
    """Compiles the case and reads its row; half a minute of CPU time for all cases of an architecture."""
    from .resources import compile_ahead, disassemble, executed, mma_flops, read_resources

    launch = case.launch(architecture)
    compiled = compile_ahead(launch, architecture)
    found = read_resources(compiled, architecture)
    row: Row = {
        "registers": found.registers,
        "stack_bytes": found.stack_bytes,
        "spill_instructions": found.spill_instructions,
        "shared_bytes": found.shared_bytes,
        "programs_per_sm": found.programs_per_sm,
        "load_bytes": max(found.load),
        "store_bytes": max(found.store),
        "narrow_loads": sum(count for width, count in found.load.items() if width < WIDE_BYTES),
        "narrow_stores": sum(count for width, count in found.store.items() if width < WIDE_BYTES),
        "source": source_hash(case, architecture),
    }
    if found.mma_instructions:
        row["mma_instructions"] = found.mma_instructions
        opcodes = executed(disassemble(compiled)[1], case.trips(launch))
        done = mma_flops(opcodes, launch.num_warps) * math.prod(launch.grid) / case.branches
        row["mma_over_ideal"] = round(done / case.flops, 3)
    return row


def source_hash(case: Case, architecture: int) -> str:
    """Of all that a row follows from, except Triton's version: the kernel's source and how it is launched."""
    from .resources import source_of

    launch = case.launch(architecture)
    options = architecture, launch.num_warps, launch.num_stages
    counted = launch.grid, case.trips(launch), case.branches, case.flops
    return hashlib.sha256(f"{source_of(launch).hash()} {options} {counted}".encode()).hexdigest()[:12]


def worse(row: Row, budget: Row) -> list[str]:
    """What of a row exceeds its budget, in words; empty when nothing does."""
    found = [
        f"{key} {row.get(key, 0)} > {budget.get(key, 0)}"
        for key in MORE_IS_WORSE
        if row.get(key, 0) > budget.get(key, 0)
    ]
    return found + [f"{key} {row[key]} < {budget[key]}" for key in LESS_IS_WORSE if row[key] < budget[key]]


def read_budget(path: Path = BUDGET_FILE) -> dict[str, Any]:
    """{"triton": version, "rows": {"sm_80": {case name: row}}}."""
    return yaml.safe_load(path.read_text())


def write_budget(rows: dict[str, dict[str, Row]], triton_version: str, path: Path = BUDGET_FILE) -> None:
    """One line a row."""
    lines = [
        "# Made by `deit-fast bench kernels --resources all --write`; what the keys mean: budget.py.",
        f"triton: {triton_version}",
        "rows:",
    ]
    for architecture, cases in rows.items():
        lines.append(f"  {architecture}:")
        for name, row in cases.items():
            pairs = ", ".join(f"{key}: {json.dumps(value)}" for key, value in row.items())
            lines.append(f"    {name}: {{{pairs}}}")
    path.write_text("\n".join(lines) + "\n")
