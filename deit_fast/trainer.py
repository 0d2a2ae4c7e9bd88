"""A training run: built whole before anything is written, then epoch after epoch, resumable at any step."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deit_fast.dali_pipelines.loader import Batch

from .build_step import build_train_step, figures_of
from .checkpoint import newest_checkpoint, remove_partial_files
from .checkpoint_writer import CheckpointWriter
from .config import Config
from .config_file import write_config
from .config_rules import check_config
from .data import count_bad, open_train_and_val, train_loader, validation_loader
from .distributed import Ranks
from .evaluate import Scores, evaluate
from .interrupt import StopVote, catch_stop_signals
from .live import LiveLine
from .memory import DeviceMemory, is_out_of_memory
from .metrics import EpochSums, JsonLines, WaitClock
from .optim import scaled_lr
from .precision import choose_precision
from .run_log import RunLog, build_row, write_skipped
from .run_state import first_state, resume_path
from .schedule import learning_rate
from .start_report import prepare_host, say_start
from .watchdog import Watchdog


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the newest checkpoint, the last evaluation's scores, and this process's speed."""

    finished: bool
    step: int
    checkpoint: Path | None
    scores: Scores | None
    ema_scores: Scores | None
    images_per_second: float
    data_wait_fraction: float
    unsaved: str | None = None
    """Why the last state could not be saved; None when it is on the disk."""


