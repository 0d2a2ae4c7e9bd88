"""A run that hangs ends, and says which rank the others wait for."""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from .distributed import Ranks

logger = logging.getLogger("deit_fast")

STORE_TIMEOUT = timedelta(seconds=5)
GRACE_S = 3.0
"""The first rank holds the store that the others read: it stays a little longer."""


class Watchdog:
    """A thread in each process that ends it when no step was done for `timeout_s` seconds.

    The ranks tell each other their steps through a store beside the collectives, which works while those are stuck.
    The exit code is 1, so that torchrun ends the others and, with `--max-restarts`, starts all anew.
    """

    def __init__(self, ranks: Ranks, timeout_s: float) -> None:
        """timeout_s 0: never."""
        self.ranks, self.timeout_s = ranks, timeout_s
        self.period_s = min(5.0, timeout_s / 4)
        self._step, self._beat = 0, time.monotonic()
        self._done = threading.Event()
        self._store = open_store(ranks) if ranks.world_size > 1 and timeout_s > 0 else None
        if timeout_s > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """The host is about to do this step."""
        self._step, self._beat = step, time.monotonic()

    def close(self) -> None:
        """Stops watching."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(self.period_s):
            self._publish()
            if time.monotonic() - self._beat > self.timeout_s:
                self._end()

    def _publish(self) -> None:
        try:
            if self._store is not None:
                self._store.set(str(self.ranks.rank), f"{self._step} {time.time():.1f}")
        except RuntimeError:  # the first rank is gone or stopped: said when this one's time is up
            pass

    def _end(self) -> None:
        logger.error(
            "rank %d has done no step for %.0f s (step %d). %s",
            self.ranks.rank, self.timeout_s, self._step, self._describe(),
        )  # fmt: skip
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        if self.ranks.is_main:
            time.sleep(GRACE_S)
        os._exit(1)

    def _describe(self) -> str:
        if self._store is None:
            return "Where it stands is shown below"
        try:
            steps = {rank: self._told_by(rank) for rank in range(self.ranks.world_size)}
        except RuntimeError:
            return "Rank 0, which keeps the list of who stands where, does not answer: it hangs, or it has ended"
        return name_the_late(steps, time.time(), silent_s=3 * self.period_s)

    def _told_by(self, rank: int) -> tuple[int, float]:
        """(step, when it said so); long ago for a rank that never did."""
        assert self._store is not None
        if not self._store.check([str(rank)]):
            return 0, -math.inf
        step, when = self._store.get(str(rank)).decode().split()
        return int(step), float(when)


def name_the_late(ranks: dict[int, tuple[int, float]], now: float, silent_s: float) -> str:
    """Which ranks do not answer, or are behind; ranks: (step, when it last said so) of each."""
    silent = [rank for rank, (_, when) in ranks.items() if now - when > silent_s]
    if silent:
        return (
            f"{_names(silent)} not heard of for more than {silent_s:.0f} s: stopped, swapped out, or the node is gone"
        )
    first, last = (choose(step for step, _ in ranks.values()) for choose in (min, max))
    if first == last:
        return f"All ranks stand at step {first}: the collective itself hangs (network), or all wait for their data"
    late = [rank for rank, (step, _) in ranks.items() if step == first]
    return f"{_names(late)} behind, at step {first}; the others wait at step {last}"


def _names(ranks: list[int]) -> str:
    return f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"


def open_store(ranks: Ranks) -> dist.TCPStore:
    """A key-value store on the first rank's node, on a free port."""
    host = os.environ.get("MASTER_ADDR", "localhost")
    port = torch.zeros(1, dtype=torch.int64, device=ranks.device)
    store = None
    if ranks.is_main:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT)
        port += store.port
    dist.broadcast(port, 0)
    return store or dist.TCPStore(host, int(port.item()), is_master=False, timeout=STORE_TIMEOUT)
