"""The training step without loader and teacher, on synthetic images: checked by its gradients, timed whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deit_fast.benchmarks.step import synthetic_batch
from deit_fast.build_step import assemble_step, compile_student
from deit_fast.config import Config
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.data import batch_dtype
from deit_fast.distributed import Ranks
from deit_fast.precision import choose_precision
from deit_fast.run_state import first_state
from deit_fast.step import TrainStep, no_teacher
from deit_fast.tuned import with_values

from .question import CandidateError, Repeat

CHECKED_IMAGES = 4
IMAGES_ON_CPU = 8
"""What an image costs there hardly depends on the batch; on a GPU it does, and the run's own is timed."""
MOST_GRAPHS = 64
"""Of the code of a block, over all candidates of a question: torch's 8 hold for one run."""
REFERENCE = {
    "runtime.precision": "fp32",
    "runtime.attention": "reference",
    "runtime.kernels": "reference",
    "runtime.compile": False,
    "runtime.cuda_graphs": False,
}
FLOOR = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 1e-3}
"""Relative error that rounding in another order explains."""
LARGEST_ERROR = 0.2
"""Of gradients in any precision; a wrong backward is off by about 1. bf16 itself is off by 0.01 to 0.05."""
LOSS_SCALE = 1024.0
"""Of fp16 in the check, where the usual first one, 65536, may overflow and be lowered only by the steps after."""


class StepWorkload:
    """Student, loss, backward and optimizer."""

    def __init__(self, ranks: Ranks, num_classes: int) -> None:
        self.ranks, self.num_classes = ranks, num_classes
        self.references: dict[str, list[Tensor]] = {}

    def check(self, config: Config) -> float:
        """At most twice the error of plain torch in the same precision, both against plain torch in fp32."""
        precision = choose_precision(config.runtime.precision, self.ranks.device)
        truth = self._reference(config, "fp32")
        allowed = min(LARGEST_ERROR, 2 * relative_error(self._reference(config, precision), truth) + FLOOR[precision])
        error = relative_error(self._loss_and_gradients(config), truth)
        if not error <= allowed:  # nor NaN
            raise CandidateError(f"its gradients are off by {error:.2g} of their norm, {allowed:.2g} is allowed")
        return error

    def _reference(self, config: Config, precision: str) -> list[Tensor]:
        if precision not in self.references:
            plain = with_values(config, REFERENCE | {"runtime.precision": precision})
            self.references[precision] = self._loss_and_gradients(plain)
        return self.references[precision]

    def _loss_and_gradients(self, config: Config) -> list[Tensor]:
        config = with_batch_size(config, CHECKED_IMAGES)
        optim = replace(config.optim, name="adamw", apex="never", clip_grad_norm=None, ema_decay=None)
        step, batch, groups = self.build(replace(config, optim=optim), loss_scale=LOSS_SCALE)
        loss = step(batch, 0, groups)
        gradients = [weight.grad for weight in step.student.parameters() if weight.grad is not None]
        tensors = [loss, *gradients]
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise CandidateError("its loss or gradients are not finite")
        return [tensor.detach().clone() for tensor in tensors]  # of CUDA graphs, the memory is used again

    def ready(self, config: Config) -> Repeat:
        """The run's batch; on a CPU no more than some images of it."""
        if self.ranks.device.type == "cpu":
            config = with_batch_size(config, min(IMAGES_ON_CPU, config.runtime.batch_size_per_device))
        step, batch, groups = self.build(with_batch_size(config, config.runtime.batch_size_per_device))

        def turn(count: int) -> int:
            for number in range(count):
                step(batch, number, groups)
            step.guard.take()  # waits for the device
            step.optimizer.zero_grad()  # room for the others, which wait for their turns
            return count * len(batch.labels)

        return lambda count: lambda: lambda: turn(count)

    def build(self, config: Config, loss_scale: float = 2.0**16) -> tuple[TrainStep, Batch, list[int]]:
        """A step with first weights, a batch, and its mixing groups."""
        precision = choose_precision(config.runtime.precision, self.ranks.device)
        batch = synthetic_batch(config, self.ranks.device, batch_dtype(config, precision))
        teacher = no_teacher if config.distill.kind == "none" else self._fixed_logits(len(batch.labels))
        config = replace(config, distill=replace(config.distill, label_cache=None))
        classes = tuple(map(str, range(self.num_classes)))
        state = first_state(config, classes, self.ranks, precision)
        state.scaler = torch.amp.GradScaler(self.ranks.device.type, loss_scale, enabled=state.scaler.is_enabled())
        if config.runtime.compile:
            torch._dynamo.config.recompile_limit = MOST_GRAPHS
            compile_student(config, state.student)
        step = assemble_step(config, state, state.student.train(), teacher, self.ranks, precision)
        return step, batch, list(range(len(batch.labels) // config.mix.group_size))

    def _fixed_logits(self, count: int) -> Callable[[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(count, self.num_classes, generator=generator).to(self.ranks.device)
        return lambda _images: logits


def with_batch_size(config: Config, size: int) -> Config:
    """One pass of `size` images, even, in mixing groups that divide it; weights that are not read from a file."""
    group = config.mix.group_size if size % config.mix.group_size == 0 else size
    return replace(
        config,
        mix=replace(config.mix, group_size=group),
        model=replace(config.model, init_checkpoint=None),
        runtime=replace(config.runtime, batch_size_per_device=size, accumulate_steps=1),
    )


def relative_error(tensors: list[Tensor], truth: list[Tensor]) -> float:
    """The larger of the first tensor's and of all others' together: |difference| / |truth| in the Euclidean norm."""

    def of(ours: list[Tensor], true: list[Tensor]) -> float:
        difference = torch.stack([(a.float() - b.float()).norm() for a, b in zip(ours, true, strict=True)]).norm()
        return (difference / torch.stack([b.float().norm() for b in true]).norm()).item()

    return max(of(tensors[:1], truth[:1]), of(tensors[1:], truth[1:]))
