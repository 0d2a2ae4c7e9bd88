"""Residual add, LayerScale, drop-path and LayerNorm in one pass each way; formulas: `reference.py`.

Bytes, with u = one bf16 pass over [B, N, C], residual in fp32 and branch in bf16: forward 2u + u in, 2u + u out (6u);
backward u (dy) + 2u (dx') + 2u (x') in, 2u + u out (8u), and u more for the branch where LayerScale wants its gradient.
A sample that drop-path skips by subset costs neither branch nor its gradient.

The backward takes the gradients of weight, shift, bias and LayerScale along: each program walks over its share of the
rows with four column sums in registers and writes them once; a second launch adds the programs' sums. No atomics.

Shapes: M = B * N rows, C embedding, C_POW2 the next power of two, R rows at a time, S programs of the backward.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deit_fast.kernels.launch import launch, multiprocessors_of

ROWS_FORWARD = 2
ROWS_BACKWARD = 2
PROGRAMS_PER_SM = 4


@triton.jit
def branch_rows(row, valid, slot, N: tl.constexpr, SUBSET: tl.constexpr):
    """The rows of the branch that belong to rows of x, and which of them there are."""
    if SUBSET:
        at = tl.load(slot + row // N, mask=valid, other=-1).to(tl.int64)
        row = at * N + row % N
        valid = valid & (at >= 0)
    return row, valid


@triton.jit
def add_norm_forward(
    x,  # [M, C]
    branch,  # [K * N, C]
    bias,  # [C]
    gamma,  # [C]
    drop_path,  # [B]
    slot,  # [B]
    weight,  # [C]
    shift,  # [C]
    total,  # [M, C]
    y,  # [M, C]
    mean,  # [M]
    rstd,  # [M]
    M,
    eps,
    N: tl.constexpr,
    C: tl.constexpr,
    C_POW2: tl.constexpr,
    R: tl.constexpr,
    BIAS: tl.constexpr,
    GAMMA: tl.constexpr,
    DROP_PATH: tl.constexpr,
    SUBSET: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (cdiv(M, R),)."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, C_POW2)
    in_row = column < C
    valid = row < M
    mask = valid[:, None] & in_row[None, :]
    at = row[:, None] * C + column[None, :]
    from_row, has_branch = branch_rows(row, valid, slot, N, SUBSET)
    added = tl.load(
        branch + from_row[:, None] * C + column[None, :], mask=has_branch[:, None] & in_row[None, :], other=0.0
    ).to(SUM)
    if BIAS:
        added += tl.load(bias + column, mask=in_row, other=0.0).to(SUM)[None, :]
    if GAMMA:
        added *= tl.load(gamma + column, mask=in_row, other=0.0).to(SUM)[None, :]
    if DROP_PATH:
        added *= tl.load(drop_path + row // N, mask=valid, other=0.0).to(SUM)[:, None]
    if SUBSET:
        added = tl.where(has_branch[:, None], added, 0.0)
    sum_x = (tl.load(x + at, mask=mask, other=0.0).to(SUM) + added).to(total.dtype.element_ty)
    tl.store(total + at, sum_x, mask=mask)
    sum_x = sum_x.to(SUM)  # rounded as it is stored, so that the backward sees what was normalised
    mean_R = tl.sum(sum_x, 1) / C
    centred = tl.where(mask, sum_x - mean_R[:, None], 0.0)
    rstd_R = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    scale_C = tl.load(weight + column, mask=in_row, other=0.0).to(SUM)
    shift_C = tl.load(shift + column, mask=in_row, other=0.0).to(SUM)
    out = centred * rstd_R[:, None] * scale_C[None, :] + shift_C[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=mask)
    tl.store(mean + row, mean_R, mask=valid)
    tl.store(rstd + row, rstd_R, mask=valid)


@triton.jit
def add_norm_backward(
    grad_total,  # [M, C]
    grad_y,  # [M, C]
    total,  # [M, C]
    mean,  # [M]
    rstd,  # [M]
    branch,  # [K * N, C]
    weight,  # [C]
    bias,  # [C]
    gamma,  # [C]
    drop_path,  # [B]
    slot,  # [B]
    grad_x,  # [M, C]
    grad_branch,  # [K * N, C]
    column_sums,  # [4, S, C]: of weight, shift, bias, gamma
    M,
    iterations,
    N: tl.constexpr,
    C: tl.constexpr,
    C_POW2: tl.constexpr,
    R: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    GAMMA: tl.constexpr,
    DROP_PATH: tl.constexpr,
    SUBSET: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (S,): a program takes `iterations` times R rows, one run after the other's."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, C_POW2)
    in_row = column < C
    scale_C = tl.load(weight + column, mask=in_row, other=0.0).to(SUM)
    sum_weight = tl.zeros([C_POW2], SUM)
    sum_shift = tl.zeros([C_POW2], SUM)
    sum_bias = tl.zeros([C_POW2], SUM)
    sum_gamma = tl.zeros([C_POW2], SUM)
    for i in range(iterations):
        row = (program * iterations + i) * R + tl.arange(0, R)
        valid = row < M
        mask = valid[:, None] & in_row[None, :]
        at = row[:, None] * C + column[None, :]
        dy = tl.load(grad_y + at, mask=mask, other=0.0).to(SUM)
        mean_R = tl.load(mean + row, mask=valid, other=0.0)
        rstd_R = tl.load(rstd + row, mask=valid, other=0.0)
        normed = (tl.load(total + at, mask=mask, other=0.0).to(SUM) - mean_R[:, None]) * rstd_R[:, None]
        normed = tl.where(mask, normed, 0.0)
        sum_weight += tl.sum(dy * normed, 0)
        sum_shift += tl.sum(dy, 0)
        dnormed = dy * scale_C[None, :]
        along = tl.sum(dnormed * normed, 1) / C
        dx = (dnormed - (tl.sum(dnormed, 1) / C)[:, None] - normed * along[:, None]) * rstd_R[:, None]
        if RESIDUAL:
            dx += tl.load(grad_total + at, mask=mask, other=0.0).to(SUM)
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=mask)
        to_row, has_branch = branch_rows(row, valid, slot, N, SUBSET)
        branch_mask = has_branch[:, None] & in_row[None, :]
        branch_at = to_row[:, None] * C + column[None, :]
        if DROP_PATH:
            dx *= tl.load(drop_path + row // N, mask=valid, other=0.0).to(SUM)[:, None]
        dx = tl.where(branch_mask, dx, 0.0)
        if GAMMA:
            branch_value = tl.load(branch + branch_at, mask=branch_mask, other=0.0).to(SUM)
            if BIAS:
                branch_value += tl.load(bias + column, mask=in_row, other=0.0).to(SUM)[None, :]
            sum_gamma += tl.sum(dx * branch_value, 0)
            dx *= tl.load(gamma + column, mask=in_row, other=0.0).to(SUM)[None, :]
        if BIAS:
            sum_bias += tl.sum(dx, 0)
        tl.store(grad_branch + branch_at, dx.to(grad_branch.dtype.element_ty), mask=branch_mask)
    sums_at = column_sums + program * C + column
    plane = tl.num_programs(0) * C
    tl.store(sums_at, sum_weight, mask=in_row)
    tl.store(sums_at + plane, sum_shift, mask=in_row)
    tl.store(sums_at + 2 * plane, sum_bias, mask=in_row)
    tl.store(sums_at + 3 * plane, sum_gamma, mask=in_row)


def forward(
    x: Tensor, branch: Tensor, weight: Tensor, shift: Tensor, bias: Tensor | None, gamma: Tensor | None,
    drop_path: Tensor | None, slot: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x', y, mean and 1 / standard deviation of the rows."""
    B, N, C = x.shape
    x, branch = x.contiguous(), branch.contiguous()
    total = torch.empty_like(x)
    y = x.new_empty(B, N, C, dtype=branch.dtype)
    sums = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = x.new_empty(B, N, dtype=sums), x.new_empty(B, N, dtype=sums)
    launch(
        add_norm_forward, (triton.cdiv(B * N, ROWS_FORWARD),), x, branch, *_or(weight, bias, gamma, drop_path, slot),
        weight, shift, total, y, mean, rstd, B * N, eps, N=N, C=C, C_POW2=triton.next_power_of_2(C), R=ROWS_FORWARD,
        **_flags(bias, gamma, drop_path, slot, sums), num_warps=4,
    )  # fmt: skip
    return total, y, mean, rstd


