"""Batch preparation in plain torch: the truth that the kernel is compared with.

    CutMix (a box that is not empty): image i, with its partner's pixels in the box
    Mixup (an empty box):             lam_i image_i + (1 - lam_i) image_partner(i)
    then, for bytes:                  (v / 255 - mean) / std, as v * scale + shift

Zhang et al. 2018; Yun et al. 2019; timm's `Mixup`. To normalise after mixing is the same as before it: both are affine.

Shapes: B batch, H rows, W columns, P patch side; boxes [B, 4] = y0, y1, x0, x1, the ends excluded.
"""

from __future__ import annotations

import torch
from torch import Tensor


def batch_prep_reference(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    box: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """images [B, 3, H, W] -> mixed images of `dtype`, channels-last; computed in fp32 (fp64 for fp64)."""
    wide = images.to(torch.promote_types(dtype, torch.float32))
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    y0, y1, x0, x1 = (edge[:, None, None] for edge in box.to(images.device).unbind(1))
    in_box_BHW = (rows[:, None] >= y0) & (rows[:, None] < y1) & (columns >= x0) & (columns < x1)
    is_cutmix_B11 = (y1 > y0) & (x1 > x0)
    weight_BHW = torch.where(is_cutmix_B11, (~in_box_BHW).to(wide.dtype), lam[:, None, None].to(wide.dtype))
    weight_B1HW = weight_BHW[:, None]
    mixed = wide * weight_B1HW + wide[partner] * (1 - weight_B1HW)
    if scale is not None and shift is not None:
        mixed = mixed * scale.to(mixed.dtype)[:, None, None] + shift.to(mixed.dtype)[:, None, None]
    return mixed.to(dtype).contiguous(memory_format=torch.channels_last)


def patch_rows(images: Tensor, patch_size_px: int) -> Tensor:
    """[B, 3, H, W] -> [B, H/P * W/P, P * P * 3]: a row a patch; in it pixels by row and column, channels adjacent."""
    B, _, H, W = images.shape
    P = patch_size_px
    grid = images.reshape(B, 3, H // P, P, W // P, P)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // P) * (W // P), P * P * 3)


def empty_outputs(images: Tensor, dtype: torch.dtype, channels_last: bool, patch_size_px: int) -> tuple[Tensor, Tensor]:
    """Of the shapes and strides that the operator fills; what is not wanted is empty."""
    B, _, H, W = images.shape
    out = images.new_empty(0, dtype=dtype)
    if channels_last:
        out = images.new_empty(B, H, W, 3, dtype=dtype).permute(0, 3, 1, 2)
    if not patch_size_px:
        return out, images.new_empty(0, dtype=dtype)
    patches = (H // patch_size_px) * (W // patch_size_px)
    return out, images.new_empty(B, patches, 3 * patch_size_px**2, dtype=dtype)
