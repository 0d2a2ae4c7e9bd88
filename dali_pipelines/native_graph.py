"""The graphs on the native operators, for the CPU: from a file's bytes to a view in two operators.

    bytes -> crop (decode a region, resize, flip) -> augment (operations, normalise, erase, cast)

The draws are those of the graph backend, so that the same (seed, epoch, view) gives the same image, here in Pillow's
own pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from nvidia.dali import fn, types

from .decode import decode
from .image_set import ImageSet
from .native.direct import DecodeError, is_plain_jpeg
from .native.direct import decode as decode_jpeg
from .native.plugin import NativeUnavailableError, decodes_jpeg, is_available, load_plugin, simd_level
from .operations import Node
from .train_augment import TrainAugment

Backend = Literal["auto", "graph", "native"]


OUTPUTS = {types.FLOAT: "float32", types.FLOAT16: "float16", types.UINT16: "bfloat16"}
"""DALI has no bfloat16: its bits come out as uint16."""

POSITION_INPUTS = {
    "resized": ("crop position", "flip", "crop widths", "crop heights"),
    "simple": ("crop position", "flip"),
}


def choose_backend(backend: Backend, device: str) -> Literal["graph", "native"]:
    """What data.backend comes to on `device` (cpu or gpu); ValueError for native where it cannot be."""
    if backend == "native" and device == "gpu":
        raise ValueError("data.backend native runs on the CPU, but runtime.device is cuda; use --data.backend auto")
    if backend == "native":
        try:
            load_plugin()
        except NativeUnavailableError as error:
            raise ValueError(f"data.backend is native, but {error}; or use --data.backend graph") from error
    if backend == "auto":
        return "native" if device == "cpu" and is_available() else "graph"
    return backend


def _operators() -> Any:
    """The plugin's module, which DALI makes as the plugin is loaded."""
    load_plugin()
    return fn.deit_fast  # type: ignore[attr-defined]


def crop_native(encoded: Node, inputs: list[Node], **options: Any) -> Node:
    """uint8 HWC views of the files; what the operator does not decode itself comes from DALI's decoder."""
    native = _operators()
    options["simd"] = simd_level()
    if not decodes_jpeg():
        return native.crop(decode(encoded, "cpu"), *inputs, **options)
    if native.is_plain_jpeg(encoded):
        images = native.crop(encoded, *inputs, **options)
    else:
        images = native.crop(decode(encoded, "cpu"), *inputs, **options)
    return images


def undecodable(images: ImageSet, which: Iterable[int]) -> list[int]:
    """Those of the images that the native decoder takes for its own and then cannot decode, where DALI's can."""
    found = []
    for image in which:
        fed = images.feed(image).tobytes()
        encoded = Path(os.fsdecode(fed)).read_bytes() if images.feeds == "path" else fed
        if not (decodes_jpeg() and is_plain_jpeg(encoded)):
            continue
        try:
            decode_jpeg(encoded)
        except DecodeError:
            found.append(image)
    return found


def train_view(encoded: Node, given: dict[str, Node], augment: TrainAugment, dtype: types.DALIDataType) -> Node:
    """From the file's bytes to the view, HWC in `dtype`, or bytes with augment.normalize off."""
    inputs = [given[name] for name in POSITION_INPUTS[augment.crop]]
    if augment.decode_once:
        inputs.append(given["first"])
    mode = "random" if augment.crop == "resized" else "simple"
    images = crop_native(encoded, inputs, size=augment.image_size_px, mode=mode, shared=augment.decode_once)
    rectangles = []
    for k in range(augment.erase_count if augment.erase_probability > 0 else 0):
        rectangles += [given[f"erased {k}"], given[f"erase anchor {k}"], given[f"erase shape {k}"]]
        if augment.normalize:
            rectangles.append(given[f"erase content {k}"])
    return _operators().augment(
        images,
        given["operations"],
        given["arguments"],
        *rectangles,
        mean=augment.mean,
        std=augment.std,
        output=OUTPUTS[dtype] if augment.normalize else "uint8",
        bilinear=augment.geometry == "bilinear",
        simd=simd_level(),
    )


def validation_view(
    encoded: Node,
    image_size_px: int,
    shorter_px: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: types.DALIDataType,
) -> Node:
    """From the file's bytes to torchvision's Resize(shorter_px) and CenterCrop(image_size_px), normalised, HWC."""
    images = crop_native(encoded, [], size=image_size_px, mode="center", shorter=shorter_px)
    return _operators().augment(images, mean=mean, std=std, output=OUTPUTS[dtype], simd=simd_level())
