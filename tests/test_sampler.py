"""Orders of images: the official samplers' for 1, 2, 3 and 8 ranks, the same groups for any split, every image once."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from deit_fast.dali_pipelines.sampler import TrainSampler, ValidationSampler

N, GROUP = 5000, 32


def official_ra_sampler(num_images, ranks, rank, seed_and_epoch, repeats=3):
    """RASampler's formula, written down from RECIPE.md (samplers.py of facebookresearch/deit)."""
    num_samples = math.ceil(num_images * repeats / ranks)
    total = num_samples * ranks
    selected = math.floor(num_images // 256 * 256 / ranks)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed_and_epoch))
    index = order.repeat_interleave(repeats).tolist()
    index += index[: total - len(index)]
    return index[rank:total:ranks][:selected]


def sampler(world_size=1, rank=0, repeats=3, groups_per_rank=1, num_images=N, seed=0, placement="official"):
    return TrainSampler(
        num_images,
        global_batch_size=GROUP * groups_per_rank * world_size,
        group_size=GROUP,
        repeats=repeats,
        seed=seed,
        rank=rank,
        world_size=world_size,
        placement=placement,
    )


def epoch_images(sampler, epoch):
    return [sampler.images(epoch, sampler.views(step)) for step in range(sampler.steps_per_epoch)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_repeated_augmentation_is_official(world_size):
    for rank in range(world_size):
        ours = np.concatenate(epoch_images(sampler(world_size, rank), epoch=4))
        official = official_ra_sampler(N, world_size, rank, seed_and_epoch=4)
        whole = len(official) // GROUP * GROUP  # the official loader drops the incomplete batch
        assert ours.tolist() == official[:whole]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_without_repeats_it_is_torchs_distributed_sampler(world_size):
    for rank in range(world_size):
        theirs = DistributedSampler(range(N), num_replicas=world_size, rank=rank, seed=5)
        theirs.set_epoch(3)
        order = list(theirs)
        ours = np.concatenate(epoch_images(sampler(world_size, rank, repeats=1, seed=5), epoch=3))
        assert ours.tolist() == order[: len(order) // GROUP * GROUP]


@pytest.mark.parametrize("repeats", [1, 3])
def test_any_split_of_the_global_batch_trains_on_the_same_groups(repeats):
    """8 groups on 1, 2, 4 or 8 ranks."""
    reference = None
    for world_size in (1, 2, 4, 8):
        groups = {}
        for rank in range(world_size):
            one = sampler(world_size, rank, repeats, groups_per_rank=8 // world_size)
            for step in range(one.steps_per_epoch):
                images = one.images(2, one.views(step)).reshape(-1, GROUP)
                views = one.views(step).reshape(-1, GROUP)
                for i, group in enumerate(one.groups(step)):
                    groups[step, group] = (views[i].tolist(), images[i].tolist())
        reference = reference or groups
        assert groups == reference


def test_every_rank_gets_the_same_number_of_batches():
    assert len({sampler(8, rank, num_images=5003).steps_per_epoch for rank in range(8)}) == 1


def test_views_are_unique_within_an_epoch():
    views = np.concatenate(
        [sampler(2, rank).views(step) for rank in range(2) for step in range(sampler(2).steps_per_epoch)]
    )
    assert len(np.unique(views)) == len(views)


def test_epochs_and_seeds_give_other_orders():
    one, other = sampler(seed=1), sampler(seed=2)
    assert not np.array_equal(epoch_images(one, 0)[0], epoch_images(one, 1)[0])
    assert not np.array_equal(epoch_images(one, 0)[0], epoch_images(other, 0)[0])


def test_a_small_data_set_is_used_whole():
    """Below 256 images the official formula yields nothing."""
    assert official_ra_sampler(200, 1, 0, 0) == []
    assert sampler(num_images=200).steps_per_epoch == 200 // GROUP


def step_views(placement, world_size, step):
    """(image, view) of every rank in one step, rank after rank."""
    ranks = [sampler(world_size, rank, placement=placement) for rank in range(world_size)]
    return [list(zip(one.images(1, one.views(step)), one.views(step), strict=True)) for one in ranks]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_decoding_once_leaves_every_global_step_as_it_is(world_size):
    """The same multiset of (image, view); only who gets them differs."""
    for step in range(sampler(world_size).steps_per_epoch):
        official, same_rank = (step_views(placement, world_size, step) for placement in ("official", "same_rank"))
        assert sorted(chain(*official)) == sorted(chain(*same_rank))
        for pairs in same_rank:
            images = [image for image, _ in pairs]
            assert len(set(images)) <= GROUP // 3 + 2  # a third, and two images cut by the borders
            mixed = zip(images, reversed(images), strict=True)  # mixing pairs a group with itself reversed
            assert all(one != other for one, other in mixed)


def test_views_of_an_image_are_never_mixed_with_each_other():
    with pytest.raises(ValueError, match=r"repeats_placement same_rank needs mix.group_size 4 .*twice data.repeats 3"):
        TrainSampler(1000, global_batch_size=8, group_size=4, repeats=3, seed=0, placement="same_rank")


@pytest.mark.parametrize("placement", ["official", "same_rank"])
def test_a_position_far_into_a_long_run_costs_one_permutation(placement):
    """Nothing is replayed: the step of an epoch is arithmetic on its number."""
    one = sampler(2, 1, placement=placement)
    epoch, step = 1_000_000, one.steps_per_epoch - 1
    expected = torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).numpy()
    assert one.images(epoch, one.views(step)).tolist() == expected[one.views(step) // 3 % N].tolist()


@pytest.mark.parametrize(("num_images", "world_size"), [(101, 1), (101, 2), (101, 3), (101, 8), (5, 8)])
def test_validation_counts_every_image_once(num_images, world_size):
    seen = []
    for rank in range(world_size):
        one = ValidationSampler(num_images, batch_size=16, rank=rank, world_size=world_size)
        batches = [one.images(batch) for batch in range(one.num_batches)]
        assert all(0 < len(batch) <= 16 for batch in batches)
        seen += np.concatenate(batches).tolist() if batches else []
    assert sorted(seen) == list(range(num_images))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"group_size": 48}, r"mix.group_size 48 .*batch_size_per_device 64; use --mix.group_size 32"),
        ({"group_size": 7}, "mix.group_size 7"),
        ({"global_batch_size": 63, "group_size": 63}, "batch_size_per_device must be even"),
        ({"repeats": 0}, "data.repeats"),
        ({"num_images": 60}, "larger than the training set of 60 images"),
    ],
)
def test_wrong_sizes_are_named(options, named):
    defaults = {"num_images": 1000, "global_batch_size": 64, "group_size": 64, "repeats": 1, "seed": 0}
    with pytest.raises(ValueError, match=named):
        TrainSampler(**(defaults | options))
