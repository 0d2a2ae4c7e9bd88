"""What is drawn for a view against torchvision's and timm's own draws: distributions with stated false-alarm rates."""

import random

import numpy as np
import pytest
import torch
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from deit_fast.dali_pipelines.draws import choose_crop, draw_crops, draw_erasing, draw_flips
from deit_fast.dali_pipelines.operation import RAND_AUGMENT_OPERATIONS, Operation
from deit_fast.dali_pipelines.rand_augment import (
    RandAugment,
    draw_rand_augment,
    level_to_argument,
    parse_rand_augment,
)
from deit_fast.dali_pipelines.train_augment import TrainAugment

VIEWS = np.arange(20000)
ALPHA = 1e-6
"""False-alarm rate of each statistical test here."""


def ks_limit(n, m=None):
    """Critical value of the Kolmogorov-Smirnov statistic at ALPHA; of two samples when m is given."""
    return (-0.5 * np.log(ALPHA / 2)) ** 0.5 * ((1 / n) if m is None else (n + m) / (n * m)) ** 0.5


def ks_statistic(a, b):
    points = np.sort(np.concatenate([a, b]))
    cdf = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (a, b)]
    return np.abs(cdf[0] - cdf[1]).max()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (32, 32), (30, 900)])
def test_crops_are_distributed_as_torchvisions(height, width):
    draws = draw_crops(0, 0, VIEWS[:6000], 0.08)
    ours = np.array([choose_crop(draws, i, height, width) for i in range(6000)])
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)])
    for ours_of, theirs_of in zip(ours.T, theirs.T, strict=True):
        assert ks_statistic(ours_of, theirs_of) < ks_limit(6000, 6000)
    assert ks_statistic(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < ks_limit(6000, 6000)
    assert (ours[:, 0] + ours[:, 2]).max() <= height
    assert (ours[:, 1] + ours[:, 3]).max() <= width


def test_an_image_that_no_candidate_fits_gets_torchvisions_centre():
    draws = draw_crops(0, 0, VIEWS[:50], 0.5)
    for height, width in ((3000, 5), (5, 3000)):
        expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.5, 1.0], [3 / 4, 4 / 3])
        assert {choose_crop(draws, i, height, width) for i in range(50)} == {tuple(expected)}


def test_flips():
    flips = draw_flips(0, 1, VIEWS, 0.5)
    assert set(flips) == {0, 1}
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / len(VIEWS) ** 0.5
    assert draw_flips(0, 1, VIEWS, 0.0).max() == 0
    assert draw_flips(0, 1, VIEWS, 1.0).min() == 1


def test_erasing_is_distributed_as_timms():
    size, count = 224, 3000
    draws = draw_erasing(0, 0, np.arange(4 * count), TrainAugment(image_size_px=size))[0]
    assert abs(draws.erased.mean() - 0.25) < 5 * (0.25 * 0.75 / len(draws.erased)) ** 0.5
    chosen = draws.erased == 1
    random.seed(0)
    torch.manual_seed(0)
    erase = RandomErasing(probability=1.0, mode="const", device="cpu")
    theirs = []
    for _ in range(count):
        erased = erase(torch.ones(3, size, size))[0] == 0
        rows, columns = erased.any(dim=1).nonzero()[:, 0], erased.any(dim=0).nonzero()[:, 0]
        theirs.append([int(rows[0]), int(columns[0]), len(rows), len(columns)])
    ours = np.concatenate([draws.anchors, draws.shapes], axis=1)[chosen]
    for ours_of, theirs_of in zip(ours.T, np.array(theirs).T, strict=True):
        assert ks_statistic(ours_of, theirs_of) < ks_limit(len(ours), count)


def test_erasing_noise_is_normal_and_only_where_needed():
    draws = draw_erasing(0, 0, VIEWS[:400], TrainAugment(image_size_px=64))[0]
    for erased, shape, noise in zip(draws.erased, draws.shapes, draws.content, strict=True):
        assert noise.shape == ((*shape, 3) if erased else (1, 1, 3))
    noise = np.concatenate([noise.ravel() for noise, erased in zip(draws.content, draws.erased, strict=True) if erased])
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5
    assert abs(noise.std() - 1) < 5 / (2 * len(noise)) ** 0.5
    again = draw_erasing(0, 0, VIEWS[100:200], TrainAugment(image_size_px=64))[0]
    assert all(np.array_equal(a, b) for a, b in zip(again.content, draws.content[100:200], strict=True))


