"""Ctrl-C, SIGTERM and SIGUSR1 end a run at the next step border, so that it can save first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from .distributed import Ranks

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Slurm sends SIGUSR1 ahead of the time limit where it is asked to (`--signal=USR1@300`)."""


class StopRequest:
    """Whether a signal asked this process to stop."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turns stop signals into a request; a second Ctrl-C or SIGTERM acts as it would without us.

    Further SIGUSR1 do nothing, also while the stopped process ends: schedulers send it more than once, and torchrun
    would start a worker that dies of it again.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only, and only there handlers can be set
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def request(number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        if number != signal.SIGUSR1:
            signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if number != signal.SIGUSR1 or not stop:
                signal.signal(number, handler)


@contextmanager
def stop_signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP (a scheduler, a lost terminal) end what is under way as Ctrl-C does: by KeyboardInterrupt."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    taken = [number for number, handler in before.items() if handler == signal.SIG_DFL]  # nohup ignores SIGHUP
    if threading.current_thread() is not threading.main_thread():
        taken = []
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class StopVote:
    """Whether any rank was asked to stop: all leave at the same step, or the others would wait for it for ever.

    Each step starts a vote between the hosts, and acts on that of the step before, which is over by then; so a stop
    takes two steps at most, no device is waited for, and a step does not wait for its own vote.
    """

    def __init__(self, ranks: Ranks, stop: StopRequest) -> None:
        self.stop, self.alone = stop, ranks.world_size == 1
        self._votes = torch.zeros(1)
        self._pending: dist.Work | None = None

    def agreed(self) -> bool:
        """Called once a step by every rank; the same answer for all of them."""
        if self.alone:
            return bool(self.stop)
        asked = self._result()
        self._votes = torch.tensor([float(bool(self.stop))])
        self._pending = dist.all_reduce(self._votes, async_op=True)  # on the CPU: by gloo
        return asked

    def _result(self) -> bool:
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._votes.item())

    def close(self) -> None:
        """Waits for the vote under way."""
        self._result()
