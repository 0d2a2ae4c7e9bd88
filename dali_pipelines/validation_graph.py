"""From an encoded image to a validation image: torchvision's Resize and CenterCrop, pixel for pixel in geometry."""

from __future__ import annotations

from typing import Any

from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali import math as dali_math

from . import native_graph
from .augment import normalize
from .decode import HARDWARE_DECODER_SHARE, decode, decode_device, read
from .image_set import Feeds
from .operations import Node
from .resize import resize_bicubic, shorter_side_to
from .train_inputs import Source


def round_half_even(values: Node) -> Node:
    """Python's round, for the halves that an odd margin gives; values >= 0."""
    whole = dali_math.floor(values)
    odd = whole - 2.0 * dali_math.floor(whole * 0.5)
    up = fn.cast(values - whole > 0.5, dtype=types.FLOAT) + fn.cast(values - whole == 0.5, dtype=types.FLOAT) * odd
    return whole + up


def build_validation_pipeline(
    source: Source,
    *,
    image_size_px: int,
    crop_ratio: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: str,
    feeds: Feeds = "path",
    decoder: str = "auto",
    hardware_decoder_share: float = HARDWARE_DECODER_SHARE,
    dtype: types.DALIDataType = types.FLOAT,
    backend: str = "graph",
    **pipeline_options: Any,
) -> Pipeline:
    """The pipeline, not yet built: one output, normalised images HWC in `dtype` on `device` (cpu or gpu).

    The shorter side becomes int(image_size_px / crop_ratio), the longer one int(that * longer / shorter), bicubic with
    antialiasing; then the centre is cropped, its offset rounded as Python rounds. backend: as in train_graph.py.
    """
    resized = int(image_size_px / crop_ratio)
    decode_on = decode_device(device, decoder)

    @pipeline_def(enable_conditionals=True, exec_dynamic=True, **pipeline_options)
    def validation_pipeline() -> Node:
        (fed,) = fn.external_source(
            source=source, num_outputs=1, batch=True, batch_info=True, dtype=[types.UINT8], ndim=[1]
        )
        encoded = read(fed, feeds)
        if backend == "native":
            return native_graph.validation_view(encoded, image_size_px, resized, mean, std, dtype)
        target = shorter_side_to(resized, fn.peek_image_shape(encoded, adjust_orientation=False))
        start = round_half_even((target - float(image_size_px)) * 0.5)
        images = decode(encoded, decode_on, hardware_decoder_share, reserve=False)
        if device == "gpu" and decode_on == "cpu":
            images = images.gpu()
        images = resize_bicubic(images, target)
        images = fn.slice(
            images, start=fn.cast(start, dtype=types.INT32), shape=[image_size_px, image_size_px], axes=[0, 1]
        )
        return normalize(images, mean, std, dtype)

    return validation_pipeline()