def test_operations_are_chosen_evenly():
    """Chi-square over 15 operations: 59.7 is its quantile at 1 - 1e-6 with 14 degrees of freedom (scipy)."""
    policy = parse_rand_augment("rand-m9-mstd0.5-inc1")
    operations = draw_rand_augment(policy, 0, 0, VIEWS).operations
    applied = operations[operations != Operation.NONE]
    assert abs(len(applied) / operations.size - 0.5) < 5 * 0.5 / operations.size**0.5
    counts = np.bincount(applied, minlength=len(RAND_AUGMENT_OPERATIONS) + 1)[1:]
    expected = len(applied) / len(RAND_AUGMENT_OPERATIONS)
    assert ((counts - expected) ** 2 / expected).sum() < 59.7
    assert np.corrcoef(operations.T)[0, 1] < 5 / len(VIEWS) ** 0.5  # the two places do not depend on each other


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m5-mstd2-n3-inc1-p1", "rand-m7-mstd101-inc1"])
def test_magnitudes_are_distributed_as_timms(text):
    policy = parse_rand_augment(text)
    draws = draw_rand_augment(policy, 1, 0, VIEWS)
    rotations = draws.arguments[draws.operations == Operation.ROTATE]
    random.seed(0)
    np.random.seed(0)
    hparams = {"magnitude_std": float("inf") if "mstd101" in text else policy.magnitude_std}
    operation = auto_augment.AugmentOp("Rotate", prob=1.0, magnitude=policy.magnitude, hparams=hparams)
    degrees = []
    operation.aug_fn = lambda _image, angle, **_: degrees.append(angle)
    for _ in range(len(rotations)):
        operation(None)
    assert ks_statistic(rotations, np.array(degrees)) < ks_limit(len(rotations), len(degrees))


TIMM_LEVELS = {
    Operation.ROTATE: "Rotate",
    Operation.POSTERIZE: "PosterizeIncreasing",
    Operation.SOLARIZE: "SolarizeIncreasing",
    Operation.SOLARIZE_ADD: "SolarizeAdd",
    Operation.CONTRAST: "ContrastIncreasing",
    Operation.SHEAR_X: "ShearX",
    Operation.TRANSLATE_Y: "TranslateYRel",
}


@pytest.mark.parametrize(("operation", "name"), TIMM_LEVELS.items())
def test_level_functions_are_timms(operation, name, monkeypatch):
    magnitudes = np.linspace(0, 10, 201)
    for sign in (-1.0, 1.0):
        monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value, sign=sign: sign * value)
        expected = [auto_augment.LEVEL_TO_ARG[name](m, {"translate_pct": 0.45})[0] for m in magnitudes]
        ours = level_to_argument(np.full(201, operation), magnitudes, np.full(201, sign))
        assert np.allclose(ours, expected, atol=1e-12)


def test_policies_are_parsed():
    assert parse_rand_augment("rand-m9-mstd0.5-inc1") == RandAugment(9.0, 0.5, 2, 0.5)
    assert parse_rand_augment("rand-m7-n3-p0.8-inc1-mstd101") == RandAugment(7.0, float("inf"), 3, 0.8)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rand-m9-mstd0.5-inc1-w0", "unknown part w0"),
        ("rand-m9-xx-inc1", "unknown part xx"),
        ("auto-m9", "has to start with rand"),
        ("rand-m9-mstd0.5", "add inc1"),
        ("rand-m11-inc1", "m is at most 10"),
        ("rand-n1.5-inc1", "n a whole number"),
    ],
)
def test_an_unknown_part_is_named(text, named):
    with pytest.raises(ValueError, match=named) as error:
        parse_rand_augment(text)
    assert "augment.rand_augment" in str(error.value)
