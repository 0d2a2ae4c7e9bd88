"""The forward kernels; formulas, shapes and bytes: `triton.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_rows import load_rows, store_rows


@triton.jit
def forward_short(
    qkv,  # [B, N, 3, H, D]
    out,  # [B, N, H, D]
    lse,  # [B, H, N]
    score_scale,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    CHUNKS: tl.constexpr,
    OFFSETS: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (tiles of queries * B * H,), a head's tiles together, since they share k and v in L2.

    All scores of a row are in registers: one maximum, no rescaling.
    """
    first = tl.program_id(0) % tl.cdiv(N, M) * M
    head = tl.program_id(0) // tl.cdiv(N, M)
    b = (head // H).to(tl.int64)
    stride_out: tl.constexpr = H * D
    stride: tl.constexpr = 3 * H * D
    q_base = qkv + b * N * stride + (head % H) * D
    k_base = q_base + stride_out
    v_base = k_base + stride_out
    q_MD = load_rows(q_base, first, N, stride, D, M, True)
    scores = ()
    top_M = tl.full([M], float("-inf"), SUM)
    for i in tl.static_range(len(CHUNKS)):
        k_CD = load_rows(k_base, OFFSETS[i], N, stride, D, CHUNKS[i], i == len(CHUNKS) - 1)
        s_MC = tl.dot(q_MD, k_CD.T, input_precision=PRECISION)
        if i == len(CHUNKS) - 1:
            s_MC = tl.where((OFFSETS[i] + tl.arange(0, CHUNKS[i]) < N)[None, :], s_MC, float("-inf"))
        top_M = tl.maximum(top_M, tl.max(s_MC, 1))
        scores = scores + (s_MC,)
    top_M = top_M * score_scale
    sum_M = tl.zeros([M], SUM)
    out_MD = tl.zeros([M, D], SUM)
    for i in tl.static_range(len(CHUNKS)):
        v_CD = load_rows(v_base, OFFSETS[i], N, stride, D, CHUNKS[i], i == len(CHUNKS) - 1)
        p_MC = tl.exp2(scores[i] * score_scale - top_M[:, None])
        sum_M += tl.sum(p_MC, 1)
        out_MD = tl.dot(p_MC.to(v_CD.dtype), v_CD, out_MD, input_precision=PRECISION)
    store_rows(out + b * N * stride_out + (head % H) * D, out_MD / sum_M[:, None], first, N, stride_out, D, M, True)
    row = first + tl.arange(0, M)
    tl.store(lse + head.to(tl.int64) * N + row, top_M + tl.log2(sum_M), mask=row < N)


@triton.jit
def online_chunk(
    q_MD, top_M, sum_M, out_MD, k_base, v_base, first, score_scale, N: tl.constexpr, stride: tl.constexpr,
    D: tl.constexpr, C: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds a chunk of keys to the sums of a tile of queries; sums so far are rescaled to the new maximum."""
    k_CD = load_rows(k_base, first, N, stride, D, C, MASKED)
    s_MC = tl.dot(q_MD, k_CD.T, input_precision=PRECISION)
    if MASKED:
        s_MC = tl.where((first + tl.arange(0, C) < N)[None, :], s_MC, float("-inf"))
    new_top_M = tl.maximum(top_M, tl.max(s_MC, 1) * score_scale)
    p_MC = tl.exp2(s_MC * score_scale - new_top_M[:, None])
    decay_M = tl.exp2(top_M - new_top_M)
    v_CD = load_rows(v_base, first, N, stride, D, C, MASKED)
    out_MD = tl.dot(p_MC.to(v_CD.dtype), v_CD, out_MD * decay_M[:, None], input_precision=PRECISION)
    return new_top_M, sum_M * decay_M + tl.sum(p_MC, 1), out_MD


@triton.jit
def forward_long(
    qkv,  # [B, N, 3, H, D]
    out,  # [B, N, H, D]
    lse,  # [B, H, N]
    score_scale,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    TAIL: tl.constexpr,
    TAIL_OFFSETS: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (tiles of queries * B * H,), a head's tiles together, since they share k and v in L2.

    Whole chunks of C keys in a loop without masks, then the tail's chunks.
    """
    first = tl.program_id(0) % tl.cdiv(N, M) * M
    head = tl.program_id(0) // tl.cdiv(N, M)
    b = (head // H).to(tl.int64)
    stride_out: tl.constexpr = H * D
    stride: tl.constexpr = 3 * H * D
    q_base = qkv + b * N * stride + (head % H) * D
    k_base = q_base + stride_out
    v_base = k_base + stride_out
    q_MD = load_rows(q_base, first, N, stride, D, M, True)
    top_M = tl.full([M], float("-inf"), SUM)
    sum_M = tl.zeros([M], SUM)
    out_MD = tl.zeros([M, D], SUM)
    whole: tl.constexpr = N // C * C
    for key in range(0, whole, C):
        top_M, sum_M, out_MD = online_chunk(
            q_MD, top_M, sum_M, out_MD, k_base, v_base, key, score_scale, N, stride, D, C, False, PRECISION
        )
    for i in tl.static_range(len(TAIL)):
        top_M, sum_M, out_MD = online_chunk(
            q_MD, top_M, sum_M, out_MD, k_base, v_base, whole + TAIL_OFFSETS[i], score_scale, N, stride,
            D, TAIL[i], i == len(TAIL) - 1, PRECISION,
        )  # fmt: skip
    store_rows(out + b * N * stride_out + (head % H) * D, out_MD / sum_M[:, None], first, N, stride_out, D, M, True)
    row = first + tl.arange(0, M)
    tl.store(lse + head.to(tl.int64) * N + row, top_M + tl.log2(sum_M), mask=row < N)
