"""Mixup / CutMix, normalisation, cast and both layouts in one pass, two partners a program; formulas: `reference.py`.

A program takes the same run of pixels of an image and of its partner, and writes both: partners are mutual, so each
byte is read once. Bytes a pixel and channel, with bf16 out: 1 + 2 + 2 from bytes (5), 2 + 2 + 2 from bf16 (6), for
channels-last images and patch rows together; 2 less for one of them.

A thread's 8 neighbours lie in one row of one patch when 3 P and 3 W are multiples of 8; said to the compiler, loads of
bytes become 8 wide and stores 16. Without that hint, or with sizes known at run time only, it emits single bytes.

Shapes: B batch, H rows, W columns, P patch side. Memory is [B, H, W, 3].
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deit_fast.kernels.launch import launch

from .reference import empty_outputs

ELEMENTS_PER_PROGRAM = 2048


@triton.jit
def mixed(mine, theirs, image, lam, box, y, x):
    """mine and theirs, mixed by the plan of `image`."""
    y0 = tl.load(box + image * 4)
    y1 = tl.load(box + image * 4 + 1)
    x0 = tl.load(box + image * 4 + 2)
    x1 = tl.load(box + image * 4 + 3)
    in_box = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    is_cutmix = (y1 > y0) & (x1 > x0)
    weight = tl.where(is_cutmix, tl.where(in_box, 0.0, 1.0), tl.load(lam + image))
    return mine * weight + theirs * (1 - weight)


@triton.jit
def by_channel(values, channel):
    """Picked from three scalars: a load for each element would be a narrow one."""
    return tl.where(channel == 0, tl.load(values), tl.where(channel == 1, tl.load(values + 1), tl.load(values + 2)))


@triton.jit
def prepare_pair(
    images,  # [B, H, W, 3]
    partner,  # [B]
    lam,  # [B]
    box,  # [B, 4]
    scale,  # [3]
    shift,  # [3]
    channels_last,  # [B, H, W, 3]
    patches,  # [B, H / P * W / P, P * P * 3]
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PATCHES: tl.constexpr,
    SUM: tl.constexpr,
):
    """Grid (cdiv(3 H W, BLOCK), B): the program of a pair's lower image does both, the other's does nothing."""
    SIZE: tl.constexpr = H * W * 3
    first = tl.program_id(1)
    second = tl.load(partner + first).to(tl.int32)
    if second >= first:
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = i < SIZE
        y = i // (3 * W)
        x = (i // 3) % W
        first_base = first.to(tl.int64) * SIZE
        second_base = second.to(tl.int64) * SIZE
        a = tl.load(images + first_base + i, mask=inside, other=0).to(SUM)
        b = tl.load(images + second_base + i, mask=inside, other=0).to(SUM)
        new_a = mixed(a, b, first, lam, box, y, x)
        new_b = mixed(b, a, second, lam, box, y, x)
        if NORMALIZE:
            factor = by_channel(scale, i % 3)
            term = by_channel(shift, i % 3)
            new_a = new_a * factor + term
            new_b = new_b * factor + term
        if CHANNELS_LAST:
            tl.store(channels_last + first_base + i, new_a.to(channels_last.dtype.element_ty), mask=inside)
            tl.store(channels_last + second_base + i, new_b.to(channels_last.dtype.element_ty), mask=inside)
        if PATCHES:
            patch = (y // P) * (W // P) + x // P
            j = patch * (P * P * 3) + (y % P) * (3 * P) + i % (3 * P)
            j = tl.max_contiguous(tl.multiple_of(j, RUN), RUN)
            tl.store(patches + first_base + j, new_a.to(patches.dtype.element_ty), mask=inside)
            tl.store(patches + second_base + j, new_b.to(patches.dtype.element_ty), mask=inside)


def prepare(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    box: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
    patch_size_px: int,
) -> tuple[Tensor, Tensor]:
    """Mixed images, channels-last, and their patch rows; what is not wanted is empty."""
    B, _, H, W = images.shape
    P = patch_size_px
    images = images.contiguous(memory_format=torch.channels_last)
    out, rows = empty_outputs(images, dtype, channels_last, P)
    run = 8 if P and 3 * P % 8 == 0 and 3 * W % 8 == 0 else 1
    normalize = scale is not None
    launch(
        prepare_pair, (triton.cdiv(3 * H * W, ELEMENTS_PER_PROGRAM), B), images, partner.contiguous(),
        lam.contiguous(), box.contiguous(), scale if normalize else lam, shift if normalize else lam,
        out if channels_last else rows, rows if P else out, H=H, W=W, P=P or 1, RUN=run, BLOCK=ELEMENTS_PER_PROGRAM,
        NORMALIZE=normalize, CHANNELS_LAST=channels_last, PATCHES=P > 0,
        SUM=tl.float64 if dtype == torch.float64 else tl.float32, num_warps=8,
    )  # fmt: skip
    return out, rows
