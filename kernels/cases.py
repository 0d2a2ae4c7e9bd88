"""The launches of a DeiT-B training step, batch 256, for checks without a GPU, and what each costs at least.

Bytes are what has to cross HBM once, operations those of matrix products at the real length of the rows.
Letters: B batch, N tokens, C embedding, H heads, D head dimension, K classes, F features; u = one bf16 pass over B*N*C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .launch import Launch, recording

B, C, H, D, K = 256, 768, 12, 64, 1000
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Case:
    """One launch. `trips`: how often each loop of a program runs, in order; of `branches` a program takes one.

    (Of the programs of two partners in batch_prep one does nothing.)
    """

    name: str
    run: Callable[[], Any]
    bytes: int
    bytes_formula: str
    flops: int = 0
    flops_formula: str = "-"
    trips: Callable[[Launch], tuple[int, ...]] = lambda _launch: ()
    branches: int = 1

    def launch(self, architecture: int) -> Launch:
        """As the launcher would do it on that architecture."""
        with recording(architecture) as launches:
            self.run()
        assert len(launches) == 1, f"{self.name}: one launch expected, {len(launches)} noted"
        return launches[0]


def all_cases() -> list[Case]:
    """Every kernel, in the sizes and types that training uses; fp32 attention once."""
    return [
        *_attention(198, BF16), *_attention(198, FP16), *_attention(578, BF16), *_attention(1026, BF16),
        *_attention(198, FP32), *_distill_loss(), *_batch_prep(), *_add_norm(), *_gelu_bias(),
    ]  # fmt: skip


def _iterations(launch: Launch) -> tuple[int, ...]:
    """Of a program that walks down the rows: its last argument."""
    return (launch.arguments[-1],)


def _empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(N: int, dtype: torch.dtype) -> list[Case]:
    from .attention import triton as attention

    qkv, out, lse = _empty(B, N, 3, H, D, dtype=dtype), _empty(B, N, C, dtype=dtype), _empty(B, H, N, dtype=FP32)
    one_pass = B * N * C * dtype.itemsize
    products = B * H * N * N * D
    suffix = f"/{N}/{ {BF16: 'bf16', FP16: 'fp16', FP32: 'fp32'}[dtype] }"
    short = N <= attention.SHORT_TOKENS and dtype != FP32

    def over_keys(launch: Launch) -> tuple[int, ...]:
        return () if short else (N // launch.constants["C"],)

    def over_queries(launch: Launch) -> tuple[int, ...]:
        tiles = math.ceil(N / launch.constants["M"])
        return (tiles,) if short else (tiles, tiles)

    return [
        Case(
            "attention_forward" + suffix, lambda: attention.forward(qkv), 4 * one_pass, "4u", 4 * products,
            "4 B H N^2 D", over_keys,
        ),
        Case(
            "attention_backward" + suffix, lambda: attention.backward(qkv, out, lse, out), 8 * one_pass, "8u",
            10 * products, "10 B H N^2 D", over_queries, 1 if short else 2,
        ),
    ]  # fmt: skip


def _distill_loss() -> list[Case]:
    from .distill_loss import LossTerms
    from .distill_loss import triton as loss

    logits, grad, labels = _empty(B, K), _empty(B, K, dtype=FP32), _empty(B, dtype=torch.int64)
    lam = _empty(B, dtype=FP32)

    def value(terms: LossTerms) -> Callable[[], Any]:
        return lambda: loss.forward(logits, labels, labels, lam, terms, logits, logits)

    hard, soft = LossTerms("hard", smoothing=0.1), LossTerms("soft", smoothing=0.1, temperature=3.0)
    return [
        Case("distill_loss_forward/hard", value(hard), 14 * B * K, "(3 x 2 + 2 x 4) B K"),
        Case("distill_loss_forward/soft", value(soft), 14 * B * K, "(3 x 2 + 2 x 4) B K"),
        Case(
            "distill_loss_backward", lambda: loss.backward(grad, grad, _empty(dtype=FP32), BF16), 12 * B * K,
            "(2 x 4 + 2 x 2) B K",
        ),
    ]  # fmt: skip


def _batch_prep() -> list[Case]:
    from .batch_prep import triton as prep

    partner, lam, box = _empty(B, dtype=torch.int64), _empty(B, dtype=FP32), _empty(B, 4, dtype=torch.int32)
    scale = _empty(3, dtype=FP32)
    values = B * 224 * 224 * 3

    def both(source: torch.dtype, factor: Tensor | None) -> Callable[[], Any]:
        images = _empty(B, 224, 224, 3, dtype=source).permute(0, 3, 1, 2)
        return lambda: prep.prepare(images, partner, lam, box, factor, factor, BF16, True, 16)

    return [
        Case("batch_prep/uint8", both(torch.uint8, scale), 5 * values, "(1 + 2 + 2) B 224^2 3", branches=2),
        Case("batch_prep/bf16", both(BF16, None), 6 * values, "(2 + 2 + 2) B 224^2 3", branches=2),
    ]


def _add_norm() -> list[Case]:
    from .add_norm import triton as norm

    N = 198
    x, branch, column = _empty(B, N, C, dtype=FP32), _empty(B, N, C), _empty(C, dtype=FP32)
    row, drop_path, slot = _empty(B, N, dtype=FP32), _empty(B, dtype=FP32), _empty(B, dtype=torch.int32)
    u = 2 * B * N * C

    def forward(gamma: Tensor | None, slot: Tensor | None) -> Callable[[], Any]:
        return lambda: norm.forward(x, branch, column, column, column, gamma, drop_path, slot, 1e-6)

    def backward(gamma: Tensor | None, slot: Tensor | None) -> Callable[[], Any]:
        read = None if gamma is None else branch
        return lambda: norm.backward(x, branch, x, row, row, read, column, column, gamma, drop_path, slot, B)

    return [
        Case("add_norm_forward", forward(None, None), 6 * u, "6u"),
        Case("add_norm_backward", backward(None, None), 8 * u, "8u", trips=_iterations),
        Case("add_norm_forward/layer_scale_subset", forward(column, slot), 6 * u, "6u (all samples kept)"),
        Case(
            "add_norm_backward/layer_scale_subset", backward(column, slot), 9 * u, "9u (all samples kept)",
            trips=_iterations,
        ),
    ]  # fmt: skip


def _gelu_bias() -> list[Case]:
    from .gelu_bias import triton as gelu

    x, bias = _empty(B * 198, 4 * C), _empty(4 * C, dtype=FP32)
    one_pass = 2 * B * 198 * 4 * C
    return [
        Case("gelu_bias_forward", lambda: gelu.forward(x, bias), 2 * one_pass, "8u"),
        Case("gelu_bias_backward", lambda: gelu.backward(x, x, bias), 3 * one_pass, "12u", trips=_iterations),
    ]
