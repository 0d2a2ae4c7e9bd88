"""Loads the compiled kernels of this folder and calls them.

What they do not take (other dtypes, a package that was installed without a C++ compiler) stays with the reference:
`takes_rows` and `takes_vectors` tell.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from deit_fast.kernels.registration import say_once

LIBRARY = "libdeit_fast_cpu.so"
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The number that the C interface knows each by."""
MAX_NORM_WIDTH = 2048
"""kMaxNormWidth of elementwise.cc."""


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def _lengths(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names]


def _numbers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int32) for name in names]


class Attention(ctypes.Structure):
    """As attention.cc has it."""

    _fields_ = [
        *_pointers("qkv", "out", "lse", "grad_out", "grad_qkv"),
        *_lengths("batch", "tokens", "heads", "head_dim"),
        *_numbers("threads"),
    ]


class GeluBias(ctypes.Structure):
    """As elementwise.cc has it."""

    _fields_ = [
        *_pointers("x", "grad_y", "bias", "y", "grad_x", "sums"),
        *_lengths("rows", "width"),
        *_numbers("dtype", "level", "threads"),
    ]


class AddNorm(ctypes.Structure):
    """As elementwise.cc has it."""

    _fields_ = [
        *_pointers("x", "branch", "grad_total", "grad_y", "weight", "shift", "bias", "gamma", "drop_path", "slot"),
        *_pointers("total", "y", "grad_x", "grad_branch", "mean", "rstd", "sums"),
        *_lengths("rows", "tokens", "width"),
        ("eps", ctypes.c_float),
        *_numbers("dtype", "branch_dtype", "level", "threads"),
    ]


TASKS: dict[str, type[ctypes.Structure]] = {"attention": Attention, "gelu_bias": GeluBias, "add_norm": AddNorm}


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels; None where the package was installed without them, or they do not fit, which is said.

    torch is imported before: the loops then run in its OpenMP's threads, not in others beside them.
    """
    path = Path(__file__).with_name(LIBRARY)
    if not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
        stale = [name for name in TASKS if _bytes_of(library, name) != ctypes.sizeof(TASKS[name])]
    except (OSError, AttributeError) as error:
        say_once(f"the compiled kernels {path} cannot be used ({error}); install the package again")
        return None
    if stale:
        say_once(f"the compiled kernels {path} are those of another version; install the package again")
        return None
    library.deit_fast_cpu_level_name.restype = ctypes.c_char_p
    library.deit_fast_cpu_blocks.restype = ctypes.c_int64
    library.deit_fast_cpu_blocks.argtypes = [ctypes.c_int64]
    return library


def _bytes_of(library: ctypes.CDLL, task: str) -> int:
    function = getattr(library, f"deit_fast_cpu_{task}_bytes")
    function.restype = ctypes.c_int64
    return int(function())


@cache
def levels() -> tuple[str, ...]:
    """The levels of instructions that this build and processor have for element-wise kernels, slowest first.

    None without the library. A kernel is given the place of one in this list; the last is the best.
    """
    library = load_library()
    count = 0 if library is None else library.deit_fast_cpu_level_count()
    return tuple(library.deit_fast_cpu_level_name(i).decode() for i in range(count))  # type: ignore[union-attr]


def best_level() -> int:
    """The place in `levels` of the one to use."""
    return len(levels()) - 1


@cache
def runs_attention() -> bool:
    """Whether attention is compiled for this processor, which takes AVX512-BF16."""
    library = load_library()
    return library is not None and bool(library.deit_fast_cpu_attention_runs())


def takes_rows(*tensors: Tensor | None) -> bool:
    """Whether the library is there and these can be a kernel's rows: fp32 or bf16."""
    return load_library() is not None and all(t is None or t.dtype in DTYPES for t in tensors)


def takes_vectors(*tensors: Tensor | None) -> bool:
    """Whether these can be a kernel's parameters: fp32."""
    return all(t is None or t.dtype == torch.float32 for t in tensors)


def call(name: str, task: ctypes.Structure, tensors: Mapping[str, Tensor | None], *, backward: bool) -> None:
    """Runs a kernel in torch's number of threads; tensors fill the fields of the same name, None leaves them null.

    Inputs of other strides are copied first; outputs are contiguous. MemoryError: none is left to work in.
    """
    library = load_library()
    assert library is not None
    in_rows = {field: None if tensor is None else tensor.contiguous() for field, tensor in tensors.items()}
    for field, tensor in in_rows.items():
        setattr(task, field, None if tensor is None else tensor.data_ptr())
    task.threads = torch.get_num_threads()
    if not getattr(library, f"deit_fast_cpu_{name}")(ctypes.byref(task), int(backward)):
        raise MemoryError(f"{name} found no memory to work in")


def partial_sums(rows: int, *shape: int) -> Tensor:
    """fp32 [blocks, *shape]: a kernel's sums over the rows of each block, to be added afterwards."""
    library = load_library()
    assert library is not None
    return torch.empty(library.deit_fast_cpu_blocks(rows), *shape, dtype=torch.float32)
