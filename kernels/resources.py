"""What a kernel will cost on a GPU that is not here: compiled ahead of time, read from the machine code.

A launch noted by `launch.recording` is compiled with Triton for its architecture and disassembled with the tools of
Triton's wheel. Registers, stack and shared memory decide how many programs a multiprocessor holds; local loads and
stores are spills; the widths of global loads and stores show whether a warp moves whole sectors.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import Launch

DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin"
REGISTERS_PER_SM = 65536
SHARED_BYTES_PER_SM = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10, 120: 100 << 10}
WARPS_PER_SM = {80: 64, 90: 64, 100: 64, 120: 48}
RESERVED_SHARED_BYTES = 1 << 10
"""What the system takes of each resident block (CUDA C++ programming guide, table of compute capabilities)."""
TRITON_TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]+)([^;]*);")
LABEL = re.compile(r"^\s*(\.L_x_\d+):", re.MULTILINE)
MMA_PREFIXES = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Resources:
    """Of one binary. `load` and `store`: instructions on global memory, by the bytes that a thread moves."""

    registers: int
    stack_bytes: int
    spill_instructions: int
    shared_bytes: int
    programs_per_sm: int
    load: dict[int, int]
    store: dict[int, int]
    mma_instructions: int


def compile_ahead(launch: Launch, architecture: int) -> Any:
    """Triton's compiled kernel."""
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    return triton.compile(source_of(launch), target=GPUTarget("cuda", architecture, 32), options=options)


