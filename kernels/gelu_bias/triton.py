"""GELU after a bias, and its backward with the bias gradient; formulas: `reference.py`.

Bytes: two passes over [M, F] forward (x, y), three backward (dy, x, dx); the bias gradient, which eager torch gets from
a pass of its own over dx, adds one fp32 row a program. A program walks down a block of columns with their sums in
registers; a second launch adds the programs' sums. No atomics.

Shapes: M rows, F features, R rows at a time, S programs for each block of columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deit_fast.kernels.launch import launch, multiprocessors_of

ROWS = 8
COLUMNS = 256
PROGRAMS_PER_SM = 8


@triton.jit
def gelu_forward(
    x,  # [M, F]
    bias,  # [F]
    y,  # [M, F]
    M,
    F: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (cdiv(M, R), cdiv(F, BLOCK))."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < M)[:, None] & (column < F)[None, :]
    at = row[:, None] * F + column[None, :]
    z = tl.load(x + at, mask=mask, other=0.0).to(SUM) + tl.load(bias + column, mask=column < F, other=0.0).to(SUM)
    out = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    tl.store(y + at, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def gelu_backward(
    grad_y,  # [M, F]
    x,  # [M, F]
    bias,  # [F]
    grad_x,  # [M, F]
    column_sums,  # [S, F]
    M,
    iterations,
    F: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (cdiv(F, BLOCK), S): a program takes `iterations` times R rows of its columns."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    program = tl.program_id(1).to(tl.int64)
    in_row = column < F
    bias_row = tl.load(bias + column, mask=in_row, other=0.0).to(SUM)[None, :]
    sums = tl.zeros([R, BLOCK], SUM)
    for i in range(iterations):
        row = (program * iterations + i) * R + tl.arange(0, R)
        mask = (row < M)[:, None] & in_row[None, :]
        at = row[:, None] * F + column[None, :]
        z = tl.load(x + at, mask=mask, other=0.0).to(SUM) + bias_row
        dy = tl.load(grad_y + at, mask=mask, other=0.0).to(SUM)
        cumulative = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327
        dx = dy * (cumulative + z * density)
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=mask)
        sums += dx
    tl.store(column_sums + program * F + column, tl.sum(sums, 0), mask=in_row)


def forward(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias)."""
    x = x.contiguous()
    y = torch.empty_like(x)
    features = x.shape[-1]
    rows = x.numel() // features
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(features, COLUMNS))  # the second axis ends at 65,535
    launch(
        gelu_forward, grid, x, bias.contiguous(), y, rows, F=features, R=ROWS, BLOCK=COLUMNS, SUM=_sum_type(x),
        num_warps=4,
    )  # fmt: skip
    return y


def backward(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias."""
    x, grad_y = x.contiguous(), grad_y.contiguous()
    grad_x = torch.empty_like(x)
    features = x.shape[-1]
    rows = x.numel() // features
    blocks = triton.cdiv(features, COLUMNS)
    programs = min(max(1, PROGRAMS_PER_SM * multiprocessors_of(x) // blocks), triton.cdiv(rows, ROWS))
    iterations = triton.cdiv(rows, programs * ROWS)
    column_sums = x.new_empty(programs, features, dtype=torch.promote_types(x.dtype, torch.float32))
    launch(
        gelu_backward, (blocks, programs), grad_y, x, bias.contiguous(), grad_x, column_sums, rows, iterations,
        F=features, R=ROWS, BLOCK=COLUMNS, SUM=_sum_type(x), num_warps=4,
    )  # fmt: skip
    return grad_x, column_sums.sum(0)


def _sum_type(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
