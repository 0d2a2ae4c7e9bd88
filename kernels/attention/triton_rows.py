"""Tiles of rows between global memory and registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    base, first, N: tl.constexpr, stride: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr
):
    """[ROWS, D] from row `first`; rows from N on read 0."""
    row = first + tl.arange(0, ROWS)
    pointers = base + row[:, None] * stride + tl.arange(0, D)[None, :]
    if MASKED:
        rows = tl.load(pointers, mask=(row < N)[:, None], other=0.0)
    else:
        rows = tl.load(pointers)
    return rows


@triton.jit
def store_rows(
    base, tile, first, N: tl.constexpr, stride: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """tile [ROWS, D] to row `first` and on; rows from N on are left alone."""
    row = first + tl.arange(0, ROWS)
    pointers = base + row[:, None] * stride + tl.arange(0, D)[None, :]
    if MASKED:
        tl.store(pointers, tile.to(base.dtype.element_ty), mask=(row < N)[:, None])
    else:
        tl.store(pointers, tile.to(base.dtype.element_ty))
