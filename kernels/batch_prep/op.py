"""From the loader's batch to what teacher and student read: mixed, normalised, cast and laid out in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deit_fast.kernels.registration import check_backend, kernel_op, say_once, why_not_on

from .reference import batch_prep_reference, empty_outputs, patch_rows

OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Prepared(NamedTuple):
    """What was asked for: images [B, 3, H, W], channels-last; patches [B, H/P * W/P, P * P * 3]."""

    images: Tensor | None
    patches: Tensor | None


def _on_cpu(
    images: Tensor, partner: Tensor, lam: Tensor, box: Tensor, scale: Tensor | None, shift: Tensor | None,
    dtype: torch.dtype, channels_last: bool, patch_size_px: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    mixed = batch_prep_reference(images, partner, lam, box, scale, shift, dtype)
    out, rows = empty_outputs(images, dtype, channels_last, patch_size_px)
    if patch_size_px:
        rows.copy_(patch_rows(mixed, patch_size_px))
    return mixed if channels_last else out, rows


@kernel_op("batch_prep", _on_cpu)
def batch_prep_op(
    images: Tensor, partner: Tensor, lam: Tensor, box: Tensor, scale: Tensor | None, shift: Tensor | None,
    dtype: torch.dtype, channels_last: bool, patch_size_px: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mixed images and patch rows; what is not wanted is empty. Images have no gradient."""
    from .triton import prepare

    return prepare(images, partner, lam, box, scale, shift, dtype, channels_last, patch_size_px)


@batch_prep_op.register_fake
def _(
    images: Tensor, partner: Tensor, lam: Tensor, box: Tensor, scale: Tensor | None, shift: Tensor | None,  # noqa: ARG001
    dtype: torch.dtype, channels_last: bool, patch_size_px: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return empty_outputs(images, dtype, channels_last, patch_size_px)


def batch_prep(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    box: Tensor,
    *,
    dtype: torch.dtype,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    channels_last: bool = True,
    patch_size_px: int | None = None,
    backend: str = "reference",
) -> Prepared:
    """Mixes a batch by a plan per image, and gives it as channels-last images, as patch rows, or as both.

    images [B, 3, H, W]: bytes, which are divided by 255 and normalised by mean and std, or floats, which are only mixed
    (mean and std None). partner int64 [B], its own inverse: partner[partner[i]] = i. lam fp32 [B], the share of the
    image itself. box int32 [B, 4] = y0, y1, x0, x1: pixels taken from the partner instead; empty (all 0) for Mixup.
    Bytes cannot hold the noise of random erasing, which comes after normalisation: such a recipe hands floats in.

    ValueError for patches that do not tile the image, bytes without mean and std, floats with them, or, on a CPU, a
    partner that is not mutual.
    """
    check_backend(backend)
    _check(images, partner, mean, std, patch_size_px)
    scale = shift = None
    if mean is not None and std is not None:
        scale, shift = _normalisation(mean, std, images.device)
    arguments = (images, partner, lam, box, scale, shift, dtype, channels_last, patch_size_px or 0)
    if backend == "triton" and _triton_takes(images, dtype):
        out, rows = batch_prep_op(*arguments)
    else:
        out, rows = _on_cpu(*arguments)
    return Prepared(out if channels_last else None, rows if patch_size_px else None)


def patch_weight(conv_weight: Tensor) -> Tensor:
    """The patch convolution's weight [C, 3, P, P] as the matrix [C, P * P * 3] that patch rows are multiplied with."""
    return conv_weight.permute(0, 2, 3, 1).flatten(1)


_normalisations: dict[tuple[tuple[float, ...], tuple[float, ...], torch.device], tuple[Tensor, Tensor]] = {}


def _normalisation(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """scale and shift of v * scale + shift, fp32 [3]; kept, so that no step copies them to the device."""
    key = (tuple(mean), tuple(std), device)
    if key not in _normalisations:
        values = torch.tensor([mean, std], dtype=torch.float64)
        scale, shift = 1 / (255 * values[1]), -values[0] / values[1]
        _normalisations[key] = scale.float().to(device), shift.float().to(device)
    return _normalisations[key]


def _check(
    images: Tensor, partner: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, patch: int | None
) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"batch_prep takes images of shape [B, 3, H, W], got {tuple(images.shape)}")
    if patch and (images.shape[2] % patch or images.shape[3] % patch):
        raise ValueError(f"patches of {patch} px do not tile images of {images.shape[2]} x {images.shape[3]} px")
    if (images.dtype == torch.uint8) != (mean is not None and std is not None):
        raise ValueError(f"bytes are normalised by mean and std, floats are not; got {images.dtype}, mean {mean}")
    mutual = (
        partner.device.type != "cpu"
        or torch.compiler.is_compiling()
        or bool((partner[partner] == torch.arange(len(partner))).all())
    )
    if not mutual:
        raise ValueError("partner must be its own inverse: partner[partner[i]] = i for every image")


def _triton_takes(images: Tensor, dtype: torch.dtype) -> bool:
    if why := why_not_on(images.device):
        say_once(f"batch_prep: the Triton kernel does not take {why}: reference")
        return False
    if images.device.type == "cuda" and dtype not in OUT_DTYPES:
        say_once(f"batch_prep: the Triton kernel does not take {dtype}: reference")
        return False
    return True


def example_inputs(batch: int, image_size_px: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Images of `dtype` and a plan of Mixup for the outer pairs and CutMix for the inner; for tests and benchmarks."""
    generator = torch.Generator().manual_seed(batch)
    images = torch.randint(256, (batch, image_size_px, image_size_px, 3), generator=generator, dtype=torch.uint8)
    if dtype != torch.uint8:
        images = (images.float() / 64 - 2).to(dtype)
    box = torch.tensor([image_size_px // 5, image_size_px // 2 + 1, 1, image_size_px // 3 + 2], dtype=torch.int32)
    is_cutmix = torch.arange(batch).sub((batch - 1) / 2).abs() < batch / 4
    return {
        "images": images.permute(0, 3, 1, 2).to(device),
        "partner": torch.arange(batch - 1, -1, -1).to(device),
        "lam": torch.rand(batch, generator=generator).to(device),
        "box": (box * is_cutmix[:, None]).int().to(device),
    }
