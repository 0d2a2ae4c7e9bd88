"""The student of a run, built from the configuration: first weights, and compilation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deit_fast.kernels.choice import triton_kernels

from .config import Config
from .model import DeiT, create_student, has_dist_head
from .weights import load_weights, read_weights


def build_student(config: Config, num_classes: int) -> nn.Module:
    """The student with its first weights: seeded, or model.init_checkpoint's."""
    torch.manual_seed(config.runtime.seed)
    student = create_student(
        config.model.name,
        num_classes=num_classes,
        image_size_px=config.model.image_size_px,
        drop_path_rate=config.model.drop_path_rate,
        attention=config.runtime.attention,
        kernels=triton_kernels(config.runtime.kernels),
    )
    if config.distill.kind != "none" and not has_dist_head(student):
        raise ValueError(
            f"distill.kind is {config.distill.kind}, but model.name {config.model.name} has no distillation token; "
            "use a deit_*_distilled_* model or --distill.kind none"
        )
    if config.data.repeats_placement == "same_rank" and any(isinstance(part, _BatchNorm) for part in student.modules()):
        raise ValueError(
            f"data.repeats_placement is same_rank, but model.name {config.model.name} has batch normalisation, whose "
            "statistics would see each image several times; use --data.repeats_placement official"
        )
    if config.runtime.checkpoint_activations:
        checkpoint_activations(student, config.model.name)
    if config.model.init_checkpoint:
        load_weights(student, read_weights(config.model.init_checkpoint).state_dict, finetune=True)
    return student


def checkpoint_activations(student: nn.Module, name: str) -> None:
    """Lets the backward compute each block again; ValueError for a model of timm that cannot."""
    cannot = ValueError(
        f"runtime.checkpoint_activations is true, but model.name {name} of timm cannot compute its blocks again; use "
        "--runtime.checkpoint_activations false and a smaller --runtime.batch_size_per_device"
    )
    enable = getattr(student, "set_grad_checkpointing", None)
    if enable is None:
        raise cannot
    try:
        enable(True)
    except AssertionError:  # how timm's models say it
        raise cannot from None


def compile_blocks(
    student: nn.Module, *, cuda_graphs: bool = False, subset: bool = False, backend: str = "inductor"
) -> None:
    """Compiles block by block: one small graph used for all, and DDP keeps overlapping its all-reduce between them.

    Torch would cut the graphs further, where DDP's buckets end: the first after 1 MiB, in the middle of a block.

    cuda_graphs: they are recorded once and replayed, which saves the host's launches. subset: the batch of a branch
    differs from block to block, which one graph has to serve. A graph break in a DeiT is an error, not a slow place.
    """
    torch._dynamo.config.optimize_ddp = False
    blocks = getattr(student, "blocks", None)
    mode = "reduce-overhead" if cuda_graphs else None
    for module in blocks if isinstance(blocks, (nn.ModuleList, nn.Sequential)) else [student]:
        module.compile(
            dynamic=None if subset else False, fullgraph=isinstance(student, DeiT), mode=mode, backend=backend
        )
