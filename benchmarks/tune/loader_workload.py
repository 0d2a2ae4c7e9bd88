"""The training loader on real images: checked by its first batch, timed alone on a CPU and before a step on a GPU.

On a GPU decoding and training share the device, so what counts is the speed of both together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch

from deit_fast.benchmarks.loader_stages import LoaderTurn, count_images
from deit_fast.benchmarks.timing import Prepare
from deit_fast.config import Config
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.loader import Batch, TrainLoader
from deit_fast.data import train_loader
from deit_fast.distributed import Ranks
from deit_fast.precision import choose_precision
from deit_fast.tuned import with_values

from .question import CandidateError, Repeat
from .step_workload import StepWorkload, with_batch_size

CHECKED_IMAGES = 16
LARGEST_DIFFERENCE = 0.05
"""Mean over the normalised pixels, about 3 grey levels: decoders and resizes differ by less than 1."""
REFERENCE = {"data.backend": "graph", "data.decoder": "cpu", "data.num_threads": 1, "data.prefetch": 1}
BATCHES_IN_A_TURN = 4
IMAGES_IN_A_BATCH_ON_CPU = 32


class LoaderWorkload:
    """The loader of one device."""

    def __init__(self, ranks: Ranks, images: ImageSet, step: StepWorkload) -> None:
        self.ranks, self.images, self.step = ranks, images, step
        self.truth: Batch | None = None

    def check(self, config: Config) -> float:
        """The same views and labels as DALI's graph with JPEGs decoded on the CPU, and almost the same pixels."""
        config = with_values(with_batch_size(config, CHECKED_IMAGES), {"runtime.kernels": "reference"})  # no bytes
        if self.truth is None:
            self.truth = self._first_batch(with_values(config, REFERENCE))
        batch = self._first_batch(config)
        if not (torch.equal(batch.views, self.truth.views) and torch.equal(batch.labels, self.truth.labels)):
            raise CandidateError("it shows other images")
        difference = (batch.images.float() - self.truth.images.float()).abs().mean().item()
        if not difference <= LARGEST_DIFFERENCE:
            raise CandidateError(f"its pixels differ by {difference:.2g} on average, {LARGEST_DIFFERENCE} is allowed")
        return difference

    def _first_batch(self, config: Config) -> Batch:
        batch = next(self._loader(config).batches(0, 1))
        return batch._replace(images=batch.images.clone())  # the loader's memory is used again

    def _loader(self, config: Config) -> TrainLoader:
        precision = choose_precision(config.runtime.precision, self.ranks.device)
        return train_loader(config, self.images, self.ranks, precision)

    def ready(self, config: Config) -> Repeat:
        """Some batches of a pipeline that is built before each turn."""
        size = config.runtime.batch_size_per_device
        if self.ranks.device.type == "cpu":
            size = min(IMAGES_IN_A_BATCH_ON_CPU, size)
        config = with_batch_size(config, size)
        loader = self._loader(config)
        on_gpu = self.ranks.device.type == "cuda"
        consume = self._training(config, loader) if on_gpu else partial(count_images, device=self.ranks.device)

        def prepare(count: int) -> Prepare:
            return lambda: LoaderTurn(loader, count * BATCHES_IN_A_TURN, consume)

        return prepare

    def _training(self, config: Config, loader: TrainLoader) -> Callable[[Iterable[Batch]], int]:
        """A step for each batch."""
        step, _, _ = self.step.build(config)

        def train(batches: Iterable[Batch]) -> int:
            images = 0
            for number, batch in enumerate(batches):
                step(batch, number, loader.sampler.groups(number))
                images += len(batch.labels)
            step.guard.take()  # waits for the device
            return images

        return train
