"""Loaders: run a pipeline and hand its batches to torch without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, types

from .augment import TrainAugment
from .image_folder import ImageFolder
from .sampler import TrainSampler, ValidationSampler
from .train_graph import build_train_pipeline, draw_inputs, policy_of
from .unreadable import find_unreadable
from .validation_graph import build_validation_pipeline

DALI_DTYPES = {torch.float32: types.FLOAT, torch.float16: types.FLOAT16, torch.bfloat16: types.FLOAT16}
"""DALI has no bfloat16. float16 holds normalised pixels more finely, and autocast takes it as well."""


class Batch(NamedTuple):
    """images [B, 3, H, W], channels-last in memory; labels int64 [B] on the same device; views int64 [B] on the CPU.

    For validation, views are the numbers of the images. The images belong to the loader until the next batch is asked
    for: change them out of place.
    """

    images: torch.Tensor
    labels: torch.Tensor
    views: torch.Tensor


def as_torch(output: Any) -> torch.Tensor:
    """DALI's dense NHWC batch as torch NCHW in channels-last memory: the same memory."""
    return torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)


class _Loader:
    """What both loaders share: the device's names, and running a pipeline whose errors name the file."""

    def __init__(self, images: ImageFolder, device: str, device_id: int, num_threads: int, prefetch: int) -> None:
        self.images = images
        self.device = torch.device(device, device_id) if device == "cuda" else torch.device(device)
        self.dali_device = "gpu" if device == "cuda" else "cpu"
        self.pipeline_options: dict[str, Any] = {
            "num_threads": num_threads,
            "device_id": device_id if device == "cuda" else None,
            "prefetch_queue_depth": prefetch,
        }

    def _paths(self, images: np.ndarray) -> list[np.ndarray]:
        return [self.images.path_bytes(image) for image in images]

    def _run(self, pipeline: Pipeline, images: np.ndarray, views: np.ndarray) -> Batch:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            (output,) = pipeline.run(stream)
        except RuntimeError as error:
            find_unreadable([self.images.path(image) for image in images], error)
        labels = torch.from_numpy(self.images.labels[images])
        if self.device.type == "cuda":
            labels = labels.pin_memory().to(self.device, non_blocking=True)
        return Batch(as_torch(output), labels, torch.from_numpy(views))


class TrainLoader(_Loader):
    """Training batches of this rank, for any range of steps."""

    def __init__(
        self,
        images: ImageFolder,
        sampler: TrainSampler,
        augment: TrainAugment,
        *,
        device: str = "cpu",
        device_id: int = 0,
        decoder: str = "auto",
        num_threads: int = 2,
        prefetch: int = 2,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        """ValueError for an unknown policy or a decoder that the device does not have."""
        super().__init__(images, device, device_id, num_threads, prefetch)
        self.sampler, self.augment, self.seed, self.dtype, self.decoder = sampler, augment, seed, dtype, decoder
        self.policy = policy_of(augment)
        self._build(source=lambda _info: [])  # a mistake in the options shows now, not at the first batch

    def _build(self, source: Any) -> Pipeline:
        return build_train_pipeline(
            self.augment,
            source,
            device=self.dali_device,
            decoder=self.decoder,
            dtype=DALI_DTYPES[self.dtype],
            batch_size=len(self.sampler.views(0)),
            **self.pipeline_options,
        )

    def _position(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Epoch, views and images of a step of the run."""
        epoch, step_in_epoch = divmod(step, self.sampler.steps_per_epoch)
        views = self.sampler.views(step_in_epoch)
        return epoch, views, self.sampler.images(epoch, views)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of the run's steps first_step to last_step - 1; epochs follow one another without a pause.

        Starting anywhere costs the same: nothing is replayed. ValueError, naming the file, for one that cannot be read.
        """

        def source(info: Any) -> list[Any]:
            step = first_step + info.iteration
            if step >= last_step:
                raise StopIteration
            epoch, views, images = self._position(step)
            return [self._paths(images), *draw_inputs(self.augment, self.policy, self.seed, epoch, views)]

        pipeline = self._build(source)
        for step in range(first_step, last_step):
            _, views, images = self._position(step)
            yield self._run(pipeline, images, views)


class ValidationLoader(_Loader):
    """Validation batches of this rank: iterate over it as often as wanted."""

    def __init__(
        self,
        images: ImageFolder,
        sampler: ValidationSampler,
        *,
        image_size_px: int,
        crop_ratio: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: str = "cpu",
        device_id: int = 0,
        decoder: str = "auto",
        num_threads: int = 2,
        prefetch: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """ValueError for a crop ratio outside (0, 1]."""
        super().__init__(images, device, device_id, num_threads, prefetch)
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"eval.crop_ratio must be above 0 and at most 1, got {crop_ratio}")
        self.sampler = sampler
        self.graph_options: dict[str, Any] = {
            "image_size_px": image_size_px,
            "crop_ratio": crop_ratio,
            "mean": mean,
            "std": std,
            "device": self.dali_device,
            "decoder": decoder,
            "dtype": DALI_DTYPES[dtype],
            "batch_size": sampler.batch_size,
        }

    def __iter__(self) -> Iterator[Batch]:
        def source(info: Any) -> list[Any]:
            if info.iteration >= self.sampler.num_batches:
                raise StopIteration
            return [self._paths(self.sampler.images(info.iteration))]

        pipeline = build_validation_pipeline(source, **self.graph_options, **self.pipeline_options)
        for batch in range(self.sampler.num_batches):
            images = self.sampler.images(batch)
            yield self._run(pipeline, images, images)
