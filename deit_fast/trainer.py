"""A training run: built whole before anything is written, then epoch after epoch, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deit_fast.dali_pipelines.loader import Batch

from .checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from .config import IMAGENET_MEAN, IMAGENET_STD, Config
from .config_file import config_as_dict, differing_keys, write_config
from .config_rules import check_config
from .data import count_bad, global_batch_size, open_train_and_val, train_loader, validation_loader
from .distributed import Ranks
from .ema import Ema
from .evaluate import Scores, evaluate
from .interrupt import StopRequest, catch_stop_signals
from .losses import build_loss
from .metrics import EpochSums, LiveLine, MetricsFile, WaitClock
from .optim import build_optimizer, scaled_lr
from .precision import DTYPES, choose_precision, gradient_scaler
from .schedule import learning_rate
from .step import TrainStep, no_teacher
from .student import build_student, compile_blocks
from .teacher import build_teacher
from .weights import load_weights


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


class Trainer:
    """Everything of one run. Building it checks all that can be wrong with the input and writes nothing."""

    def __init__(self, config: Config, ranks: Ranks, title: str = "train") -> None:
        check_config(config)
        self.config, self.ranks, self.title = config, ranks, title
        self.folder = Path(config.checkpoint.dir)
        self.precision = choose_precision(config.runtime.precision, ranks.device)
        resume_from = self._resume_path()

        train_images, val_images = open_train_and_val(config.data)
        self.classes = train_images.classes
        self.global_batch_size = global_batch_size(config, ranks)
        self.train_loader = train_loader(config, train_images, ranks, self.precision)
        self.sampler = self.train_loader.sampler
        self.val_loader = validation_loader(
            config.data, config.eval, val_images, config.model.image_size_px, ranks, self.precision
        )
        self.last_step = self.sampler.steps_per_epoch * config.schedule.epochs

        self.student = build_student(config, len(self.classes)).to(ranks.device)
        self.ema = Ema(self.student, config.optim.ema_decay) if config.optim.ema_decay is not None else None
        self.peak_lr = scaled_lr(config.optim, self.global_batch_size)
        self.optimizer = build_optimizer(self.student, config.optim, global_batch_size=self.global_batch_size)
        self.scaler = gradient_scaler(self.precision, ranks.device)
        self.step, self.sums = 0, EpochSums()
        if resume_from is not None:
            self._restore(resume_from)
        self.train_step = self._build_step()

    def _build_step(self) -> TrainStep:
        config, ranks = self.config, self.ranks
        teacher: Callable[[torch.Tensor], torch.Tensor | None] = no_teacher
        if config.distill.kind != "none":
            teacher = build_teacher(
                config.distill,
                num_classes=len(self.classes),
                student_mean=IMAGENET_MEAN,
                student_std=IMAGENET_STD,
                device=ranks.device,
                autocast_dtype=None if self.precision == "fp32" else DTYPES[self.precision],
            )
        if config.runtime.compile:
            compile_blocks(self.student)
        callee: nn.Module = self.student
        if ranks.world_size > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            callee = DistributedDataParallel(self.student, device_ids=devices, gradient_as_bucket_view=True)
        return TrainStep(
            config,
            callee,
            model=self.student,
            teacher=teacher,
            loss=build_loss(config.distill, config.mix),
            optimizer=self.optimizer,
            scaler=self.scaler,
            ema=self.ema,
            precision=self.precision,
            device=ranks.device,
            rank=ranks.rank,
        )

    # Saving and resuming

    def _resume_path(self) -> Path | None:
        """The checkpoint to go on from; ValueError when a new run would write over an old one."""
        resume = self.config.checkpoint.resume
        newest = newest_checkpoint(self.folder)
        if resume == "auto":
            return newest
        if resume != "none":
            return Path(resume)
        if newest is not None:
            raise ValueError(
                f"checkpoint.dir {self.folder} already holds a run ({newest.name}); go on with it by "
                "--checkpoint.resume auto, or choose another --checkpoint.dir"
            )
        return None

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.student.state_dict(),
            "model_ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums.as_dict(),
            "classes": list(self.classes),
            "global_batch_size": self.global_batch_size,
            "config": config_as_dict(self.config),
        }

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        differing = differing_keys(state["config"], config_as_dict(self.config))
        if differing:
            raise ValueError(
                f"checkpoint {path} was made with another {differing[0]}; resume with the run's own settings "
                f"({self.folder}/config.yaml), or start from its weights with --model.init_checkpoint {path}"
            )
        if state["classes"] != list(self.classes):
            raise ValueError(
                f"checkpoint {path} was trained on other classes than those of data.path {self.config.data.path}"
            )
        if state["global_batch_size"] != self.global_batch_size:
            raise ValueError(
                f"checkpoint {path} was trained with a global batch of {state['global_batch_size']}, now it would be "
                f"{self.global_batch_size}: runtime.batch_size_per_device times the number of processes has to stay"
            )
        load_weights(self.student, state["model"])
        if self.ema:
            self.ema.load_state_dict(state["model_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.sums = state["step"], EpochSums(**state["sums"])

    def save(self) -> Path | None:
        """Saves from the first rank; the others wait, so that none runs ahead into a run that is not saved."""
        path = None
        if self.ranks.is_main:
            path = save_checkpoint(self.folder, self._state(), self.config.checkpoint.keep_last)
        self.ranks.barrier()
        return path

    # Running

    def fit(self) -> Outcome:
        """Trains to the last epoch, or until a signal asks to stop; then everything is saved."""
        steps_per_epoch = self.sampler.steps_per_epoch
        if self.ranks.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_config(self.folder, self.config)
            MetricsFile(self.folder).keep_epochs(self.step // steps_per_epoch)
        self.scores: Scores | None = None
        self.ema_scores: Scores | None = None
        self.total = EpochSums()
        checkpoint = newest_checkpoint(self.folder)
        live = LiveLine(
            self.title,
            total_steps=self.last_step,
            first_step=self.step,
            epochs=self.config.schedule.epochs,
            enabled=self.ranks.is_main,
        )
        batches = WaitClock(self.train_loader.batches(self.step, self.last_step))
        with catch_stop_signals() as stop, live:
            if self.step and self.step % steps_per_epoch == 0:
                self._finish_epoch(live)  # saved at the end of an epoch, whose evaluation may not have been written
            while self.step < self.last_step and not self._agree_to_stop(stop):
                self._train_epoch(batches, live, stop)
                checkpoint = self.save()
                if self.step % steps_per_epoch == 0:
                    self._finish_epoch(live)
        return Outcome(
            self.step == self.last_step,
            self.step,
            checkpoint,
            self.scores,
            self.ema_scores,
            self.total.images_per_second,
            self.total.data_wait_fraction,
        )

    def _train_epoch(self, batches: WaitClock[Batch], live: LiveLine, stop: StopRequest) -> None:
        """Steps up to the end of the epoch, the next checkpoint within it, or a stop."""
        steps_per_epoch, config = self.sampler.steps_per_epoch, self.config
        epoch = self.step // steps_per_epoch
        lr = learning_rate(epoch, config.schedule, self.peak_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        end = next_border(self.step, steps_per_epoch, config.checkpoint.every_steps)
        self.student.train()
        # fp64 adds fp32 losses without rounding, so where a stretch ends does not show in the mean
        loss = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        logged, start = self.step, time.perf_counter()
        batches.take()
        while self.step < end:
            batch = next(batches)
            loss += self.train_step(batch, self.step, self.sampler.groups(self.step))
            self.step += 1
            live.step(self.step)
            log_now = self.step % config.runtime.log_every_steps == 0
            if log_now or self.step == end or (self.ranks.world_size == 1 and stop):
                stretch = self._read_stretch(loss, self.step - logged, start, batches.take())
                live.numbers(self.step, epoch, stretch)
                loss.zero_()
                logged, start = self.step, time.perf_counter()
                if self._agree_to_stop(stop):
                    return

    def _read_stretch(self, loss: torch.Tensor, steps: int, start: float, waited: float) -> EpochSums:
        """Reads the summed loss, which waits for the device, and adds the stretch of steps to the epoch's sums."""
        replaced = loss.new_tensor(self.train_loader.substitutes.take_replaced())
        total, replaced_views = self.ranks.sum(torch.stack([loss, replaced])).tolist()
        total /= self.ranks.world_size
        if not math.isfinite(total):
            raise RuntimeError(
                f"the loss is {total / steps} at step {self.step}; nothing was saved since the last checkpoint in "
                f"{self.folder}; a lower optim.lr or --runtime.precision fp32 may help"
            )
        images = steps * self.global_batch_size
        stretch = EpochSums(total, steps, images, time.perf_counter() - start, waited, int(replaced_views))
        self.sums.add(stretch)
        self.total.add(stretch)
        return stretch

    def _agree_to_stop(self, stop: StopRequest) -> bool:
        """Whether any rank was asked to stop: all leave at the same step, or the others would wait for it for ever."""
        asked = torch.tensor(float(bool(stop)), device=self.ranks.device)
        return bool(self.ranks.sum(asked).item())

    def _finish_epoch(self, live: LiveLine) -> None:
        """Evaluates where due, writes the epoch's row, and starts new sums."""
        epoch = self.step // self.sampler.steps_per_epoch
        row = {
            "epoch": epoch,
            "step": self.step,
            "loss": self.sums.mean_loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": self.sums.images_per_second,
            "data_wait_fraction": self.sums.data_wait_fraction,
            "bad_images": count_bad(self.train_loader.substitutes, self.ranks),
            "replaced_views": self.sums.replaced_views,
        }
        if epoch % self.config.eval.every_epochs == 0 or self.step == self.last_step:
            self.scores = evaluate(self.student, self.val_loader, self.ranks, self.precision)
            row["val"] = self.scores.as_dict()
            if self.ema:
                self.ema_scores = evaluate(self.ema.module, self.val_loader, self.ranks, self.precision)
                row["val_ema"] = self.ema_scores.as_dict()
            scored = top1_line(self.scores, self.ema_scores)
            live.say(f"{self.title}  epoch {epoch}  loss {self.sums.mean_loss:.3f}  {scored}")
        if self.ranks.is_main:
            metrics = MetricsFile(self.folder)
            metrics.keep_epochs(epoch - 1)
            metrics.append(row)
        self.sums = EpochSums()


def next_border(step: int, steps_per_epoch: int, every_steps: int | None) -> int:
    """The next step at which a checkpoint is due: every `every_steps` of the run, and at the end of each epoch."""
    end = (step // steps_per_epoch + 1) * steps_per_epoch
    return end if every_steps is None else min(end, (step // every_steps + 1) * every_steps)


def top1_line(scores: Scores, ema_scores: Scores | None) -> str:
    """`top-1 91.2 % (cls 90.9, dist 91.0)  ema 91.5 %`"""
    text = f"top-1 {scores.top1['average']:.2f} %"
    if scores.top1["dist"] is not None:
        text += f" (cls {scores.top1['cls']:.2f}, dist {scores.top1['dist']:.2f})"
    return text if ema_scores is None else f"{text}  EMA {ema_scores.top1['average']:.2f} %"
