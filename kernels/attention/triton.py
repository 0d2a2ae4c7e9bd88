"""Self-attention on packed qkv, for the short rows of a ViT: forward and backward in Triton.

    P = softmax(q k^T / sqrt(D));  out = P v
    dv = P^T dout;  dP = dout v^T;  delta = rowsum(dout * out);  dS = P (dP - delta)
    dq = dS k / sqrt(D);  dk = dS^T q / sqrt(D)

Vaswani et al. 2017; the backward that keeps only a row's log-sum-exp: Dao et al. 2022 (FlashAttention), appendix B.

qkv is read as the linear wrote it and the output written as the next one reads it: nothing is transposed or copied.
Bytes, with u = one pass over [B, N, H*D]: forward 3u + 1u, backward 5u (qkv, out, dout) + 3u; the log-sum-exp adds 4
bytes a row and head. There is no mask but the end of the rows, no atomics, and so the same bits on every run.

Up to 256 tokens ("short") a program has a whole row of scores in registers, and the backward is one program a head
that walks over the queries while k, v, dk and dv of all keys stay on the multiprocessor (up to 224 where that has
little shared memory). Above ("long"), the forward rescales its sums as it goes over the keys (online softmax), and the
backward is one launch of two kinds of programs: a tile of keys (dk, dv), or a tile of queries (dq), at 7 matrix
products a pair of tiles where 5 are the minimum: why is counted in docs/kernels.md.

`arange` takes powers of two only, so rows are cut into chunks, 128 + 64 + 16 for 198 (the last one masked): padded work
at N = 198 is 1.36 times N^2 forward and 1.10 times backward (1.19 on sm_100).

Shapes: B batch, N tokens, H heads, D head dimension; M rows of a tile of queries, C keys of a chunk.
Scores are in base 2: log2(e) is folded into the scale, and lse = log2(sum(2^score)).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deit_fast.kernels.launch import architecture_of, launch

from .triton_backward import backward_long, backward_short
from .triton_forward import forward_long, forward_short

SHORT_TOKENS = 256
SMALL_SHARED_TOKENS = 224
"""Of the short backward, which keeps all keys, with 99 KiB of shared memory for a program instead of 163 or 227."""
SMALL_SHARED_ARCHITECTURES = (86, 89, 120, 121)
"""RTX 30, 40, 50, A10, L4, L40S, DGX Spark (CUDA C++ programming guide, table of compute capabilities)."""
LOG2E = math.log2(math.e)


class Tiles(NamedTuple):
    """Rows of a tile, warps of a program, stages of its loop."""

    rows: int
    warps: int
    stages: int


def chunks_of(rows: int, largest: int = 128) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Powers of two, largest first, that cover `rows` rounded up to 16, and where each begins."""
    left = -(-rows // 16) * 16
    chunks: list[int] = []
    while left:
        chunks.append(min(largest, 1 << (left.bit_length() - 1)))
        left -= chunks[-1]
    return tuple(chunks), tuple(sum(chunks[:i]) for i in range(len(chunks)))


def forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """out [B, N, H*D] and lse fp32 [B, H, N] (base 2)."""
    B, N, _, H, D = qkv.shape
    qkv = qkv.contiguous()
    out = qkv.new_empty(B, N, H * D)
    lse = qkv.new_empty(B, H, N, dtype=sum_dtype(qkv))
    shape = {"N": N, "H": H, "D": D, **_precision(qkv)}
    if _is_short(qkv):
        tiles = FORWARD_SHORT
        chunks, offsets = chunks_of(N)
        constants = {**shape, "M": tiles.rows, "CHUNKS": chunks, "OFFSETS": offsets}
        kernel: Any = forward_short
    else:
        tiles, keys = _forward_long_tiles(qkv)
        tail, offsets = chunks_of(N % keys, keys)
        constants = {**shape, "M": tiles.rows, "C": keys, "TAIL": tail, "TAIL_OFFSETS": offsets}
        kernel = forward_long
    grid = (triton.cdiv(N, tiles.rows) * B * H,)  # one axis, since the others end at 65,535
    launch(kernel, grid, qkv, out, lse, LOG2E * D**-0.5, num_warps=tiles.warps, num_stages=tiles.stages, **constants)
    return out, lse


def backward(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor) -> Tensor:
    """grad_qkv, shaped as qkv."""
    B, N, _, H, D = qkv.shape
    qkv, grad_out = qkv.contiguous(), grad_out.contiguous()
    grad_qkv = torch.empty_like(qkv)
    constants = {"N": N, "H": H, "D": D, **_precision(qkv)}
    if _is_short(qkv, _short_backward_tokens(qkv)):
        tiles = _backward_short_tiles(qkv)
        chunks, offsets = chunks_of(N)
        constants |= {"M": tiles.rows, "CHUNKS": chunks, "OFFSETS": offsets, "STAGES": tiles.stages}
        kernel: Any = backward_short
        grid: tuple[int, ...] = (B * H,)
    else:
        tiles, keys = _backward_long_tiles(qkv)
        constants |= {"M": tiles.rows, "C": keys, "STAGES": tiles.stages}
        kernel = backward_long
        grid = (2 * triton.cdiv(N, keys) * B * H,)
    scale = D**-0.5
    launch(
        kernel, grid, qkv, out, grad_out, lse, grad_qkv, LOG2E * scale, scale,
        num_warps=tiles.warps, num_stages=tiles.stages, **constants,
    )  # fmt: skip
    return grad_qkv


def sum_dtype(qkv: Tensor) -> torch.dtype:
    """fp32; fp64 for fp64, which only the interpreter gets."""
    return torch.promote_types(qkv.dtype, torch.float32)


def _precision(qkv: Tensor) -> dict[str, Any]:
    """fp32 products stay fp32 (ieee), as torch's do by default; 16-bit products add up in fp32 in any case."""
    return {"PRECISION": "ieee", "SUM": tl.float64 if qkv.dtype == torch.float64 else tl.float32}


def _is_short(qkv: Tensor, tokens: int = SHORT_TOKENS) -> bool:
    """fp32 goes the long way at any length: a row of fp32 scores and the operands of exact products do not fit."""
    return qkv.shape[1] <= tokens and qkv.dtype != torch.float32


def _short_backward_tokens(qkv: Tensor) -> int:
    """Rows up to here fit beside one another in shared memory."""
    return SMALL_SHARED_TOKENS if architecture_of(qkv) in SMALL_SHARED_ARCHITECTURES else SHORT_TOKENS


# Tiles were chosen by registers, spills and traffic of the compiled kernels, not by time: kernels/budget.yaml has them.
FORWARD_SHORT = Tiles(64, 4, 1)


def _forward_long_tiles(qkv: Tensor) -> tuple[Tiles, int]:
    """Tiles, and keys of a chunk."""
    return (Tiles(32, 4, 1), 32) if qkv.dtype == torch.float32 else (Tiles(64, 4, 2), 64)


def _backward_short_tiles(qkv: Tensor) -> Tiles:
    """32 rows of queries spill 8 to 29 instructions but on sm_100, where they take a fifth less of all instructions."""
    return Tiles(32 if architecture_of(qkv) == 100 else 16, 8, 2)


def _backward_long_tiles(qkv: Tensor) -> tuple[Tiles, int]:
    """Tiles, and keys of a program."""
    return (Tiles(16, 4, 1), 32) if qkv.dtype == torch.float32 else (Tiles(32, 4, 2), 64)
