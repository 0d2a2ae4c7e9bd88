"""The run's figures at every log step: for people, in `steps.jsonl`, and for TensorBoard."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .budget import BUDGET_DAYS, projected_days
from .guard import StepRecord
from .live import LiveLine
from .memory import DeviceMemory
from .metrics import EpochSums, JsonLines

logger = logging.getLogger("deit_fast")


@dataclass(frozen=True)
class Figures:
    """What is constant over a run and turns images/s into utilisation."""

    devices: int
    flops_per_image: float
    """Student forward and backward, and the teacher's forward where one runs."""
    peak_flops: float | None
    """Of one device; None where it is not known."""
    distilled: bool = False
    """Whether a part of the loss is a teacher's."""


@dataclass(frozen=True)
class LogRow:
    """One line of steps.jsonl: the steps since the line before."""

    step: int
    epoch: int
    loss: float
    label_loss: float | None
    distillation_loss: float | None
    """The two parts of the loss, which add up to it: 1 - alpha times the labels' and alpha times the teacher's; None
    without a teacher."""
    lr: float
    gradient_norm: float
    images_per_second: float
    images_per_second_per_device: float
    mfu: float | None
    """Model FLOPs utilisation: images/s x FLOPs of an image / peak FLOP/s of all devices; None without a known peak."""
    data_wait_fraction: float
    torch_memory_gib: float | None
    """Most that torch's allocator held on this rank's device; None on a CPU."""
    dali_memory_gib: float | None
    """What DALI holds there (memory.DeviceMemory); None on a CPU."""
    other_memory_gib: float | None
    """Used on the device besides: CUDA context, NCCL, other processes; None on a CPU."""
    host_memory_gib: float
    """Largest resident memory of this process so far."""
    replaced_views: int
    """Views of all ranks that showed another image because theirs cannot be read."""
    skipped_steps: int
    """In this epoch so far."""
    projected_days: float
    """For 300 epochs of ImageNet-1k at this speed."""


def build_row(
    step: int, epoch: int, lr: float, stretch: EpochSums, norm: float, figures: Figures, memory: DeviceMemory,
    skipped_steps: int,
) -> LogRow:  # fmt: skip
    """The row of a stretch of steps."""
    speed = stretch.images_per_second
    distillation = stretch.mean_distillation_loss if figures.distilled else None
    peak = figures.peak_flops
    return LogRow(
        step=step,
        epoch=epoch,
        loss=stretch.mean_loss,
        label_loss=None if distillation is None else stretch.mean_loss - distillation,
        distillation_loss=distillation,
        lr=lr,
        gradient_norm=norm,
        images_per_second=speed,
        images_per_second_per_device=speed / figures.devices,
        mfu=None if peak is None else speed * figures.flops_per_image / (peak * figures.devices),
        data_wait_fraction=stretch.data_wait_fraction,
        torch_memory_gib=memory.torch_gib,
        dali_memory_gib=memory.dali_gib,
        other_memory_gib=memory.other_gib,
        host_memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        replaced_views=stretch.replaced_views,
        skipped_steps=skipped_steps,
        projected_days=projected_days(speed),
    )


def row_text(row: LogRow, epochs: int, devices: int) -> str:
    """The row for people, on one line; days are those of 300 epochs of ImageNet-1k, whatever is trained on."""
    text = f"epoch {row.epoch + 1}/{epochs}  loss {row.loss:.3f}"
    if row.distillation_loss is not None:
        text += f" (labels {row.label_loss:.3f} + teacher {row.distillation_loss:.3f})"
    text += f"  lr {row.lr:.2e}  {row.images_per_second:,.0f} images/s"
    if devices > 1:
        text += f" ({row.images_per_second_per_device:,.0f} per device)"
    if row.mfu is not None:
        text += f"  MFU {row.mfu:.1%}"
    text += f"  data wait {row.data_wait_fraction:.0%}"
    if row.torch_memory_gib is not None:
        text += (
            f"  memory torch {row.torch_memory_gib:.1f} + DALI {row.dali_memory_gib:.1f} + other "
            f"{row.other_memory_gib:.1f} GiB"
        )
    if row.replaced_views:
        text += f"  replaced {row.replaced_views} views of bad images"
    if row.skipped_steps:
        text += f"  skipped steps {row.skipped_steps}"
    return f"{text}  ImageNet: {row.projected_days:,.1f} days of {BUDGET_DAYS:g}"


class RunLog:
    """Writes rows on the first rank; others write only their skipped steps."""

    def __init__(self, folder: Path, live: LiveLine, *, epochs: int, figures: Figures, first_step: int) -> None:
        """first_step: rows of later steps, from before a resume, are forgotten."""
        self.folder, self.live, self.epochs, self.figures = folder, live, epochs, figures
        self.enabled = not live.console.quiet
        self.steps = JsonLines(folder / "steps.jsonl")
        self.board: Any = None
        if self.enabled:
            self.steps.keep(lambda row: row["step"] <= first_step)

    def open_tensorboard(self, first_step: int) -> None:
        """RuntimeError, naming the package, when TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RuntimeError(
                "runtime.tensorboard needs the package tensorboard: pip install 'deit-fast[tensorboard]'"
            ) from error
        self.board = SummaryWriter(self.folder / "tensorboard", purge_step=first_step + 1)

    def add(self, row: LogRow) -> None:
        """Shows and writes a row."""
        if not self.enabled:
            return
        self.live.numbers(row.step, row_text(row, self.epochs, self.figures.devices))
        self.steps.append(asdict(row))
        self._to_board(asdict(row), row.step)

    def add_scores(self, step: int, row: dict[str, Any]) -> None:
        """Top-1 of an evaluation, for TensorBoard; metrics.jsonl has it too."""
        scores = {f"{name}/{head}": value for name in ("val", "val_ema") if name in row
                  for head, value in row[name]["top1"].items()}  # fmt: skip
        self._to_board(scores, step)

    def _to_board(self, values: dict[str, Any], step: int) -> None:
        def add(board: Any) -> None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    board.add_scalar(name, value, step)

        self._with_board(add)

    def close(self) -> None:
        """Writes what TensorBoard's writer still holds."""
        self._with_board(lambda board: board.close())

    def _with_board(self, act: Callable[[Any], None]) -> None:
        """A full disk ends TensorBoard's events, and not the run; its thread tells of it at a later call."""
        if self.board is not None:
            try:
                act(self.board)
            except OSError as error:
                self.board = None
                logger.warning("TensorBoard's events cannot be written (%s); the run goes on", error.strerror)


def write_skipped(folder: Path, rank: int, record: StepRecord, images: list[str]) -> None:
    """Notes the samples of a skipped step, on every rank: `skipped_steps_rank0.jsonl`."""
    row = {
        "step": record.step,
        "loss": repr(record.loss),
        "gradient_norm": repr(record.gradient_norm),
        "views": record.views.tolist(),
        "images": images,
    }
    JsonLines(folder / f"skipped_steps_rank{rank}.jsonl").append(row)