class Trainer:
    """Everything of one run. Building it checks all that can be wrong with the input and writes nothing."""

    def __init__(self, config: Config, ranks: Ranks, title: str = "train") -> None:
        check_config(config)
        self.config, self.ranks, self.title = config, ranks, title
        self.folder = Path(config.checkpoint.dir)
        self.precision = choose_precision(config.runtime.precision, ranks.device)
        resume_from = resume_path(config.checkpoint)
        prepare_host(config, ranks)

        train_images, val_images = open_train_and_val(config.data)
        self.train_loader = train_loader(config, train_images, ranks, self.precision)
        self.sampler = self.train_loader.sampler
        self.val_loader = validation_loader(
            config.data,
            config.eval,
            val_images,
            config.model.image_size_px,
            ranks,
            self.precision,
            copies=bool(config.runtime.cuda_graphs),
        )
        self.last_step = self.sampler.steps_per_epoch * config.schedule.epochs

        self.state = first_state(config, train_images.classes, ranks, self.precision)
        self.peak_lr = scaled_lr(config.optim, self.state.global_batch_size)
        if resume_from is not None:
            self.state.restore(resume_from)
        self.train_step, self.teacher = build_train_step(config, self.state, ranks, self.precision, self.train_loader)

    @property
    def student(self) -> torch.nn.Module:
        """The model that is trained."""
        return self.state.student

    # Running

    def fit(self) -> Outcome:
        """Trains to the last epoch, or until a signal asks to stop; then everything is saved."""
        try:
            with ExitStack() as stack:
                self.open(stack)
                self._run()
            return self._outcome()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            from .planning.out_of_memory import advise_on

            line = advise_on(self.config, len(self.state.classes), self.precision, self.ranks.device)
            raise RuntimeError(line) from error

    def open(self, stack: ExitStack) -> None:
        """The run's folder, its log, its watchdog and its signals; each is closed however the run ends."""
        config, state = self.config, self.state
        if self.ranks.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_partial_files(self.folder)
            write_config(self.folder, config)
        self.metrics = JsonLines(self.folder / "metrics.jsonl")
        if self.ranks.is_main:
            self.metrics.keep(lambda row: row["epoch"] <= state.step // self.sampler.steps_per_epoch)
        self.best = best_top1(self.metrics.rows())
        self.scores: Scores | None = None
        self.ema_scores: Scores | None = None
        self.total = EpochSums()
        self.live = stack.enter_context(
            LiveLine(
                self.title,
                total_steps=self.last_step,
                first_step=state.step,
                epochs=config.schedule.epochs,
                enabled=self.ranks.is_main,
                log=self.folder / "log.txt",
            )
        )
        say_start(config, self.ranks, state.global_batch_size, self.train_loader.backend, self.live.say)
        figures = figures_of(config, self.student, self.teacher, self.ranks)
        self.log = RunLog(self.folder, self.live, epochs=config.schedule.epochs, figures=figures, first_step=state.step)
        stack.callback(self.log.close)
        if config.runtime.tensorboard and self.ranks.is_main:
            self.log.open_tensorboard(state.step)
        self.writer = CheckpointWriter(self.folder, config.checkpoint.keep_last, self.live.say)
        self.writer.newest = newest_checkpoint(self.folder)
        stack.callback(self.writer.wait)
        self.vote = StopVote(self.ranks, stack.enter_context(catch_stop_signals()))
        self.memory = DeviceMemory(self.ranks.device)
        self.watchdog = Watchdog(self.ranks, config.runtime.hang_timeout_s)
        stack.callback(self.watchdog.close)

    def _run(self) -> None:
        state, steps_per_epoch = self.state, self.sampler.steps_per_epoch
        batches = WaitClock(self.train_loader.batches(state.step, self.last_step))
        if state.step and state.step % steps_per_epoch == 0:
            self._finish_epoch()  # saved at the end of an epoch, whose evaluation may not have been written
        stopped = False
        while state.step < self.last_step and not stopped:
            stopped = self.train_stretch(batches)
            self._save()
            if state.step % steps_per_epoch == 0:
                self._finish_epoch()
        self.vote.close()
        self.writer.wait()
        self.ranks.barrier()  # none leaves, and ends the group, while the first still writes

    def train_stretch(self, batches: WaitClock[Batch]) -> bool:
        """Steps up to the end of the epoch, the next checkpoint within it, or a stop; whether it was a stop."""
        state, config = self.state, self.config
        steps_per_epoch = self.sampler.steps_per_epoch
        self.epoch = state.step // steps_per_epoch
        lr = learning_rate(self.epoch, config.schedule, self.peak_lr)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        end = next_border(state.step, steps_per_epoch, config.checkpoint.every_steps)
        self.student.train()
        # fp64 adds fp32 losses without rounding, so where a stretch ends does not show in the mean
        loss = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        logged, start = state.step, time.perf_counter()
        batches.take()
        stop = False
        while state.step < end and not stop:
            self.watchdog.beat(state.step)
            batch = next(batches)
            loss += self.train_step(batch, state.step, self.sampler.groups(state.step))
            state.step += 1
            self.live.step(state.step)
            stop = self.vote.agreed()
            if state.step % config.runtime.log_every_steps == 0 or state.step == end or stop:
                self._read_stretch(loss, EpochSums(0.0, state.step - logged, 0, time.perf_counter() - start), batches)
                loss.zero_()
                logged, start = state.step, time.perf_counter()
        return stop

    def _read_stretch(self, loss: torch.Tensor, stretch: EpochSums, batches: WaitClock[Batch]) -> None:
        """Reads losses and norms, which waits for the device, and adds the stretch of steps to the epoch's sums."""
        records = self.train_step.guard.take()
        replaced = loss.new_tensor(self.train_loader.substitutes.take_replaced())
        skipped = [record for record in records if record.skipped]
        distillation = loss.new_tensor(sum(record.distillation_loss for record in records if not record.skipped))
        sums = self.ranks.sum(torch.stack([loss, distillation, replaced])).tolist()
        stretch.loss, stretch.distillation_loss = (value / self.ranks.world_size for value in sums[:2])
        stretch.replaced_views = int(sums[2])
        stretch.images = stretch.steps * self.state.global_batch_size
        stretch.data_wait_seconds = batches.take()
        stretch.skipped_steps = len(skipped)
        self.state.sums.add(stretch)
        self.total.add(stretch)
        for record in skipped:
            write_skipped(self.folder, self.ranks.rank, record, self._images_of(record.step, record.views))
        row = build_row(
            self.state.step, self.epoch, self.state.optimizer.param_groups[0]["lr"], stretch,
            records[-1].gradient_norm, self.log.figures, self.memory,
            self.state.sums.skipped_steps,
        )  # fmt: skip
        self.log.add(row)
        allowed = self.config.optim.max_skipped_steps
        if self.state.sums.skipped_steps > allowed:
            raise RuntimeError(
                f"{self.state.sums.skipped_steps} steps of epoch {self.epoch + 1} had a loss or gradients that are not "
                f"finite, more than optim.max_skipped_steps {allowed}; their samples are in {self.folder}/"
                f"skipped_steps_rank*.jsonl, the last checkpoint is from before; a lower optim.lr or "
                "--runtime.precision fp32 may help"
            )

    def _images_of(self, step: int, views: torch.Tensor) -> list[str]:
        """The files that a step showed on this rank."""
        loader, epoch = self.train_loader, step // self.sampler.steps_per_epoch
        numbers = views.numpy()
        shown = loader.substitutes.replace(epoch, numbers, self.sampler.images(epoch, numbers))
        return [loader.images.name(int(image)) for image in shown]

    # Saving and scoring

    def _save(self) -> None:
        """Saves from the first rank while all go on."""
        if self.ranks.is_main:
            self.writer.save(self.state.as_dict())

    def _finish_epoch(self) -> None:
        """Evaluates where due, writes the epoch's row, and starts new sums."""
        state = self.state
        epoch = state.step // self.sampler.steps_per_epoch
        sums = state.sums
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": state.step,
            "loss": sums.mean_loss,
            "distillation_loss": sums.mean_distillation_loss if self.log.figures.distilled else None,
            "lr": state.optimizer.param_groups[0]["lr"],
            "images_per_second": sums.images_per_second,
            "data_wait_fraction": sums.data_wait_fraction,
            "bad_images": count_bad(self.train_loader.substitutes, self.ranks),
            "replaced_views": sums.replaced_views,
            "skipped_steps": sums.skipped_steps,
        }
        if epoch % self.config.eval.every_epochs == 0 or state.step == self.last_step:
            self.watchdog.beat(state.step)
            state.optimizer.zero_grad()  # of no more use: room for the evaluation, and a CUDA graph's path ends
            begin = self.train_step.begin
            self.scores = evaluate(self.student, self.val_loader, self.ranks, self.precision, begin)
            row["val"] = self.scores.as_dict()
            if state.ema:
                self.ema_scores = evaluate(state.ema.module, self.val_loader, self.ranks, self.precision, begin)
                row["val_ema"] = self.ema_scores.as_dict()
            scored = top1_line(self.scores, self.ema_scores)
            self.live.say(f"{self.title}  epoch {epoch}  loss {sums.mean_loss:.3f}  {scored}")
        if self.ranks.is_main:
            self.metrics.keep(lambda row: row["epoch"] < epoch)
            self.metrics.append(row)
            self.log.add_scores(state.step, row)
            if self.config.checkpoint.keep_best and (best := best_top1([row])) > self.best:
                self.best = best
                self.writer.keep_as_best()
        state.sums = EpochSums()

    def _outcome(self) -> Outcome:
        return Outcome(
            self.state.step == self.last_step,
            self.state.step,
            self.writer.newest,
            self.scores,
            self.ema_scores,
            self.total.images_per_second,
            self.total.data_wait_fraction,
            self.writer.failed,
        )


def next_border(step: int, steps_per_epoch: int, every_steps: int | None) -> int:
    """The next step at which a checkpoint is due: every `every_steps` of the run, and at the end of each epoch."""
    end = (step // steps_per_epoch + 1) * steps_per_epoch
    return end if every_steps is None else min(end, (step // every_steps + 1) * every_steps)


def best_top1(rows: list[dict[str, Any]]) -> float:
    """The best top-1 in rows of metrics.jsonl, of the weights or of their moving average; -inf without any."""
    return max((row[name]["top1"]["average"] for row in rows for name in ("val", "val_ema") if name in row),
               default=-math.inf)  # fmt: skip


def top1_line(scores: Scores, ema_scores: Scores | None) -> str:
    """`top-1 91.2 % (cls 90.9, dist 91.0)  ema 91.5 %`"""
    text = f"top-1 {scores.top1['average']:.2f} %"
    if scores.top1["dist"] is not None:
        text += f" (cls {scores.top1['cls']:.2f}, dist {scores.top1['dist']:.2f})"
    return text if ema_scores is None else f"{text}  EMA {ema_scores.top1['average']:.2f} %"
