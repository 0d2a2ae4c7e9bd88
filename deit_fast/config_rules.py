"""Rules across the fields of a configuration, which their types cannot say."""

from __future__ import annotations

from deit_fast.kernels.choice import triton_kernels

from .config import Config


def check_config(config: Config) -> None:
    """Rules across fields; ValueError naming both keys."""
    distill, model = config.distill, config.model
    if config.schedule.epochs < 1:
        raise ValueError(f"schedule.epochs must be at least 1, got {config.schedule.epochs}")
    if not 0 <= config.mix.label_smoothing < 1:
        raise ValueError(f"mix.label_smoothing must be in [0, 1), got {config.mix.label_smoothing}")
    if not 0 <= model.drop_path_rate < 1:
        raise ValueError(f"model.drop_path_rate must be in [0, 1), got {model.drop_path_rate}")
    if config.runtime.batch_size_per_device < 1:
        raise ValueError(
            f"runtime.batch_size_per_device must be at least 1, got {config.runtime.batch_size_per_device}"
        )
    share = config.data.hardware_decoder_share
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"data.hardware_decoder_share must be in [0, 1], got {share}")
    if distill.kind == "none" and "distilled" in model.name:
        raise ValueError(
            f"distill.kind is none, but model.name {model.name} has a distillation token that nothing would train; "
            f"use --model.name {model.name.replace('_distilled', '')} or --distill.kind hard"
        )
    check_runtime(config)


def check_runtime(config: Config) -> None:
    """Rules across fields of loss, drop-path and runtime; ValueError naming both keys."""
    runtime, mix = config.runtime, config.mix
    triton_kernels(runtime.kernels)
    if runtime.accumulate_steps < 1:
        raise ValueError(f"runtime.accumulate_steps must be at least 1, got {runtime.accumulate_steps}")
    if config.loss.label == "bce" and mix.label_smoothing:
        raise ValueError(
            f"loss.label is bce, whose targets are 0 and 1, but mix.label_smoothing is {mix.label_smoothing}; "
            "use --mix.label_smoothing 0"
        )
    if config.loss.cosub and config.distill.kind != "none":
        raise ValueError(
            f"loss.cosub has no teacher, but distill.kind is {config.distill.kind}; use --distill.kind none"
        )
    if runtime.cuda_graphs and not runtime.compile:
        raise ValueError("runtime.cuda_graphs replays compiled blocks, but runtime.compile is false; set it to true")
    if runtime.cuda_graphs and runtime.checkpoint_activations:
        raise ValueError(
            "runtime.cuda_graphs replays forwards in order, but runtime.checkpoint_activations runs them again in "
            "the backward; use one of the two"
        )
    if config.model.drop_path_mode == "subset" and runtime.batch_size_per_device % mix.group_size:
        raise ValueError(
            f"model.drop_path_mode is subset, a share of each group, but mix.group_size {mix.group_size} does not "
            f"divide runtime.batch_size_per_device {runtime.batch_size_per_device}"
        )
    if config.distill.label_cache is not None and config.distill.kind == "none":
        raise ValueError("distill.label_cache is set, but distill.kind is none; use --distill.kind hard or soft")
