"""What a run is made of at a step, as a checkpoint holds it, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import load_checkpoint, newest_checkpoint, newest_readable_checkpoint
from .config import CheckpointConfig, Config
from .config_file import config_as_dict, differing_keys
from .data import global_batch_size
from .distributed import Ranks
from .ema import Ema
from .metrics import EpochSums
from .optim import build_optimizer
from .precision import gradient_scaler
from .student import build_student
from .weights import load_weights


def resume_path(checkpoint: CheckpointConfig) -> Path | None:
    """The checkpoint to go on from; ValueError when a new run would write over an old one."""
    folder = Path(checkpoint.dir)
    if checkpoint.resume == "auto":
        return newest_readable_checkpoint(folder)
    if checkpoint.resume != "none":
        return Path(checkpoint.resume)
    newest = newest_checkpoint(folder)
    if newest is not None:
        raise ValueError(
            f"checkpoint.dir {folder} already holds a run ({newest.name}); go on with it by "
            "--checkpoint.resume auto, or choose another --checkpoint.dir"
        )
    return None


@dataclass
class RunState:
    """Weights, moving average, optimizer, loss scale, and how far the run is.

    There is no generator and no sampler to save: every random choice is a function of the seed and the step, and what
    the trainer reports of the epoch so far is in `sums`.
    """

    config: Config
    classes: tuple[str, ...]
    global_batch_size: int
    student: nn.Module
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int
    sums: EpochSums

    def as_dict(self) -> dict[str, Any]:
        """For the checkpoint; tensors are the live ones."""
        return {
            "step": self.step,
            "model": self.student.state_dict(),
            "model_ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_class": type(self.optimizer).__name__,
            "scaler": self.scaler.state_dict(),
            "sums": self.sums.as_dict(),
            "classes": list(self.classes),
            "global_batch_size": self.global_batch_size,
            "config": config_as_dict(self.config),
        }

    def restore(self, path: Path) -> None:
        """Takes a checkpoint up; ValueError, naming what differs, for one of another run."""
        state = load_checkpoint(path)
        self._check(path, state)
        load_weights(self.student, state["model"])
        if self.ema:
            self.ema.load_state_dict(state["model_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:  # a run may go on in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.sums = state["step"], EpochSums(**state["sums"])

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        differing = differing_keys(state["config"], config_as_dict(self.config))
        if differing:
            raise ValueError(
                f"checkpoint {path} was made with another {differing[0]}; resume with the run's own settings "
                f"({self.config.checkpoint.dir}/config.yaml), or start from its weights with "
                f"--model.init_checkpoint {path}"
            )
        if state["classes"] != list(self.classes):
            raise ValueError(
                f"checkpoint {path} was trained on other classes than those of data.path {self.config.data.path}"
            )
        if state["global_batch_size"] != self.global_batch_size:
            raise ValueError(
                f"checkpoint {path} was trained with a global batch of {state['global_batch_size']}, now it would be "
                f"{self.global_batch_size}: runtime.batch_size_per_device times runtime.accumulate_steps times the "
                "number of processes has to stay"
            )
        ours = type(self.optimizer).__name__
        if state.get("optimizer_class", ours) != ours:
            raise ValueError(
                f"checkpoint {path} holds the state of {state['optimizer_class']}, here it would be {ours}: NVIDIA's "
                "apex is installed on one side only, or optim.apex differs"
            )


def first_state(config: Config, classes: tuple[str, ...], ranks: Ranks, precision: str) -> RunState:
    """The state before the first step: first weights on this rank's device, nothing averaged, nothing counted."""
    batch_size = global_batch_size(config, ranks)
    student = build_student(config, len(classes)).to(ranks.device)
    return RunState(
        config=config,
        classes=classes,
        global_batch_size=batch_size,
        student=student,
        ema=Ema(student, config.optim.ema_decay) if config.optim.ema_decay is not None else None,
        optimizer=build_optimizer(student, config.optim, global_batch_size=batch_size),
        scaler=gradient_scaler(precision, ranks.device),
        step=0,
        sums=EpochSums(),
    )
