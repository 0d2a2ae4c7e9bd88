"""Loaders: run a pipeline and hand its batches to torch without a copy."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, types
from nvidia.dali.pipeline import OperatorConcurrency
from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray, to_torch_type

from .decode import HARDWARE_DECODER_SHARE
from .image_set import ImageSet
from .native_graph import Backend, choose_backend, undecodable
from .policy import build_policy
from .read_ahead import ReadAhead
from .sampler import TrainSampler, ValidationSampler
from .train_augment import TrainAugment
from .train_graph import build_train_pipeline
from .train_inputs import Source, draw_inputs
from .unreadable import BadImageError, Substitutes, logger, unreadable_images
from .validation_graph import build_validation_pipeline

DALI_DTYPES = {torch.float32: types.FLOAT, torch.float16: types.FLOAT16, torch.bfloat16: types.FLOAT}
"""DALI has no bfloat16: the graph's is cast from float32 by torch, the only dtype that costs a copy."""
NATIVE_DTYPES = DALI_DTYPES | {torch.bfloat16: types.UINT16}
"""The native operators write bfloat16's bits."""

BadSample = Literal["replace", "raise"]


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


def copied(output: Any, device: torch.device, stream: torch.cuda.Stream | None) -> torch.Tensor:
    """The same in torch's own memory."""
    dense = output.as_tensor()
    own = torch.empty(dense.shape(), dtype=to_torch_type[dense.dtype], device=device)
    return feed_ndarray(dense, own, stream).permute(0, 3, 1, 2)


class _Loader:
    """What both loaders share: the device's names, and running a pipeline."""

    def __init__(
        self,
        images: ImageSet,
        device: str,
        device_id: int,
        num_threads: int,
        prefetch: int,
        dtype: torch.dtype,
        bad_sample: BadSample,
        backend: Backend,
        copies: bool,
    ) -> None:
        self.copies = copies
        self.images, self.dtype, self.bad_sample = images, dtype, bad_sample
        self.device = torch.device(device, device_id) if device == "cuda" else torch.device(device)
        self.dali_device = "gpu" if device == "cuda" else "cpu"
        self.backend = choose_backend(backend, self.dali_device)
        self.dali_dtype = (NATIVE_DTYPES if self.backend == "native" else DALI_DTYPES)[dtype]
        self.pipeline_options: dict[str, Any] = {
            "num_threads": num_threads,
            "device_id": device_id if device == "cuda" else None,
            "prefetch_queue_depth": prefetch,
        }
        if self.dali_device == "cpu":
            # operators of neighbouring batches overlap: 5 % more images/s from 2 threads. GPUs: not measured
            self.pipeline_options["concurrency"] = OperatorConcurrency.FULL

    def _run(self, pipeline: Pipeline, images: np.ndarray, views: np.ndarray) -> Batch:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        (output,) = pipeline.run(stream)
        pixels = copied(output, self.device, stream) if self.copies else as_torch(output)
        if self.dtype == torch.bfloat16 and pixels.dtype != torch.uint8:
            native = self.backend == "native"
            pixels = pixels.view(torch.bfloat16) if native else pixels.to(torch.bfloat16)
        labels = torch.from_numpy(self.images.labels[images])
        if self.device.type == "cuda":
            labels = labels.pin_memory().to(self.device, non_blocking=True)
        return Batch(pixels, labels, torch.from_numpy(views))

    def _find_bad(self, images: np.ndarray, error: RuntimeError) -> tuple[list[int], list[str]]:
        """The batch's bad images and their files after a pipeline failed; the error itself when all can be read.

        BadImageError, naming the first, when bad ones are to stop the run.
        """
        distinct = np.unique(images).tolist()
        bad = unreadable_images(self.images, distinct)
        if not bad and self.backend == "native":
            bad = undecodable(self.images, distinct)
        if not bad:
            raise error
        files = [self.images.name(image) for image in bad]
        if self.bad_sample == "raise":
            raise BadImageError(
                f"image {files[0]} cannot be read or decoded; repair it or take it away, or have others shown "
                "in place of bad ones by --data.bad_sample replace"
            ) from error
        return bad, files


