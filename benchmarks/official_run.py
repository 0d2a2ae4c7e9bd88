"""Runs the official main.py: `python -m deit_fast.benchmarks.official_run DIR --warm-up-steps N [--bf16] ARGUMENTS`.

It trains as its authors wrote it, and stands still between two turns, as steady_program.py wants it: each line on
standard input, a number of steps, lets that many through. What main.py prints goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .official_patches import apply_patches

Batch = tuple[torch.Tensor, torch.Tensor]


class Shares:
    """Wall seconds of a turn: waiting for the loader, teacher's forward, optimizer; the student has the rest."""

    def __init__(self) -> None:
        self.seconds = {"loader": 0.0, "teacher": 0.0, "optimizer": 0.0}
        self.started: dict[str, float] = {}

    def start(self, name: str) -> None:
        """A part begins."""
        self.started[name] = time.perf_counter()

    def stop(self, name: str) -> None:
        """A part has ended."""
        self.seconds[name] += time.perf_counter() - self.started[name]

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, and its time."""

        def watched(*args: Any, **named: Any) -> Any:
            self.start(name)
            try:
                return function(*args, **named)
            finally:
                self.stop(name)

        return watched

    def take(self) -> dict[str, float]:
        """Seconds since the last call."""
        taken = dict(self.seconds)
        self.seconds = dict.fromkeys(taken, 0.0)
        return taken


def in_turns(
    batches: Iterable[Batch], warm_up_steps: int, commands: TextIO, reports: TextIO, shares: Shares
) -> Iterator[Batch]:
    """Passes the loader's batches on: `warm_up_steps`, then as many as each command says; ends the process after them.

    When the next batch is asked for, the step of the last one is done.
    """
    source = iter(batches)

    def some(steps: int) -> Iterator[Batch]:
        images, start = 0, time.perf_counter()
        for _ in range(steps):
            shares.start("loader")
            batch = next(source)
            shares.stop("loader")
            images += len(batch[0])
            yield batch
        report = {"images": images, "seconds": time.perf_counter() - start, "parts": shares.take()}
        print(json.dumps(report), file=reports, flush=True)

    yield from some(warm_up_steps)
    while command := commands.readline():
        yield from some(int(command))
    sys.exit()


def watch_parts(shares: Shares) -> None:
    """Times the parts of a step where the official program calls them."""
    import losses
    import timm.utils

    register_optimizer_step_pre_hook(lambda *_args: shares.start("optimizer"))
    register_optimizer_step_post_hook(lambda *_args: shares.stop("optimizer"))
    timm.utils.ModelEma.update = shares.watch("optimizer", timm.utils.ModelEma.update)
    construct = losses.DistillationLoss.__init__

    def with_watched_teacher(self: Any, base: Any, teacher: Any, *rest: Any) -> None:
        if teacher is not None:
            teacher.forward = shares.watch("teacher", teacher.forward)
        construct(self, base, teacher, *rest)

    losses.DistillationLoss.__init__ = with_watched_teacher


def main() -> None:
    """Patches, and hands over to the official main.py, whose loop asks `in_turns` for its batches."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--warm-up-steps", type=int, required=True)
    options, official = parser.parse_known_args()
    os.setpgrp()  # the parent stops and ends this process and its loader's workers together
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    apply_patches(bf16=options.bf16)
    sys.path.insert(0, str(options.directory))
    import main as official_main
    import utils

    shares = Shares()
    watch_parts(shares)

    def log_every(_logger: Any, batches: Iterable[Batch], *_print: Any) -> Iterator[Batch]:
        return in_turns(batches, options.warm_up_steps, sys.stdin, reports, shares)

    utils.MetricLogger.log_every = log_every
    official_main.main(official_main.get_args_parser().parse_args(official))


if __name__ == "__main__":
    main()