def backward(
    grad_total: Tensor | None, grad_y: Tensor, total: Tensor, mean: Tensor, rstd: Tensor, branch: Tensor | None,
    weight: Tensor, bias: Tensor | None, gamma: Tensor | None, drop_path: Tensor | None, slot: Tensor | None,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x and of the branch's `kept` samples, and [4, C] of weight, shift, bias and gamma."""
    B, N, C = total.shape
    rows = B * N
    grad_y = grad_y.contiguous()
    grad_x, grad_branch = torch.empty_like(total), grad_y.new_empty(kept, N, C)
    programs = min(PROGRAMS_PER_SM * multiprocessors_of(total), triton.cdiv(rows, ROWS_BACKWARD))
    iterations = triton.cdiv(rows, programs * ROWS_BACKWARD)
    column_sums = mean.new_empty(4, programs, C)
    launch(
        add_norm_backward, (programs,), grad_y if grad_total is None else grad_total.contiguous(), grad_y, total,
        mean, rstd, *_or(grad_y, branch), weight, *_or(weight, bias, gamma, drop_path, slot), grad_x, grad_branch,
        column_sums, rows, iterations, N=N, C=C, C_POW2=triton.next_power_of_2(C), R=ROWS_BACKWARD,
        RESIDUAL=grad_total is not None, **_flags(bias, gamma, drop_path, slot, mean.dtype), num_warps=4,
    )  # fmt: skip
    return grad_x, grad_branch, column_sums.sum(1)


def _or(stand_in: Tensor, *optional: Tensor | None) -> list[Tensor]:
    """An absent tensor's place is taken by another that the kernel does not read."""
    return [stand_in if tensor is None else tensor.contiguous() for tensor in optional]


def _flags(
    bias: Tensor | None, gamma: Tensor | None, drop_path: Tensor | None, slot: Tensor | None, sums: torch.dtype
) -> dict[str, Any]:
    return {
        "BIAS": bias is not None,
        "GAMMA": gamma is not None,
        "DROP_PATH": drop_path is not None,
        "SUBSET": slot is not None,
        "SUM": tl.float64 if sums == torch.float64 else tl.float32,
    }