class TrainLoader(_Loader):
    """Training batches of this rank, for any range of steps."""

    def __init__(
        self,
        images: ImageSet,
        sampler: TrainSampler,
        augment: TrainAugment,
        *,
        device: str = "cpu",
        device_id: int = 0,
        decoder: str = "auto",
        hardware_decoder_share: float = HARDWARE_DECODER_SHARE,
        num_threads: int = 2,
        prefetch: int = 2,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        bad_sample: BadSample = "raise",
        max_bad_fraction: float = 0.01,
        backend: Backend = "graph",
        copies: bool = False,
    ) -> None:
        """dtype: that of the images, but for augment.normalize off, which gives uint8. copies: batches in torch's own
        memory. Else a thread of DALI waits for the whole device when a batch is dropped, which breaks the recording of
        a CUDA graph.

        ValueError for an unknown policy, a decoder that the device lacks, or a native backend that is not built.
        """
        super().__init__(images, device, device_id, num_threads, prefetch, dtype, bad_sample, backend, copies)
        self.sampler, self.augment, self.seed = sampler, augment, seed
        self.decoder, self.hardware_decoder_share = decoder, hardware_decoder_share
        self.policy = build_policy(augment)
        self.substitutes = Substitutes(len(images), seed, max_bad_fraction, images.bad)
        self.build(source=lambda _info: [])  # a mistake in the options shows now, not at the first batch

    def build(self, source: Source) -> Pipeline:
        """The pipeline behind the batches, not yet built by DALI, fed by `source`."""
        return build_train_pipeline(
            self.augment,
            source,
            device=self.dali_device,
            feeds=self.images.feeds,
            decoder=self.decoder,
            hardware_decoder_share=self.hardware_decoder_share,
            dtype=self.dali_dtype,
            backend=self.backend,
            batch_size=len(self.sampler.views(0)),
            **self.pipeline_options,
        )

    def feed(self, first_step: int, last_step: int) -> tuple[Source, ReadAhead]:
        """What the run's steps from first_step bring to the pipeline, and the reader behind it, to be closed."""
        reader = ReadAhead(self.images, self.images_of, last_step)

        def source(info: Any) -> list[Any]:
            step = first_step + info.iteration
            if step >= last_step:
                raise StopIteration
            epoch, views, images = self._position(step)
            drawn = draw_inputs(self.augment, self.policy, self.seed, epoch, views, images, self.backend)
            return [reader.take(step), *drawn]

        return source, reader

    def _build_from(self, first_step: int, last_step: int) -> tuple[Pipeline, ReadAhead]:
        """A pipeline whose batches are those of the run's steps from first_step, and what feeds it."""
        source, reader = self.feed(first_step, last_step)
        pipeline = self.build(source)
        pipeline.build()
        return pipeline, reader

    def _position(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Epoch, views and images of a step of the run."""
        epoch, step_in_epoch = divmod(step, self.sampler.steps_per_epoch)
        views = self.sampler.views(step_in_epoch)
        return epoch, views, self.substitutes.replace(epoch, views, self.sampler.images(epoch, views))

    def images_of(self, step: int) -> np.ndarray:
        """The images that a step of the run shows, bad ones replaced; int64 [B]."""
        return self._position(step)[2]

    def batches(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """The batches of the run's steps first_step to last_step - 1; epochs follow one another without a pause.

        Starting anywhere costs the same: nothing is replayed. BadImageError, naming the file, for one that cannot be
        read, or when too many of them had to be replaced.
        """
        return self._run_from(*self._build_from(first_step, last_step), first_step, last_step)

    def _run_from(
        self, pipeline: Pipeline, reader: ReadAhead, step: int, last_step: int
    ) -> Generator[Batch, None, None]:
        try:
            while step < last_step:
                epoch, views, images = self._position(step)
                try:
                    batch = self._run(pipeline, images, views)
                except RuntimeError as error:
                    self.substitutes.add(*self._find_bad(images, error))
                    reader.close()
                    pipeline, reader = self._build_from(step, last_step)
                    continue
                self.substitutes.replaced_views += int((images != self.sampler.images(epoch, views)).sum())
                yield batch
                step += 1
        finally:
            reader.close()


class ValidationLoader(_Loader):
    """Validation batches of this rank: iterate over it as often as wanted."""

    def __init__(
        self,
        images: ImageSet,
        sampler: ValidationSampler,
        *,
        image_size_px: int,
        crop_ratio: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: str = "cpu",
        device_id: int = 0,
        decoder: str = "auto",
        hardware_decoder_share: float = HARDWARE_DECODER_SHARE,
        num_threads: int = 2,
        prefetch: int = 2,
        dtype: torch.dtype = torch.float32,
        bad_sample: BadSample = "raise",
        backend: Backend = "graph",
        copies: bool = False,
    ) -> None:
        """bad_sample `replace` leaves bad images out, since nothing can stand in for them in a score. copies: as the
        training loader's.

        ValueError for a crop ratio outside (0, 1], or a native backend that is not built.
        """
        super().__init__(images, device, device_id, num_threads, prefetch, dtype, bad_sample, backend, copies)
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"eval.crop_ratio must be above 0 and at most 1, got {crop_ratio}")
        self.sampler = sampler
        self.bad = set(images.bad.tolist())
        self.graph_options: dict[str, Any] = {
            "image_size_px": image_size_px,
            "crop_ratio": crop_ratio,
            "mean": mean,
            "std": std,
            "device": self.dali_device,
            "feeds": images.feeds,
            "decoder": decoder,
            "hardware_decoder_share": hardware_decoder_share,
            "dtype": self.dali_dtype,
            "backend": self.backend,
            "batch_size": sampler.batch_size,
        }

    def _images(self, batch: int) -> np.ndarray:
        images = self.sampler.images(batch)
        return images[~np.isin(images, sorted(self.bad))] if self.bad else images

    def _build_from(self, batches: list[int]) -> tuple[Pipeline, ReadAhead]:
        reader = ReadAhead(self.images, lambda number: self._images(batches[number]), len(batches))

        def source(info: Any) -> list[Any]:
            if info.iteration >= len(batches):
                raise StopIteration
            return [reader.take(info.iteration)]

        pipeline = build_validation_pipeline(source, **self.graph_options, **self.pipeline_options)
        pipeline.build()
        return pipeline, reader

    def __iter__(self) -> Iterator[Batch]:
        left = self._non_empty(range(self.sampler.num_batches))
        return self._run_left(*self._build_from(left), left)

    def _run_left(self, pipeline: Pipeline, reader: ReadAhead, left: list[int]) -> Iterator[Batch]:
        try:
            while left:
                images = self._images(left[0])
                try:
                    batch = self._run(pipeline, images, images)
                except RuntimeError as error:
                    self._leave_out(*self._find_bad(images, error))
                    left = self._non_empty(left)
                    reader.close()
                    pipeline, reader = self._build_from(left)
                    continue
                yield batch
                left = left[1:]
        finally:
            reader.close()

    def _leave_out(self, bad: list[int], files: list[str]) -> None:
        self.bad.update(bad)
        for file in files:
            logger.warning("image %s cannot be read or decoded; it is left out of the scores", file)

    def _non_empty(self, batches: Any) -> list[int]:
        return [batch for batch in batches if len(self._images(batch))]
