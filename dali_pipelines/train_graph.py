"""The graph from an encoded image to a training view, for CPU or GPU: read, decode a random crop, resize, augment.

    path -> read, or bytes -> (peek size, choose crop) -> decode crop -> resize -> flip -> policy -> normalise -> erase

It draws nothing itself: all choices come in as arrays (train_inputs.py), so that a view is a function of (seed, epoch,
view).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali import math as dali_math

from . import augment as views
from . import native_graph
from .decode import HARDWARE_DECODER_SHARE, decode, decode_device, read
from .draws import CROP_RATIO
from .image_set import Feeds
from .operations import Node
from .policy import build_policy
from .resize import resize_bicubic, shorter_side_to
from .train_augment import TrainAugment
from .train_inputs import Source, describe_inputs

SIMPLE_CROP_PADDING_PX = 4
"""DeiT III's `src`: torchvision's RandomCrop with this padding, mirrored."""


def choose_crop(encoded: Node, widths: Node, heights: Node, position: Node) -> tuple[Node, Node]:
    """Top left corner and shape of the crop, int32 [2] each: `draws.choose_crop` in DALI's arithmetic.

    The size of the image is read from its header. Of the 10 candidates the first that fits is taken, else the largest
    central crop with an aspect in [3/4, 4/3]. Height and width go as one vector: each node costs 5 us a sample.
    """
    size = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=False), dtype=types.FLOAT)[0:2]
    side = dali_math.sqrt(size[0] * size[1])
    candidates = dali_math.floor(side * fn.stack(heights, widths, axis=1) + 0.5)
    fits = fn.cast((candidates >= 1.0) & (candidates <= size), dtype=types.FLOAT)
    order = fn.reductions.min(fits, axes=1) * types.Constant(np.arange(10, 0, -1, dtype=np.float32))
    first = fn.reductions.max(order)
    if first > 0.0:
        taken = fn.expand_dims(fn.cast(order == first, dtype=types.FLOAT), axes=1)
        shape = fn.reductions.sum(candidates * taken, axes=0)
        start = dali_math.floor(position * (size - shape + 1.0))
    else:
        shape = dali_math.min(size, dali_math.floor(fn.stack(size[1], size[0]) * CROP_RATIO[1] + 0.5))
        start = dali_math.floor((size - shape) * 0.5)
    return fn.cast(start, dtype=types.INT32), fn.cast(shape, dtype=types.INT32)


def decode_once(encoded: Node, device: str, hardware_share: float, is_first: Node, first: Node) -> Node:
    """Decodes the first view of each image of the batch; the others take its pixels. is_first, first: CPU int32."""
    if is_first != 0:
        images = decode(encoded, device, hardware_share)
    else:
        blank = fn.reshape(fn.cast(encoded[0:3], dtype=types.UINT8), shape=[1, 1, 3], layout="HWC")
        images = blank.gpu() if device == "mixed" else blank
    return fn.permute_batch(images, indices=first)


def build_train_pipeline(
    augment: TrainAugment,
    source: Source,
    *,
    device: str,
    feeds: Feeds = "path",
    decoder: str = "auto",
    hardware_decoder_share: float = HARDWARE_DECODER_SHARE,
    dtype: types.DALIDataType = types.FLOAT,
    backend: str = "graph",
    **pipeline_options: Any,
) -> Pipeline:
    """The pipeline, not yet built: one output, normalised images HWC in `dtype` on `device` (cpu or gpu).

    backend: graph, or native (native_graph.py): on the CPU alone, with types.UINT16 for bfloat16's bits. With
    augment.normalize off, bytes come out. pipeline_options: batch_size, num_threads, device_id, prefetch_queue_depth.
    ValueError for an unknown policy.
    """
    policy, decode_on = build_policy(augment), decode_device(device, decoder)
    described = describe_inputs(augment, policy, backend)
    if backend == "native":
        native_graph.load_plugin()

    @pipeline_def(enable_conditionals=True, exec_dynamic=True, **pipeline_options)
    def train_pipeline() -> Node:
        nodes = fn.external_source(
            source=source,
            num_outputs=len(described),
            batch=True,
            batch_info=True,
            dtype=[kind.dtype for kind in described],
            ndim=[kind.ndim for kind in described],
        )
        given = {kind.name: node for kind, node in zip(described, nodes)}  # noqa: B905 - AutoGraph's zip lacks strict
        encoded = read(given["image"], feeds)
        if backend == "native":
            return native_graph.train_view(encoded, given, augment, dtype)
        images = crop(encoded, given, augment, device, decode_on, hardware_decoder_share)
        if given["flip"] != 0:  # others pass without a copy
            images = fn.flip(images, horizontal=1)
        for k, place in enumerate(policy.places):
            table = given.get(f"table {k}")
            images = views.apply_place(images, place, given[f"operation {k}"], given[f"argument {k}"], table, augment)
        return finish(images, given, augment, device, dtype)

    return train_pipeline()


def crop(
    encoded: Node, given: dict[str, Node], augment: TrainAugment, device: str, decode_on: str, hardware_share: float
) -> Node:
    """From the file's bytes to the square view, on `device`."""
    size = augment.image_size_px
    if augment.crop == "simple":
        start = shape = None
    else:
        start, shape = choose_crop(encoded, given["crop widths"], given["crop heights"], given["crop position"])
    if augment.decode_once:
        images = decode_once(encoded, decode_on, hardware_share, given["is first"], given["first"])
    elif augment.crop == "simple":
        images = decode(encoded, decode_on, hardware_share)
    else:
        images = decode(encoded, decode_on, hardware_share, start=start, shape=shape)
    if device == "gpu" and decode_on == "cpu":
        images = images.gpu()
    if augment.crop == "simple":
        target = shorter_side_to(size, fn.peek_image_shape(encoded, adjust_orientation=False))
        padded = views.reflect_padded(resize_bicubic(images, target), SIMPLE_CROP_PADDING_PX)
        free = target - float(size) + float(2 * SIMPLE_CROP_PADDING_PX)
        corner = fn.cast(dali_math.floor(given["crop position"] * (free + 1.0)), dtype=types.INT32)
        return fn.slice(padded, start=corner, shape=[size, size], axes=[0, 1])
    if augment.decode_once:
        images = fn.slice(images, start=start, shape=shape, axes=[0, 1])
    return fn.resize(images, size=[size, size], interp_type=types.INTERP_CUBIC, antialias=True)


def finish(images: Node, given: dict[str, Node], augment: TrainAugment, device: str, dtype: types.DALIDataType) -> Node:
    """Normalises and erases; DALI does no arithmetic in float16, so what erases works in float32 before the cast."""
    count = augment.erase_count if augment.erase_probability > 0 else 0
    if not augment.normalize:
        for k in range(count):
            rectangle = given[f"erased {k}"], given[f"erase anchor {k}"], given[f"erase shape {k}"]
            images = views.erase_bytes(images, *rectangle, augment.mean)
        return images
    if count == 0:
        return views.normalize(images, augment.mean, augment.std, dtype)
    images = views.normalize(images, augment.mean, augment.std, types.FLOAT)
    for k in range(count):
        rectangle = given[f"erased {k}"], given[f"erase anchor {k}"], given[f"erase shape {k}"]
        content = given[f"erase content {k}"]
        images = views.erase(images, *rectangle, content.gpu() if device == "gpu" else content, augment.image_size_px)
    return images if dtype == types.FLOAT else fn.cast(images, dtype=dtype)
