"""What is timed for each kernel: the same forward and backward by each implementation, on the same inputs.

Letters: B batch, N tokens, C embedding, H heads, D head dimension, K classes; bytes and operations of a forward and
backward as `kernels/cases.py` counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD
from deit_fast.kernels.add_norm import add_norm
from deit_fast.kernels.add_norm import op as add_norm_op
from deit_fast.kernels.attention import BACKENDS, attention
from deit_fast.kernels.attention import op as attention_op
from deit_fast.kernels.batch_prep import batch_prep
from deit_fast.kernels.batch_prep import op as batch_prep_op
from deit_fast.kernels.choice import has_kernel
from deit_fast.kernels.distill_loss import LossTerms, distill_loss
from deit_fast.kernels.distill_loss import op as distill_loss_op
from deit_fast.kernels.gelu_bias import gelu_bias
from deit_fast.kernels.gelu_bias import op as gelu_bias_op

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Contest:
    """`run(backend)` gives a function of the inputs; inputs that are leaves get gradients. backends: by their names."""

    name: str
    run: Callable[[str], Function]
    backends: dict[str, str]
    inputs: dict[str, Tensor]
    leaves: tuple[str, ...]
    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Sizes:
    """Of a contest."""

    batch: int
    tokens: int = 198
    heads: int = 12
    head_dim: int = 64
    classes: int = 1000
    image_size_px: int = 224


def contests(sizes: Sizes, dtype: torch.dtype, device: str) -> list[Contest]:
    """All kernels: plain torch, and ours where there is one: `triton` on a GPU, `native` on a CPU."""

    def both(kernel: str) -> dict[str, str]:
        found = {"reference": "reference"}
        if has_kernel(kernel, torch.device(device), dtype):
            found["triton" if device == "cuda" else "native"] = "triton"
        return found

    torch_own = [name for name in BACKENDS if name.startswith("sdpa")] if device == "cuda" else ["sdpa"]
    B, N, H, D = sizes.batch, sizes.tokens, sizes.heads, sizes.head_dim
    C, K, width = H * D, sizes.classes, dtype.itemsize
    one_pass = B * N * C * width
    qkv = attention_op.example_inputs(N, dtype, device, batch=B, heads=H, head_dim=D)
    x, bias = gelu_bias_op.example_inputs(B * N, 4 * C, dtype, device)
    images = batch_prep_op.example_inputs(B, sizes.image_size_px, torch.uint8, device)
    residual = add_norm_op.example_inputs(B, N, C, dtype, device)
    del residual["layer_scale"]
    usual = both("attention") | dict(zip(torch_own, torch_own, strict=True))
    loss = distill_loss_op.example_inputs(B, K, dtype, device)
    norm_leaves = ("x", "branch", "weight", "shift", "bias")
    return [
        Contest(
            "attention", lambda backend: lambda qkv: attention(qkv, backend), usual, {"qkv": qkv}, ("qkv",),
            12 * one_pass, 14 * B * H * N * N * D,
        ),
        Contest(
            "distill_loss", _loss, both("distill_loss"), loss, ("cls", "dist"), B * K * (3 * width + 16 + 2 * width),
        ),
        Contest("batch_prep", _prep(dtype), both("batch_prep"), images, (), images["images"].numel() * (1 + 2 * width)),
        Contest("add_norm", _norm, both("add_norm"), residual, norm_leaves, B * N * C * (6 * width + 16)),
        Contest(
            "gelu_bias", lambda backend: lambda x, bias: gelu_bias(x, bias, backend), both("gelu_bias"),
            {"x": x, "bias": bias}, ("x", "bias"), 5 * 4 * one_pass,
        ),
    ]  # fmt: skip


def _loss(backend: str) -> Function:
    terms = LossTerms("hard", smoothing=0.1)
    return lambda **inputs: distill_loss(**inputs, terms=terms, backend=backend)


def _prep(dtype: torch.dtype) -> Callable[[str], Function]:
    def run(backend: str) -> Function:
        def prepared(**inputs: Any) -> tuple[Tensor, ...]:
            out_dtype = torch.float64 if inputs["lam"].dtype == torch.float64 else dtype
            both = batch_prep(
                **inputs, dtype=out_dtype, mean=IMAGENET_MEAN, std=IMAGENET_STD, patch_size_px=16, backend=backend
            )
            assert both.images is not None
            assert both.patches is not None
            return both.images, both.patches

        return prepared

    return run


def _norm(backend: str) -> Function:
    def normed(drop_path_scale: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
        return add_norm(**inputs, drop_path_scale=drop_path_scale, backend=backend)

    return normed
