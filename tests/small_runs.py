"""Whole runs of a few steps on digits, for tests of the trainer."""

import json
import os
import signal

import torch

from deit_fast.config import Config, DistillConfig, ModelConfig
from deit_fast.config_file import add_config_arguments, config_parser, parse_config
from deit_fast.distributed import Ranks

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
MINI = Config(
    model=ModelConfig(name="deit_mini_distilled_patch8_32", image_size_px=32),
    distill=DistillConfig(kind="hard", teacher="resnet10t"),
)
STEPS_PER_EPOCH = 3  # 100 digits in batches of 32


def config(data, folder, *arguments, recipe="demo_student_distilled", teacher=None):
    options = {
        "data.path": data,
        "checkpoint.dir": folder,
        "schedule.epochs": 2,
        "schedule.warmup_epochs": 1,
        "runtime.batch_size_per_device": 32,
        "mix.group_size": 16,
        "eval.every_epochs": 1,
        "model.drop_path_rate": 0.1,
    }
    if teacher:
        options |= {"distill.teacher": "resnet10t", "distill.teacher_checkpoint": teacher}
    flat = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    parser = config_parser("test", "test")
    add_config_arguments(parser)
    return parse_config(parser, ["--config", recipe, *flat, *arguments])[0]


def stop_at(trainer, step):
    """Sends this process a real SIGTERM while it computes the given step of the run."""
    mix = trainer.train_step.mix

    def wrapped(batch, number, groups):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return mix(batch, number, groups)

    trainer.train_step.mix = wrapped


def spoil(trainer, *steps):
    """Puts a pixel that is not a number into one image of the given steps."""
    mix = trainer.train_step.mix

    def wrapped(batch, number, groups):
        if number in steps:
            images = batch.images.clone()
            images[3, 0, 5, 5] = float("nan")
            batch = batch._replace(images=images)
        return mix(batch, number, groups)

    trainer.train_step.mix = wrapped


def saved(outcome):
    return torch.load(outcome.checkpoint, weights_only=True)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(one, other):
    """Every tensor and number of two checkpoints, but for timings and places."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"config", "seconds", "data_wait_seconds"}:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other
