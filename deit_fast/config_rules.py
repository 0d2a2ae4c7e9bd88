"""Rules across the fields of a configuration, which their types cannot say."""

from __future__ import annotations

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
    if distill.kind == "none" and "distilled" in model.name:
        raise ValueError(
            f"distill.kind is none, but model.name {model.name} has a distillation token that nothing would train; "
            f"use --model.name {model.name.replace('_distilled', '')} or --distill.kind hard"
        )
