"""DDP's all-reduce, recorded: one span for each bucket, and the mark where the tail begins, which nothing hides."""

# no `from __future__ import annotations`: DDP compares the hook's annotations with classes, not with their names

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from .phases import Phases


def all_reduce_recorded(phases: Phases, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The mean over the ranks, as DDP computes it. The last bucket comes when this rank's backward is through."""
    begin = phases.begin_span()
    if bucket.is_last():
        phases.enter("all-reduce tail")

    def done(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
        phases.end_span("all-reduce", begin)
        value = future.value()
        return value[0] if isinstance(value, list) else value

    return allreduce_hook(None, bucket).then(done)  # type: ignore[arg-type]
