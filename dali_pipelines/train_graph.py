"""The graph from a file path to a training view, for CPU or GPU: read, decode a random crop, resize, augment.

    path -> read -> (peek size, choose crop) -> decode crop -> resize -> flip -> RandAugment -> normalise -> erase

It draws nothing itself: all choices come in as arrays (draws.py), so that a view is a function of (seed, epoch, view).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali import math as dali_math

from . import augment as views
from .augment import TrainAugment
from .draws import CROP_RATIO, draw_crops, draw_erasing, draw_flips, geometry_matrices
from .operations import Node
from .rand_augment import RandAugment, draw_rand_augment, parse_rand_augment

Source = Callable[[Any], list[Any]]
"""DALI's callback: BatchInfo -> one entry per output, each a list or an array over the batch."""


def policy_of(augment: TrainAugment) -> RandAugment | None:
    """The parsed policy; None for none. ValueError for an unknown one."""
    return parse_rand_augment(augment.rand_augment) if augment.policy == "rand" else None


def draw_inputs(
    augment: TrainAugment, policy: RandAugment | None, seed: int, epoch: int, view: np.ndarray
) -> list[Any]:
    """All arrays of a batch that the graph takes after the paths, in its order."""
    crop = draw_crops(seed, epoch, view, augment.crop_scale_min)
    inputs: list[Any] = [crop.widths, crop.heights, crop.position]
    inputs.append(draw_flips(seed, epoch, view, augment.flip_probability))
    if policy is not None:
        drawn = draw_rand_augment(policy, seed, epoch, view)
        for place in range(policy.num_ops):
            inputs.append(np.ascontiguousarray(drawn.operations[:, place]))
            inputs.append(drawn.arguments[:, place].astype(np.float32))
            inputs.append(geometry_matrices(drawn, place, augment.image_size_px).astype(np.float32))
    if augment.erase_probability > 0:
        erasing = draw_erasing(seed, epoch, view, augment.erase_probability, augment.image_size_px)
        inputs += [erasing.erased, erasing.anchors, erasing.shapes, erasing.noise]
    return inputs


def input_dims(augment: TrainAugment, policy: RandAugment | None) -> list[int]:
    """Dimensions of each input per sample, the path first: DALI asks for them before it sees the first batch."""
    dims = [1, 1, 1, 1, 0] + [0, 0, 2] * (policy.num_ops if policy else 0)
    return dims + ([0, 1, 1, 3] if augment.erase_probability > 0 else [])


def input_dtypes(augment: TrainAugment, policy: RandAugment | None) -> list[types.DALIDataType]:
    """dtype of each input."""
    dtypes = [types.UINT8, types.FLOAT, types.FLOAT, types.FLOAT, types.INT32]
    dtypes += [types.INT32, types.FLOAT, types.FLOAT] * (policy.num_ops if policy else 0)
    return dtypes + ([types.INT32, types.INT32, types.INT32, types.FLOAT] if augment.erase_probability > 0 else [])


def choose_crop(encoded: Node, widths: Node, heights: Node, position: Node) -> tuple[Node, Node]:
    """Top left corner and shape of the crop, int32 [2] each: `draws.choose_crop` in DALI's arithmetic.

    The size of the image is read from its header. Of the 10 candidates the first that fits is taken, else the largest
    central crop with an aspect in [3/4, 4/3].
    """
    size = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=False), dtype=types.FLOAT)
    height, width = size[0], size[1]
    side = dali_math.sqrt(height * width)
    w, h = dali_math.floor(side * widths + 0.5), dali_math.floor(side * heights + 0.5)
    fits = fn.cast((w >= 1.0) & (h >= 1.0) & (w <= width) & (h <= height), dtype=types.FLOAT)
    number = types.Constant(np.arange(10, dtype=np.float32))
    first = fn.reductions.min(number * fits + 10.0 * (1.0 - fits))
    taken = fn.cast(number == first, dtype=types.FLOAT)
    none_fits = fn.cast(first >= 10.0, dtype=types.FLOAT)
    w_central = dali_math.min(width, dali_math.floor(height * CROP_RATIO[1] + 0.5))
    h_central = dali_math.min(height, dali_math.floor(width * CROP_RATIO[1] + 0.5))
    crop_w = fn.reductions.sum(w * taken) + none_fits * w_central
    crop_h = fn.reductions.sum(h * taken) + none_fits * h_central
    shape = fn.stack(crop_h, crop_w)
    free = size[0:2] - shape
    central, drawn = dali_math.floor(free * 0.5), dali_math.floor(position * (free + 1.0))
    start = none_fits * central + (1.0 - none_fits) * drawn
    return fn.cast(start, dtype=types.INT32), fn.cast(shape, dtype=types.INT32)


def decode_device(device: str, decoder: str) -> str:
    """DALI's name for where JPEGs are decoded: `mixed` takes bytes from the CPU and leaves pixels on the GPU."""
    if device == "cpu" and decoder == "gpu":
        raise ValueError("data.decoder is gpu, but runtime.device is cpu; use --data.decoder auto")
    return "mixed" if device == "gpu" and decoder in ("auto", "gpu") else "cpu"


def build_train_pipeline(
    augment: TrainAugment,
    source: Source,
    *,
    device: str,
    decoder: str = "auto",
    dtype: types.DALIDataType = types.FLOAT,
    **pipeline_options: Any,
) -> Pipeline:
    """The pipeline, not yet built: one output, normalised images HWC in `dtype` on `device` (cpu or gpu).

    pipeline_options: batch_size, num_threads, device_id, prefetch_queue_depth. ValueError for an unknown policy.
    """
    policy, decode_on, size = policy_of(augment), decode_device(device, decoder), augment.image_size_px
    dims, dtypes = input_dims(augment, policy), input_dtypes(augment, policy)

    @pipeline_def(enable_conditionals=True, exec_dynamic=True, **pipeline_options)
    def train_pipeline() -> Node:
        inputs = list(
            fn.external_source(
                source=source, num_outputs=len(dims), batch=True, batch_info=True, dtype=dtypes, ndim=dims
            )
        )
        path, widths, heights, position, flip = inputs[:5]
        encoded = fn.io.file.read(path)
        start, shape = choose_crop(encoded, widths, heights, position)
        images = fn.decoders.image_slice(
            encoded,
            start=start,
            shape=shape,
            axes=[0, 1],
            device=decode_on,
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        if device == "gpu":
            images = images.gpu()
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_CUBIC, antialias=True)
        images = fn.flip(images, horizontal=flip)
        for place in range(policy.num_ops if policy else 0):
            operation, argument, matrix = inputs[5 + 3 * place : 8 + 3 * place]
            images = views.apply_operation(images, operation, argument, matrix, augment)
        if augment.erase_probability == 0:
            return views.normalize(images, augment.mean, augment.std, dtype)
        erased, anchor, shape, noise = inputs[-4:]
        noise = noise.gpu() if device == "gpu" else noise
        return views.normalize_and_erase(images, erased, anchor, shape, noise, augment, dtype)

    return train_pipeline()
