"""Top-1 and top-5 on a validation set: by [CLS], by the distillation token, and by the mean of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from deit_fast.dali_pipelines.loader import Batch

from .distributed import Ranks
from .model import DeiT
from .precision import autocast

HEADS = ("cls", "dist", "average")


@dataclass(frozen=True)
class Scores:
    """Accuracies in percent by head (dist is None without a distillation token), and the speed of the evaluation."""

    top1: dict[str, float | None]
    top5: dict[str, float | None]
    images: int
    images_per_second: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def head_logits(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits [B, C] of each head in the order of HEADS; one alone for a model without a distillation token."""
    if isinstance(model, DeiT):
        cls, dist = model.forward_heads(images)
        return (cls,) if dist is None else (cls, dist, (cls + dist) / 2)
    return (model(images),)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    ranks: Ranks,
    precision: str,
    begin: Callable[[], object] = lambda: None,
) -> Scores:
    """Scores `model` over all ranks' batches; every rank returns the same. The model is left in its former mode.

    begin: called before each batch, where CUDA graphs want to know that what the last one left may be overwritten.
    """
    was_training = model.training
    model.eval()
    # hits[k, head] and the number of images, summed on the device: the host waits once, at the end
    hits = torch.zeros(2, len(HEADS), dtype=torch.float64, device=ranks.device)
    images = torch.zeros(1, dtype=torch.float64, device=ranks.device)
    heads = 1
    start = time.perf_counter()
    for batch in batches:
        begin()
        with autocast(precision, ranks.device):
            logits = head_logits(model, batch.images)
        heads = len(logits)
        for i, scores in enumerate(logits):
            best = scores.float().topk(min(5, scores.shape[1]), dim=1).indices == batch.labels[:, None]
            hits[0, i] += best[:, 0].sum()
            hits[1, i] += best.any(dim=1).sum()
        images += len(batch.labels)
    model.train(was_training)
    ranks.sum(hits)
    total = int(ranks.sum(images).item())
    seconds = time.perf_counter() - start
    top1, top5 = (100 * hits / total).tolist()
    if heads == 1:
        return Scores(_one_head(top1[0]), _one_head(top5[0]), total, total / seconds)
    return Scores(dict(zip(HEADS, top1, strict=True)), dict(zip(HEADS, top5, strict=True)), total, total / seconds)


def _one_head(percent: float) -> dict[str, float | None]:
    return {"cls": percent, "dist": None, "average": percent}
