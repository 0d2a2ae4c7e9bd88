"""The backward kernels; formulas, shapes and bytes: `triton.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_rows import load_rows, store_rows


@triton.jit
def load_queries(q_base, out_base, grad_base, lse_base, first, N: tl.constexpr, stride: tl.constexpr,
                 stride_out: tl.constexpr, D: tl.constexpr, M: tl.constexpr, SUM: tl.constexpr):  # fmt: skip
    """q, dout, lse and delta of a tile. Rows from N on: all 0, so p = 1 but dout = delta = 0, and nothing is added."""
    row = first + tl.arange(0, M)
    q_MD = load_rows(q_base, first, N, stride, D, M, True)
    grad_MD = load_rows(grad_base, first, N, stride_out, D, M, True)
    out_MD = load_rows(out_base, first, N, stride_out, D, M, True)
    lse_M = tl.load(lse_base + row, mask=row < N, other=0.0)
    return q_MD, grad_MD, lse_M, tl.sum(out_MD.to(SUM) * grad_MD.to(SUM), 1)


@triton.jit
def backward_short(
    qkv,  # [B, N, 3, H, D]
    out,  # [B, N, H, D]
    grad_out,  # [B, N, H, D]
    lse,  # [B, H, N]
    grad_qkv,  # [B, N, 3, H, D]
    score_scale,
    scale,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    CHUNKS: tl.constexpr,
    OFFSETS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (B * H,). k, v, dk, dv stay on the multiprocessor; read for each tile of queries, k and v would cross L2 7
    to 13 times."""
    head = tl.program_id(0)
    b = (head // H).to(tl.int64)
    stride_out: tl.constexpr = H * D
    stride: tl.constexpr = 3 * H * D
    in_head = (head % H) * D
    q_base = qkv + b * N * stride + in_head
    k_base = q_base + stride_out
    v_base = k_base + stride_out
    out_base = out + b * N * stride_out + in_head
    grad_base = grad_out + b * N * stride_out + in_head
    lse_base = lse + head.to(tl.int64) * N
    dq_base = grad_qkv + b * N * stride + in_head
    keys = ()
    values = ()
    dk = ()
    dv = ()
    for i in tl.static_range(len(CHUNKS)):
        keys = keys + (load_rows(k_base, OFFSETS[i], N, stride, D, CHUNKS[i], i == len(CHUNKS) - 1),)
        values = values + (load_rows(v_base, OFFSETS[i], N, stride, D, CHUNKS[i], i == len(CHUNKS) - 1),)
        dk = dk + (tl.zeros([CHUNKS[i], D], SUM),)
        dv = dv + (tl.zeros([CHUNKS[i], D], SUM),)
    for first in tl.range(0, N, M, num_stages=STAGES):
        q_MD, grad_MD, lse_M, delta_M = load_queries(
            q_base, out_base, grad_base, lse_base, first, N, stride, stride_out, D, M, SUM
        )
        dq_MD = tl.zeros([M, D], SUM)
        new_dk = ()
        new_dv = ()
        for i in tl.static_range(len(CHUNKS)):
            k_CD = keys[i]
            v_CD = values[i]
            # Queries by keys, not keys by queries: Triton deals warps out along the longer side of a product that is
            # followed by another, and 64 or 16 keys are too few rows for 8 warps (1.66 times the ideal, not 1.21).
            p_MC = tl.exp2(tl.dot(q_MD, k_CD.T, input_precision=PRECISION) * score_scale - lse_M[:, None])
            # Keys from N on are 0, so p = 2^-lse, which may overflow: times their k it would be NaN in dq.
            if i == len(CHUNKS) - 1:
                p_MC = tl.where((OFFSETS[i] + tl.arange(0, CHUNKS[i]) < N)[None, :], p_MC, 0.0)
            new_dv = new_dv + (tl.dot(p_MC.to(grad_MD.dtype).T, grad_MD, dv[i], input_precision=PRECISION),)
            dp_MC = tl.dot(grad_MD, v_CD.T, input_precision=PRECISION)
            ds_MC = (p_MC * (dp_MC - delta_M[:, None])).to(q_MD.dtype)
            new_dk = new_dk + (tl.dot(ds_MC.T, q_MD, dk[i], input_precision=PRECISION),)
            dq_MD = tl.dot(ds_MC, k_CD, dq_MD, input_precision=PRECISION)
        dk = new_dk
        dv = new_dv
        store_rows(dq_base, dq_MD * scale, first, N, stride, D, M, True)
    for i in tl.static_range(len(CHUNKS)):
        store_rows(dq_base + stride_out, dk[i] * scale, OFFSETS[i], N, stride, D, CHUNKS[i], i == len(CHUNKS) - 1)
        store_rows(dq_base + 2 * stride_out, dv[i], OFFSETS[i], N, stride, D, CHUNKS[i], i == len(CHUNKS) - 1)


@triton.jit
def backward_long(
    qkv,  # [B, N, 3, H, D]
    out,  # [B, N, H, D]
    grad_out,  # [B, N, H, D]
    lse,  # [B, H, N]
    grad_qkv,  # [B, N, 3, H, D]
    score_scale,
    scale,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (2 * cdiv(N, C) * B * H,): of a head's programs the first half own C keys each, the others C queries."""
    tiles: tl.constexpr = tl.cdiv(N, C)
    tile = tl.program_id(0) % (2 * tiles)
    head = tl.program_id(0) // (2 * tiles)
    b = (head // H).to(tl.int64)
    stride_out: tl.constexpr = H * D
    stride: tl.constexpr = 3 * H * D
    in_head = (head % H) * D
    q_base = qkv + b * N * stride + in_head
    k_base = q_base + stride_out
    v_base = k_base + stride_out
    out_base = out + b * N * stride_out + in_head
    grad_base = grad_out + b * N * stride_out + in_head
    lse_base = lse + head.to(tl.int64) * N
    dq_base = grad_qkv + b * N * stride + in_head
    if tile < tiles:
        key = tile * C
        k_CD = load_rows(k_base, key, N, stride, D, C, True)
        v_CD = load_rows(v_base, key, N, stride, D, C, True)
        dk_CD = tl.zeros([C, D], SUM)
        dv_CD = tl.zeros([C, D], SUM)
        for first in tl.range(0, N, M, num_stages=STAGES):
            q_MD, grad_MD, lse_M, delta_M = load_queries(
                q_base, out_base, grad_base, lse_base, first, N, stride, stride_out, D, M, SUM
            )
            p_CM = tl.exp2(tl.dot(k_CD, q_MD.T, input_precision=PRECISION) * score_scale - lse_M[None, :])
            dv_CD = tl.dot(p_CM.to(grad_MD.dtype), grad_MD, dv_CD, input_precision=PRECISION)
            dp_CM = tl.dot(v_CD, grad_MD.T, input_precision=PRECISION)
            ds_CM = (p_CM * (dp_CM - delta_M[None, :])).to(q_MD.dtype)
            dk_CD = tl.dot(ds_CM, q_MD, dk_CD, input_precision=PRECISION)
        store_rows(dq_base + stride_out, dk_CD * scale, key, N, stride, D, C, True)
        store_rows(dq_base + 2 * stride_out, dv_CD, key, N, stride, D, C, True)
    else:
        first = (tile - tiles) * C
        q_CD, grad_CD, lse_C, delta_C = load_queries(
            q_base, out_base, grad_base, lse_base, first, N, stride, stride_out, D, C, SUM
        )
        dq_CD = tl.zeros([C, D], SUM)
        for key in tl.range(0, N, M, num_stages=STAGES):
            k_MD = load_rows(k_base, key, N, stride, D, M, True)
            v_MD = load_rows(v_base, key, N, stride, D, M, True)
            p_CM = tl.exp2(tl.dot(q_CD, k_MD.T, input_precision=PRECISION) * score_scale - lse_C[:, None])
            p_CM = tl.where((key + tl.arange(0, M) < N)[None, :], p_CM, 0.0)
            ds_CM = p_CM * (tl.dot(grad_CD, v_MD.T, input_precision=PRECISION) - delta_C[:, None])
            dq_CD = tl.dot(ds_CM.to(k_MD.dtype), k_MD, dq_CD, input_precision=PRECISION)
        store_rows(dq_base, dq_CD * scale, first, N, stride, D, C, True)
