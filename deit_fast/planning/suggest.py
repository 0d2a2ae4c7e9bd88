"""The options with which a run keeps its recipe's global batch on other GPUs, and fits."""

from __future__ import annotations

from dataclasses import replace

from deit_fast.config import Config

from .costs import StudentCosts, TeacherCosts
from .memory_plan import plan_memory
from .stages import Machine

SMALL_BATCH = 16
"""Below it a GPU has too little to do at once: then blocks are rather computed again than a batch cut further."""


def suggest_batch(config: Config, machine: Machine, student: StudentCosts, teacher: TeacherCosts | None) -> Config:
    """The config with batch, accumulation and checkpointing that fit; accumulation costs nothing and comes first.

    ValueError when the global batch is not a whole even number for each GPU, or nothing fits.
    """
    runtime = config.runtime
    wanted = config.optim.recipe_batch_size or (runtime.batch_size_per_device * runtime.accumulate_steps * machine.gpus)
    if wanted % (2 * machine.gpus):
        raise ValueError(
            f"--gpus {machine.gpus} cannot share the global batch of {wanted:,} in even parts; "
            f"use a number that divides {wanted // 2:,}"
        )
    per_gpu = wanted // machine.gpus
    sizes = [size for size in range(per_gpu, 1, -2) if per_gpu % size == 0]
    for recompute, at_least in ((False, SMALL_BATCH), (True, SMALL_BATCH), (False, 2), (True, 2)):
        if recompute and (student.recomputed is None or runtime.cuda_graphs):
            continue
        for size in sizes:
            tried = replace(
                runtime,
                batch_size_per_device=size,
                accumulate_steps=per_gpu // size,
                checkpoint_activations=recompute,
            )
            mix = replace(config.mix, group_size=_group(config, size, per_gpu))
            suggested = replace(config, runtime=tried, mix=mix)
            memory = plan_memory(suggested, student, teacher, machine.gpu.memory_bytes, recompute=recompute)
            if size >= min(at_least, per_gpu) and memory.fits:
                return suggested
    raise ValueError(f"{config.model.name} does not fit into {machine.gpu.name}, at any batch")


def _group(config: Config, size: int, per_gpu: int) -> int:
    """The recipe's mixing group where a GPU's share of the batch holds whole ones, else that share.

    Of a batch of `size`, where drop-path takes a share of each group: groups then may not span accumulated parts.
    """
    share = size if config.model.drop_path_mode == "subset" else per_gpu
    return config.mix.group_size if share % config.mix.group_size == 0 else share


def options_of(suggested: Config) -> str:
    """As the command line takes them; only those that have to be given."""
    runtime = suggested.runtime
    text = (
        f"--runtime.batch_size_per_device {runtime.batch_size_per_device} --mix.group_size {suggested.mix.group_size}"
    )
    if runtime.accumulate_steps > 1:
        text += f" --runtime.accumulate_steps {runtime.accumulate_steps}"
    if runtime.checkpoint_activations:
        text += " --runtime.checkpoint_activations true"
    return text
