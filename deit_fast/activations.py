"""Memory that an image takes in a forward and backward, counted on fake tensors: shapes and dtypes, no numbers.

They are fake CPU tensors, since torch traces no backward on CUDA tensors where there is no GPU. For a transformer
autocast casts the same on both, and fused attention keeps the same: its output and one fp32 number a row.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .blocks import Attention
from .precision import DTYPES, autocast

FEW_IMAGES, MANY_IMAGES = 8, 24
"""Batches whose difference is what an image takes: what is there once (copies of weights) falls out."""


@dataclass(frozen=True)
class Activations:
    """Bytes that grow with each image of a batch, and those that the step takes once besides weights and gradients."""

    saved_bytes_per_image: int
    """Kept by the forward for the backward."""
    peak_bytes_per_image: int
    """At the fullest moment of forward and backward: what is saved, and what the operations at work need."""
    fixed_bytes: int
    """At that moment whatever the batch: autocast's copies of the weights, above all."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations made and that are still held, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._hold(output.untyped_storage())
        return outputs

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self._held.pop(key)


def count_activations(model: nn.Module, image_size_px: int, precision: str) -> Activations:
    """Of one training step's forward and backward on a GPU, in precision fp32, bf16 or fp16, not compiled.

    What torch.compile fuses away is not known here: for a compiled model it is an upper bound.
    """
    few_saved, few_peak = _step_bytes(model, image_size_px, precision, FEW_IMAGES)
    many_saved, many_peak = _step_bytes(model, image_size_px, precision, MANY_IMAGES)
    more = MANY_IMAGES - FEW_IMAGES
    peak_per_image = (many_peak - few_peak) // more
    return Activations(
        (many_saved - few_saved) // more, peak_per_image, max(0, many_peak - MANY_IMAGES * peak_per_image)
    )


def count_inference(model: nn.Module, image_size_px: int, precision: str) -> int:
    """Peak bytes an image of a forward without gradient, the weights being in that precision too."""
    few, many = (_forward_bytes(model, image_size_px, DTYPES[precision], count) for count in (FEW_IMAGES, MANY_IMAGES))
    return (many - few) // (MANY_IMAGES - FEW_IMAGES)


def _fake(model: nn.Module, training: bool) -> nn.Module:
    """A model of the meta device on fake CPU tensors. Attention `auto` becomes what a GPU takes for it."""
    model = model.to_empty(device="cpu").train(training)
    for module in model.modules():
        if isinstance(module, Attention) and module.backend == "auto":
            module.backend = "sdpa"
    return model


def _step_bytes(model: nn.Module, image_size_px: int, precision: str, count: int) -> tuple[int, int]:
    """(saved, peak) of a batch; weights, gradients and the images themselves left out."""
    model = copy.deepcopy(model).to("meta")
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _fake(model, training=True)
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        for parameter in model.parameters():  # a plan counts gradients by themselves: here they are given back at once
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        images = torch.empty(count, 3, image_size_px, image_size_px)
        with LiveBytes() as live:
            with ExitStack() as forward:
                forward.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
                forward.enter_context(autocast(precision, torch.device("cpu")))
                output = model(images)
            saved_bytes = sum(storage.nbytes() for storage in saved.values())
            saved.clear()
            logits = torch.cat(output) if isinstance(output, tuple) else output
            del output
            logits.float().sum().backward()
    return saved_bytes, live.peak


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _forward_bytes(model: nn.Module, image_size_px: int, dtype: torch.dtype, count: int) -> int:
    model = copy.deepcopy(model).to("meta", dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = _fake(model, training=False)
        images = torch.empty(count, 3, image_size_px, image_size_px, dtype=dtype)
        with LiveBytes() as live:
            model(images)
    return live.peak
