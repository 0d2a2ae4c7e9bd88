"""The verdict: figures whose limit is known by hand, and what people are told."""

import pytest

from deit_fast.benchmarks.verdict import Stage, describe, limiting_stage, reach_verdict

READ, AUGMENT = Stage("file read", "loader", 0.2), Stage("augmentation", "loader", 0.9)
TEACHER, FORWARD = Stage("teacher forward", "device", 0.4), Stage("student forward", "device", 0.3)
BACKWARD = Stage("student backward", "device", 0.5)


def verdict(images_per_second=2000.0, stages=(), **changes):
    given = {
        "devices": 8,
        "teacher": "live",
        "stages": stages,
        "flops_per_image": 137.5e9,
        "peak_flops": 8 * 989e12,
        "model": "deit_base_distilled_patch16_224",
        "image_size_px": 224,
    }
    return reach_verdict(images_per_second, **(given | changes))


@pytest.mark.parametrize(
    ("stages", "limit", "following", "speed"),
    [
        # the loader takes 1.1 ms beside the device's 0.7: its longest stage limits; without it the device does
        ([READ, AUGMENT, TEACHER, FORWARD], "augmentation", "teacher forward", 1 / 1.1e-3),
        # the device takes 0.7 ms, a loader that only reads 0.2; without the teacher the student's 0.3 still do
        ([READ, TEACHER, FORWARD], "teacher forward", "student forward", 1 / 0.7e-3),
        # shared cores: all add up, and the longest of all limits
        ([READ._replace(lane="cores"), FORWARD._replace(lane="cores")], "student forward", "file read", 2000.0),
        # a lane with the longest stage is not the limit when another lane takes longer altogether
        ([AUGMENT, TEACHER, FORWARD, BACKWARD], "student backward", "augmentation", 1 / 1.2e-3),
        ([FORWARD], "student forward", None, 1 / 0.3e-3),
        ([], None, None, None),
    ],
)  # fmt: skip
def test_the_limit_is_the_longest_stage_of_the_slowest_lane(stages, limit, following, speed):
    reached = verdict(stages=stages)
    assert (reached.limiting_stage, reached.next_limiting_stage) == (limit, following)
    assert reached.stages_images_per_second == (None if speed is None else pytest.approx(speed))


def test_taking_the_limit_away_makes_what_follows_the_limit():
    stages = [READ, AUGMENT, TEACHER, FORWARD]
    while stages:
        limit = limiting_stage(stages)
        stages.remove(limit)
        assert verdict(stages=[*stages, limit]).next_limiting_stage == (limiting_stage(stages) or (None,))[0]


def test_budget_and_hardware():
    """The paper's V100 node: DeiT-B, 300 epochs in 53 hours on 8 GPUs (arXiv 2012.12877, section 5)."""
    node = verdict(1_281_167 * 300 / (53 * 3600))
    assert node.projected_days == pytest.approx(53 / 24)
    assert node.margin == pytest.approx(72 / 53)
    assert node.measured_per_device == pytest.approx(251.8, abs=0.1)
    # the budget alone is soft: 185.4 images/s of 137.5 GFLOP are 25.5 TFLOP/s
    soft = verdict(1482.83, peak_flops=8 * 51e12)
    assert soft.mfu == pytest.approx(0.5, abs=1e-3)
    assert soft.days_at_half_of_peak == pytest.approx(3.0, abs=1e-2)
    fast = verdict(1482.83)
    assert fast.days_at_half_of_peak == pytest.approx(3 * 51 / 989, abs=1e-3)


def test_what_is_not_known_is_not_said():
    reached = verdict(peak_flops=None)
    assert reached.mfu is reached.days_at_half_of_peak is None
    assert not any("MFU" in line for line in describe(reached, "cuda"))
    assert verdict().is_budget_model
    assert not verdict(image_size_px=384).is_budget_model
    assert "this is deit_tiny" in describe(verdict(model="deit_tiny_patch16_224"), "cpu")[0]
    assert "teacher cached" in describe(verdict(teacher="cached"), "cpu")[0]
