"""What a training batch brings to the graph besides its images: every random choice, as named arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import types

from .draws import blur_kernels, draw_crops, draw_erasing, draw_flips, geometry_matrices
from .operation import OperationDraws
from .policy import Policy
from .train_augment import TrainAugment

Source = Callable[[Any], list[Any]]
"""DALI's callback: BatchInfo -> one entry per output, each a list or an array over the batch."""


class Input(NamedTuple):
    """An input of the graph; DALI asks for dtype and dimensions per sample before it sees the first batch."""

    name: str
    dtype: types.DALIDataType
    ndim: int


def describe_inputs(augment: TrainAugment, policy: Policy, backend: str = "graph") -> list[Input]:
    """The inputs in their order, the image's path or bytes first; backend: in which form the operations come."""
    inputs = [
        Input("image", types.UINT8, 1),
        Input("crop position", types.FLOAT, 1),
        Input("flip", types.INT32, 0),
    ]
    if augment.crop == "resized":
        inputs += [Input("crop widths", types.FLOAT, 1), Input("crop heights", types.FLOAT, 1)]
    if augment.decode_once:
        inputs += [Input("is first", types.INT32, 0)] if backend == "graph" else []
        inputs.append(Input("first", types.INT32, 0))
    inputs += _describe_operations(policy) if backend == "graph" else list(NATIVE_OPERATIONS)
    for k in range(augment.erase_count if augment.erase_probability > 0 else 0):
        inputs += [
            Input(f"erased {k}", types.INT32, 0),
            Input(f"erase anchor {k}", types.INT32, 1),
            Input(f"erase shape {k}", types.INT32, 1),
        ]
        if augment.normalize:
            inputs.append(Input(f"erase content {k}", types.FLOAT, 3))
    return inputs


NATIVE_OPERATIONS = (Input("operations", types.INT32, 1), Input("arguments", types.FLOAT64, 1))
"""All places in one array; the operator makes its own tables."""


def _describe_operations(policy: Policy) -> list[Input]:
    """For the graph: each place apart, with the affine map or filter that it may need."""
    inputs = []
    for k, place in enumerate(policy.places):
        inputs += [Input(f"operation {k}", types.INT32, 0), Input(f"argument {k}", types.FLOAT, 0)]
        if place.is_geometric:
            inputs.append(Input(f"table {k}", types.FLOAT, 2))
        elif place.blurs:
            inputs.append(Input(f"table {k}", types.FLOAT, 1))
    return inputs


def draw_inputs(
    augment: TrainAugment,
    policy: Policy,
    seed: int,
    epoch: int,
    views: np.ndarray,
    images: np.ndarray,
    backend: str = "graph",
) -> list[Any]:
    """The arrays of a batch after the images, in the order of `describe_inputs`."""
    crop = draw_crops(seed, epoch, views, augment.crop_scale_min)
    inputs: list[Any] = [crop.position, draw_flips(seed, epoch, views, augment.flip_probability)]
    if augment.crop == "resized":
        inputs += [crop.widths, crop.heights]
    if augment.decode_once:
        _, first, which = np.unique(images, return_index=True, return_inverse=True)
        first = first[which].astype(np.int32)
        inputs += [(first == np.arange(len(images))).astype(np.int32)] if backend == "graph" else []
        inputs.append(first)
    drawn = policy.draw(seed, epoch, views)
    if backend == "graph":
        inputs += _operations_by_place(drawn, policy, augment.image_size_px)
    else:
        inputs += [np.ascontiguousarray(drawn.operations, np.int32), np.ascontiguousarray(drawn.arguments, np.float64)]
    if augment.erase_probability > 0:
        for rectangle in draw_erasing(seed, epoch, views, augment):
            inputs += [rectangle.erased, rectangle.anchors, rectangle.shapes]
            if augment.normalize:
                inputs.append(rectangle.content)
    return inputs


def _operations_by_place(drawn: OperationDraws, policy: Policy, image_size_px: int) -> list[Any]:
    """The arrays that `_describe_operations` announces."""
    inputs: list[Any] = []
    for k, place in enumerate(policy.places):
        inputs += [np.ascontiguousarray(drawn.operations[:, k]), drawn.arguments[:, k].astype(np.float32)]
        if place.is_geometric:
            inputs.append(geometry_matrices(drawn, k, image_size_px).astype(np.float32))
        elif place.blurs:
            inputs.append(blur_kernels(drawn, k))
    return inputs