def source_of(launch: Launch) -> ASTSource:
    """What Triton compiles, for the argument types and alignments that the launcher would have given on a GPU."""
    names = launch.kernel.arg_names
    runtime = [name for name in names if name not in launch.constants]
    assert len(runtime) == len(launch.arguments), f"{launch.name}: {len(runtime)} arguments expected"
    signature, constants, attributes = {}, {}, {}
    arguments = dict(zip(runtime, launch.arguments, strict=True))
    for index, name in enumerate(names):
        value = launch.constants.get(name, arguments.get(name))
        if name in launch.constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[(index,)] = "constexpr", value
            continue
        signature[name] = _type_name(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _type_name(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + TRITON_TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int), f"no argument of a kernel: {value!r}"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def disassemble(compiled: Any) -> tuple[str, str]:
    """Resource usage as cuobjdump prints it, and the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        return usage, _run("nvdisasm", "-c", file.name)


def _run(tool: str, *arguments: str) -> str:
    command = [str(DISASSEMBLER / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions(machine_code: str) -> list[tuple[str, str]]:
    """(opcode with its suffixes, operands) in program order."""
    return INSTRUCTION.findall(machine_code)


def executed(machine_code: str, trips: tuple[int, ...] = ()) -> Counter[str]:
    """How often a warp executes each opcode, operands left out: bodies of loops count `trips` times, in program order.

    A loop is a branch backwards over more than 20 instructions (shorter ones wait for barriers) that stands before the
    last EXIT (behind it are waits that were moved out of the way, which jump back). Matrix products before a loop that
    has some are pieces of its trips, brought forward by the software pipeline: counted with the loop, not again.
    ValueError when there are fewer loops than trips: the compiler unrolled one, or the case is wrong.
    """
    labels: dict[str, int] = {}
    found: list[tuple[str, str]] = []
    for line in machine_code.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        found += INSTRUCTION.findall(line)
    loops = _loops(found, labels)
    if len(loops) < len(trips):
        raise ValueError(f"{len(loops)} loops in the machine code, {len(trips)} expected")
    opcodes = _with_shapes(found)
    times = [1] * len(found)
    before = 0
    for (start, end), count in zip(loops, trips, strict=False):
        times[start : end + 1] = [count] * (end + 1 - start)
        if any(opcode.startswith(MMA_PREFIXES) for opcode in opcodes[start : end + 1]):
            for i in range(before, start):
                times[i] = 0 if opcodes[i].startswith(MMA_PREFIXES) else 1
        before = end + 1
    total: Counter[str] = Counter()
    for opcode, count in zip(opcodes, times, strict=True):
        total[opcode] += count
    return total


def _loops(found: list[tuple[str, str]], labels: dict[str, int]) -> list[tuple[int, int]]:
    """First and last instruction of each, in program order."""
    last_exit = max((i for i, (opcode, _) in enumerate(found) if opcode.startswith("EXIT")), default=len(found))
    loops = []
    for end, (opcode, operands) in enumerate(found[:last_exit]):
        target = re.search(r"\.L_x_\d+", operands)
        if opcode.startswith("BRA") and target and end - labels.get(target[0], end) > 20:
            loops.append((labels[target[0]], end))
    return sorted(loops)


def _with_shapes(found: list[tuple[str, str]]) -> list[str]:
    """Opcodes; UTCHMMA with its shape, as M64N128, which stands in its descriptor, a constant in a uniform register.

    Bits 17 to 22 of the descriptor are N / 8, 24 to 28 M / 16 (PTX ISA, tcgen05 instruction descriptor, .kind::f16).
    """
    constants: dict[str, int] = {}
    opcodes = []
    for opcode, operands in found:
        if move := re.match(r"\s*(UR\d+), (0x[0-9a-f]+)", operands if opcode == "UMOV" else ""):
            constants[move[1]] = int(move[2], 16)
        if opcode.startswith("UTC") and (register := re.search(r"idesc\[(UR\d+)\]", operands)):
            descriptor = constants[register[1]]
            opcode += f".M{(descriptor >> 24 & 31) * 16}N{(descriptor >> 17 & 63) * 8}"
        opcodes.append(opcode)
    return opcodes


def mma_flops(opcodes: Counter[str], warps: int) -> int:
    """Multiply-adds times 2 of a program's matrix instructions on 16-bit operands.

    HMMA is a warp's; HGMMA is done by the four warps of a group together; UTCHMMA (tcgen05.mma, 16 deep) is issued by
    one thread for the whole program.
    """
    flops = 0
    for opcode, count in opcodes.items():
        if opcode.startswith("HMMA.16816"):
            flops += count * warps * 2 * 16 * 8 * 16
        elif shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):
            flops += count * warps // 4 * 2 * int(shape[1]) * int(shape[2]) * int(shape[3])
        elif shape := re.match(r"UTCHMMA\.M(\d+)N(\d+)", opcode):
            flops += count * 2 * int(shape[1]) * int(shape[2]) * 16
        else:
            assert not opcode.startswith(MMA_PREFIXES), f"a matrix product of unknown shape: {opcode}"
    return flops


def access_bytes(opcode: str) -> int:
    """Bytes a thread moves with a load or store: LDG.E.128 -> 16."""
    return next((WIDTHS[part] for part in opcode.split(".")[1:] if part in WIDTHS), 4)


def read_resources(compiled: Any, architecture: int) -> Resources:
    """Counts in the binary as it stands; an instruction in a loop counts once."""
    usage, machine_code = disassemble(compiled)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, _, local = map(int, found.groups())
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    opcodes = Counter(opcode for opcode, _ in instructions(machine_code))
    return Resources(
        registers=registers,
        stack_bytes=stack + local,
        spill_instructions=_count(opcodes, ("LDL", "STL")),
        shared_bytes=shared,
        programs_per_sm=programs_per_sm(registers, shared, warps, architecture),
        load=_widths(opcodes, ("LDG.", "LDGSTS.")),
        store=_widths(opcodes, ("STG.",)),
        mma_instructions=_count(opcodes, MMA_PREFIXES),
    )


def programs_per_sm(registers: int, shared_bytes: int, warps: int, architecture: int) -> int:
    """Resident programs: the smallest of what registers (given out by 8 a thread), shared memory and warps allow."""
    by_registers = REGISTERS_PER_SM // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = SHARED_BYTES_PER_SM[architecture] // (shared_bytes + RESERVED_SHARED_BYTES)
    return min(by_registers, by_shared, WARPS_PER_SM[architecture] // warps, 32)


def _count(opcodes: Counter[str], prefixes: tuple[str, ...]) -> int:
    return sum(count for opcode, count in opcodes.items() if opcode.startswith(prefixes))


def _widths(opcodes: Counter[str], prefixes: tuple[str, ...]) -> dict[int, int]:
    widths: Counter[int] = Counter()
    for opcode, count in opcodes.items():
        if opcode.startswith(prefixes):
            widths[access_bytes(opcode)] += count
    return dict(sorted(widths.items()))
