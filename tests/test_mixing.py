"""Mixup and CutMix against timm's `Mixup` in batch mode, for the same draw."""

from unittest import mock

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup

from deit_fast.config import MixConfig
from deit_fast.mixing import MixPlan, cutmix_box, draw_plan, mix_batch

SIZE = 32


def batch(count=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(10, (count,), generator=generator)


def timm_result(images, labels, plan):
    """timm's batch mode with its draw replaced by the plan."""
    theirs = timm_mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    images = images.clone()
    draw = mock.patch.object(theirs, "_params_per_batch", return_value=(plan.lam, plan.box is not None))
    box = mock.patch.object(timm_mixup, "cutmix_bbox_and_lam", return_value=(plan.box, plan.lam))
    with draw, box:
        target = theirs(images, labels)[1]
    return images, target


def dense_target(labels, classes=10, smoothing=0.1):
    off = smoothing / classes
    rows = torch.arange(len(labels.lam))
    dense = torch.full((len(labels.lam), classes), off)
    dense[rows, labels.label_a] += (1 - smoothing) * labels.lam
    dense[rows, labels.label_b] += (1 - smoothing) * (1 - labels.lam)
    return dense


@pytest.mark.parametrize("plan", [MixPlan(), MixPlan(0.3), MixPlan(1 - 6 * 9 / SIZE**2, (2, 8, 11, 20))])
def test_the_same_plan_gives_timms_images_and_targets(plan):
    images, labels = batch()
    before = images.clone()
    mixed, targets = mix_batch(images, labels, [plan], 8)
    theirs, target = timm_result(images, labels, plan)
    assert (mixed - theirs).abs().max() < 1e-6
    assert (dense_target(targets) - target).abs().max() < 1e-6
    assert torch.equal(images, before)  # the loader's memory is left alone


def test_groups_are_mixed_apart_and_memory_format_stays():
    images, labels = batch(8)
    images = images.contiguous(memory_format=torch.channels_last)
    plans = [MixPlan(0.25), MixPlan(0.5, (0, 16, 0, 32))]
    mixed, targets = mix_batch(images, labels, plans, 4)
    for i, plan in enumerate(plans):
        part = slice(4 * i, 4 * i + 4)
        alone, alone_targets = mix_batch(images[part], labels[part], [plan], 4)
        assert torch.equal(mixed[part], alone)
        for ours, other in zip(targets, alone_targets, strict=True):
            assert torch.equal(ours[part], other)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("lam", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_the_timm_box_is_timms(lam):
    for center in ((0, 0), (16, 5), (31, 31)):
        with mock.patch.object(np.random, "randint", side_effect=center):
            theirs = timm_mixup.rand_bbox((3, SIZE, SIZE), lam)
        assert cutmix_box(lam, *center, SIZE, "timm") == tuple(map(int, theirs))


def test_the_official_box_is_that_of_timm_0_3():
    # timm 0.3.3, rand_bbox: cut = int(size * sqrt(1 - lam)); from centre - cut // 2 to centre + cut // 2, clipped
    lam = 1 - (9 / SIZE) ** 2
    assert int(SIZE * np.sqrt(1 - lam)) in (8, 9)
    cut = int(SIZE * np.sqrt(1 - lam))
    assert cutmix_box(lam, 16, 16, SIZE, "official") == (16 - cut // 2, 16 + cut // 2, 16 - cut // 2, 16 + cut // 2)
    odd = 1 - (9.5 / SIZE) ** 2
    assert cutmix_box(odd, 16, 16, SIZE, "official") == (12, 20, 12, 20)
    assert cutmix_box(odd, 16, 16, SIZE, "timm") == (12, 21, 12, 21)
    assert cutmix_box(odd, 1, 31, SIZE, "official") == (0, 5, 27, 32)


def test_plans_are_pure_functions_of_seed_step_and_group():
    config = MixConfig()
    plans = [draw_plan(3, step, group, config, 224) for step in range(4) for group in range(4)]
    assert plans == [draw_plan(3, step, group, config, 224) for step in range(4) for group in range(4)]
    assert len({plan.lam for plan in plans}) == 16
    assert draw_plan(4, 0, 0, config, 224) != plans[0]


def test_the_area_of_the_clipped_box_is_the_weight():
    for step in range(200):
        plan = draw_plan(0, step, 0, MixConfig(mixup_alpha=0.0), 224)
        y0, y1, x0, x1 = plan.box
        assert plan.lam == 1 - (y1 - y0) * (x1 - x0) / 224**2


def test_distributions_over_many_steps():
    """Shares within 5 standard deviations, means of Beta within 5: under one false alarm in a million seeds."""
    count = 4000
    plans = [draw_plan(0, step, 0, MixConfig(probability=0.75), 224) for step in range(count)]
    mixed = [plan for plan in plans if plan != MixPlan()]
    assert abs(len(mixed) / count - 0.75) < 5 * (0.75 * 0.25 / count) ** 0.5
    mixups = [plan.lam for plan in mixed if plan.box is None]
    assert abs(len(mixups) / len(mixed) - 0.5) < 5 * (0.25 / len(mixed)) ** 0.5
    std = (1 / (4 * (2 * 0.8 + 1))) ** 0.5  # of Beta(0.8, 0.8)
    assert abs(np.mean(mixups) - 0.5) < 5 * std / len(mixups) ** 0.5
    assert np.std(mixups) == pytest.approx(std, rel=0.1)


def test_alpha_zero_turns_each_off():
    assert all(draw_plan(0, s, 0, MixConfig(cutmix_alpha=0.0), 32).box is None for s in range(50))
    assert all(draw_plan(0, s, 0, MixConfig(mixup_alpha=0.0), 32).box is not None for s in range(50))
    assert draw_plan(0, 0, 0, MixConfig(mixup_alpha=0.0, cutmix_alpha=0.0), 32) == MixPlan()
    assert draw_plan(0, 0, 0, MixConfig(probability=0.0), 32) == MixPlan()
