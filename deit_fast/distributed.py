"""One process per device under torchrun: who am I, what is my device, sums over all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .environment import available_cores

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""torch's own for gloo, and for NCCL in a group of both; NCCL's alone would be 10 minutes."""
CORES_AT_START = available_cores()
"""Before this process was bound to its share of them."""


@dataclass(frozen=True)
class Ranks:
    """This process among all: rank of world_size, local_rank of local_world_size on this machine, and its device."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """CPU cores for this process: those of the machine, shared evenly; no more than it is bound to (host.py)."""
        return max(1, min(available_cores(), CORES_AT_START // self.local_world_size))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first rank, on every rank; its ValueError too."""
        if self.world_size == 1:
            return make()
        made: list[Any] = [None, None]
        if self.is_main:
            try:
                made[0] = make()
            except ValueError as error:
                made[1] = error
        dist.broadcast_object_list(made)
        if made[1] is not None:
            raise made[1]
        result: T = made[0]
        return result

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` -> the device of this process; ValueError when there is no CUDA device to give."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("runtime.device is cuda, but torch finds no CUDA device here; use --runtime.device cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"this is process {local_rank + 1} of this machine, which has {torch.cuda.device_count()} CUDA devices; "
            "start torchrun with a smaller --nproc-per-node"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def process_group(device: str, hang_timeout_s: float = 0) -> Iterator[Ranks]:
    """Joins the group that torchrun announces in the environment (NCCL on CUDA, gloo on CPU); alone without one.

    hang_timeout_s: that of a watchdog, which is to end a hang, and name the rank, before a collective gives up.
    """
    env = os.environ
    world_size = int(env.get("WORLD_SIZE", "1"))
    local_rank = int(env.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank)
    ranks = Ranks(
        int(env.get("RANK", "0")), world_size, local_rank, int(env.get("LOCAL_WORLD_SIZE", str(world_size))), chosen
    )
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield ranks
        return
    # One group for both devices: the hosts vote on a stop beside the devices' collectives.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    # torchrun may keep its store over a restart, in which the addresses of the processes before then still stand
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart_{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    timeout = max(COLLECTIVE_TIMEOUT, 2 * timedelta(seconds=hang_timeout_s))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def one_process(device: str, verb: str) -> Iterator[Ranks]:
    """This process alone, for a verb that takes one device; ValueError under torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{verb} takes one device; start it without torchrun")
    with process_group(device) as ranks:
        yield ranks
