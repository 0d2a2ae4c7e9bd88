"""What a student may not be combined with."""

from dataclasses import replace

import pytest

from deit_fast.config import Config, DataConfig, ModelConfig, RuntimeConfig
from deit_fast.student import build_student


def config(name, **options):
    return replace(
        Config(),
        model=ModelConfig(name=name, image_size_px=32),
        data=DataConfig(**options),
        runtime=RuntimeConfig(seed=3),
    )


def test_batch_normalisation_may_not_see_an_image_several_times():
    build_student(config("deit_mini_patch8_32", repeats_placement="same_rank"), 10)
    build_student(config("resnet10t", repeats_placement="official"), 10)
    with pytest.raises(ValueError, match=r"same_rank, but model.name resnet10t has batch normalisation"):
        build_student(config("resnet10t", repeats_placement="same_rank"), 10)
