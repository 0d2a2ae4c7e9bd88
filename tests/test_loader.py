"""The pipelines on real files: against torchvision, the same for any threads and split, errors that name the file."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision import transforms

from deit_fast.dali_pipelines.draws import choose_crop, draw_crops, draw_flips
from deit_fast.dali_pipelines.image_folder import scan_image_folder
from deit_fast.dali_pipelines.loader import TrainLoader, ValidationLoader
from deit_fast.dali_pipelines.sampler import TrainSampler, ValidationSampler
from deit_fast.dali_pipelines.train_augment import IMAGENET_MEAN, IMAGENET_STD, TrainAugment
from deit_fast.dali_pipelines.unreadable import BadImageError

AUGMENT = TrainAugment(image_size_px=64)


def sampler(images, batch=16, group=8, repeats=3, rank=0, world_size=1):
    return TrainSampler(
        len(images),
        global_batch_size=batch,
        group_size=group,
        repeats=repeats,
        seed=0,
        rank=rank,
        world_size=world_size,
    )


def take(images, first, last, augment=AUGMENT, sample=None, **options):
    loader = TrainLoader(images, sample or sampler(images), augment, seed=3, **options)
    return [(batch.images.clone(), batch.labels, batch.views) for batch in loader.batches(first, last)]


def pixels(batch):
    """Back to 0-255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (batch.float() * std + mean) * 255


@pytest.fixture(scope="module")
def images(photographs):
    return scan_image_folder(photographs / "train")


def test_a_batch_is_what_it_says(images):
    loader = TrainLoader(images, sampler(images), AUGMENT, seed=3)
    batch = next(loader.batches(0, 3))
    assert batch.images.shape == (16, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.images.dtype, batch.labels.dtype, batch.views.dtype) == (torch.float32, torch.int64, torch.int64)
    assert batch.labels.tolist() == images.labels[sampler(images).images(0, batch.views.numpy())].tolist()
    for dtype, rounding in ((torch.float16, 4e-3), (torch.bfloat16, 3e-2)):
        half = next(TrainLoader(images, sampler(images), AUGMENT, seed=3, dtype=dtype).batches(0, 3))
        assert half.images.dtype == dtype
        assert half.images.is_contiguous(memory_format=torch.channels_last)
        assert (half.images.float() - batch.images).abs().max() < rounding


def test_bytes_come_out_when_asked_for(images):
    """What normalisation makes of them is what the normalising graph gives; erased places hold the mean colour."""
    augment = replace(AUGMENT, erase_mode="const", erase_probability=0.5)
    (raw, *_), *_ = take(images, 0, 1, replace(augment, normalize=False))
    (normalised, *_), *_ = take(images, 0, 1, augment)
    assert raw.dtype == torch.uint8
    assert (pixels(normalised) - raw.float()).abs().max() < 0.51
    with pytest.raises(ValueError, match="uint8 images cannot hold the noise of augment.erase_mode pixel"):
        replace(AUGMENT, normalize=False)


def test_neither_threads_nor_prefetching_nor_the_starting_step_change_a_batch(images):
    whole = take(images, 0, 6, num_threads=1, prefetch=1)
    for other in (take(images, 0, 6, num_threads=3, prefetch=4), whole[:4] + take(images, 4, 6)):
        for mine, theirs in zip(whole, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_epochs_follow_without_a_pause_and_differ(images):
    per_epoch = sampler(images).steps_per_epoch
    batches = take(images, 0, 2 * per_epoch)
    assert len(batches) == 2 * per_epoch
    assert torch.equal(batches[0][2], batches[per_epoch][2])
    assert not torch.equal(batches[0][0], batches[per_epoch][0])


def test_any_split_over_ranks_gives_the_same_views(images):
    alone = take(images, 0, 2)
    found = {int(view): image for batch, _, views in alone for view, image in zip(views, batch, strict=True)}
    for rank in range(2):
        for batch, _, views in take(images, 0, 2, sample=sampler(images, rank=rank, world_size=2)):
            for view, image in zip(views, batch, strict=True):
                assert torch.equal(found.pop(int(view)), image)
    assert not found


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_resuming_anywhere_gives_the_rest_of_the_run(images, world_size):
    """The last rank, across the border of an epoch; 2 groups of 2 a rank."""
    augment = replace(AUGMENT, image_size_px=32, policy="none")
    sample = sampler(images, batch=4 * world_size, group=2, rank=world_size - 1, world_size=world_size)
    end = max(4, sample.steps_per_epoch + 2)
    whole = take(images, end - 4, end, augment, sample)
    for start in (end - 3, end - 1):
        resumed = take(images, start, end, augment, sample)
        for mine, theirs in zip(whole[start - end :], resumed, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def grown_mb(root, batches):
    """In a process of its own, from the 100th batch to the last, by the full recipe at a small size."""
    command = [sys.executable, "-c", MEMORY, str(root), str(batches)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_does_not_grow(digits):
    """10 MB are noise; a batch kept would be 0.1 MB each, 15 MB."""
    assert grown_mb(digits / "train", 250) < 10


@pytest.mark.slow
def test_memory_does_not_grow_over_5000_batches(digits):
    assert grown_mb(digits / "train", 5000) < 10


MEMORY = """
import resource, sys
from deit_fast.dali_pipelines.image_folder import scan_image_folder
from deit_fast.dali_pipelines.loader import TrainLoader
from deit_fast.dali_pipelines.sampler import TrainSampler
from deit_fast.dali_pipelines.train_augment import TrainAugment

images = scan_image_folder(sys.argv[1])
sampler = TrainSampler(len(images), global_batch_size=8, group_size=8, repeats=3, seed=0)
loader = TrainLoader(images, sampler, TrainAugment(image_size_px=32, geometry="bilinear"))


def resident_mb():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / 1e6


last = int(sys.argv[2])
for number, _ in enumerate(loader.batches(0, last)):
    if number == 100:
        start = resident_mb()
print(resident_mb() - start)
"""


def test_repeats_show_an_image_in_different_views(images):
    (batch, _, views), *_ = take(images, 0, 1)
    shown = sampler(images).images(0, views.numpy())
    order = np.argsort(shown, kind="stable")
    pair = order[:2]
    assert shown[pair[0]] == shown[pair[1]]
    assert not torch.equal(batch[pair[0]], batch[pair[1]])


def test_without_augmentation_it_is_torchvisions_crop_of_the_same_box(images):
    """Decode, crop, bicubic resize, flip, normalise: 97 % of pixels within 1 of 255, mean 0.25."""
    augment = replace(AUGMENT, policy="none", erase_probability=0.0)
    sample = sampler(images)
    (batch, _, views), *_ = take(images, 0, 1, augment)
    shown = sample.images(0, views.numpy())
    crops, flips = draw_crops(3, 0, views.numpy(), 0.08), draw_flips(3, 0, views.numpy(), 0.5)
    assert 0 < flips.sum() < len(flips)
    for i, image in enumerate(shown):
        picture = Image.open(images.path(image)).convert("RGB")
        box = choose_crop(crops, i, picture.height, picture.width)
        resized = transforms.functional.resized_crop(picture, *box, [64, 64], transforms.InterpolationMode.BICUBIC)
        expected = np.asarray(resized)[:, :: -1 if flips[i] else 1].transpose(2, 0, 1)
        difference = (pixels(batch[i]) - torch.from_numpy(expected.copy()).float()).abs()
        assert difference.mean() <= 0.25
        assert (difference < 1.5).float().mean() >= 0.97


def test_erasing_puts_noise_after_normalisation(images):
    never = take(images, 0, 2, replace(AUGMENT, policy="none", erase_probability=0.0))
    always = take(images, 0, 2, replace(AUGMENT, policy="none", erase_probability=1.0))
    for (plain, *_), (erased, *_) in zip(never, always, strict=True):
        changed = (plain != erased).any(dim=1)
        for where, image in zip(changed, erased, strict=True):
            rows, columns = where.any(dim=1).nonzero()[:, 0], where.any(dim=0).nonzero()[:, 0]
            assert where.sum() == len(rows) * len(columns)  # a rectangle
            assert 0.01 < where.float().mean() < 0.36
            assert image[:, where].std() == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize("crop_ratio", [0.875, 1.0])
@pytest.mark.parametrize("size", [224, 65])
def test_validation_is_torchvisions(tmp_path, crop_ratio, size):
    """Mean difference at most 0.05 of 255, at most 6 anywhere, for odd sizes and both orientations too."""
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    source = Image.fromarray(skimage.data.coffee())
    for i, shape in enumerate([(500, 375), (333, 500), (257, 255), (400, 401), (64, 500), (301, 301), (640, 427)]):
        source.resize(shape).save(folder / f"{i}.jpg", quality=95)
    images = scan_image_folder(tmp_path / "val")
    loader = ValidationLoader(
        images,
        ValidationSampler(len(images), batch_size=3),
        image_size_px=size,
        crop_ratio=crop_ratio,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    ours = torch.cat([batch.images.clone() for batch in loader])
    transform = transforms.Compose(
        [
            transforms.Resize(int(size / crop_ratio), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )
    assert len(ours) == len(images)
    for i in range(len(images)):
        expected = transform(Image.open(images.path(i)).convert("RGB")).float()
        difference = (pixels(ours[i]) - expected).abs()
        assert difference.mean() <= 0.05, images.path(i)
        assert difference.max() < 6.5, images.path(i)


def test_a_batch_lives_until_the_next_is_asked_for(images):
    """What the loader hands out is DALI's own memory: it must not change while the trainer works on it."""
    kept = take(images, 0, 8)
    batches = TrainLoader(images, sampler(images), AUGMENT, seed=3, prefetch=2).batches(0, 8)
    for batch, (expected, _, _) in zip(batches, kept, strict=True):
        torch.randn(200, 200) @ torch.randn(200, 200)  # time for the pipeline to run ahead
        assert torch.equal(batch.images, expected)


def test_a_batch_in_torchs_own_memory_stays(images):
    kept = take(images, 0, 4)
    batches = TrainLoader(images, sampler(images), AUGMENT, seed=3, prefetch=2, copies=True).batches(0, 4)
    for batch, (expected, _, _) in zip(list(batches), kept, strict=True):
        assert torch.equal(batch.images, expected)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_erasing_modes(images, mode):
    """Two rectangles at most; each of noise per pixel, of one colour, or of zeros (the mean colour)."""
    plain = replace(AUGMENT, policy="none", erase_probability=0.0)
    erased = replace(plain, erase_probability=1.0, erase_mode=mode, erase_count=2)
    before, after = take(images, 0, 3, plain), take(images, 0, 3, erased)
    colours = []
    for (one, *_), (other, *_) in zip(before, after, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            values = theirs[:, (mine != theirs).any(dim=0)]
            assert values.shape[1] > 0
            colours.append(len(torch.unique(values, dim=1)[0]))
            if mode == "const":
                assert values.abs().max() == 0
    if mode == "rand":
        assert set(colours) == {1, 2}  # a colour for each rectangle
    if mode == "pixel":
        assert min(colours) > 10


def test_views_that_share_a_decoding_are_the_views_that_do_not(images):
    """Full decoding once and a crop of it, against a region decoded for each view: the same pixels."""
    sample = TrainSampler(len(images), global_batch_size=24, group_size=12, repeats=3, seed=0, placement="same_rank")
    shared = take(images, 0, 2, replace(AUGMENT, decode_once=True), sample=sample)
    alone = take(images, 0, 2, AUGMENT, sample=sample)
    for (one, *_), (other, _, views) in zip(shared, alone, strict=True):
        assert len(np.unique(sample.images(0, views.numpy()))) == 8
        assert torch.equal(one, other)


def test_a_simple_crop_is_torchvisions(images):
    """DeiT III's `src`: resize, pad 4 px by mirroring, random crop."""
    augment = replace(AUGMENT, crop="simple", policy="none", erase_probability=0.0, flip_probability=0.0)
    (batch, _, views), *_ = take(images, 0, 1, augment)
    position = draw_crops(3, 0, views.numpy(), 0.08).position
    corners = []
    for i, image in enumerate(sampler(images).images(0, views.numpy())):
        picture = Image.open(images.path(image)).convert("RGB")
        resized = transforms.functional.resize(picture, 64, transforms.InterpolationMode.BICUBIC)
        padded = transforms.functional.pad(resized, [4, 4, 4, 4], padding_mode="reflect")
        top = int(position[i, 0] * (padded.height - 64 + 1))
        left = int(position[i, 1] * (padded.width - 64 + 1))
        corners.append((top, left))
        expected = np.asarray(transforms.functional.crop(padded, top, left, 64, 64)).transpose(2, 0, 1)
        assert (pixels(batch[i]) - torch.from_numpy(expected.copy()).float()).abs().mean() < 0.1
    assert len(set(corners)) > 8


@pytest.mark.parametrize("content", [b"", b"garbage", "truncated", "missing"])
def test_a_bad_file_is_named(tmp_path, photographs, content):
    shutil.copytree(photographs / "train", tmp_path / "train")
    bad = sorted((tmp_path / "train").rglob("*.jpg"))[5]
    images = scan_image_folder(tmp_path / "train")
    if content == "missing":
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[:3000] if content == "truncated" else content)
    with pytest.raises(BadImageError, match=bad.name):
        take(images, 0, sampler(images).steps_per_epoch, sample=sampler(images, repeats=1))


def test_unusual_pictures_decode_as_pillow(tmp_path):
    """Grey, CMYK, progressive, PNG and names that lie: what ImageNet holds too."""
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((96, 80))
    smooth.convert("L").save(folder / "grey.jpg", quality=95)
    smooth.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    smooth.save(folder / "progressive.jpg", quality=95, progressive=True)
    smooth.save(folder / "picture.png")
    smooth.save(folder / "lies.jpg", format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated: torchvision's loader does not turn it, and neither does the recipe
    smooth.save(folder / "rotated.jpg", quality=95, exif=exif)
    images = scan_image_folder(tmp_path / "val")
    loader = ValidationLoader(
        images,
        ValidationSampler(len(images), batch_size=8),
        image_size_px=80,
        crop_ratio=1.0,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    (batch,) = [batch.images.clone() for batch in loader]
    for i in range(len(images)):
        expected = transforms.functional.center_crop(Image.open(images.path(i)).convert("RGB"), [80, 80])
        difference = np.abs(pixels(batch[i]).numpy() - np.asarray(expected).transpose(2, 0, 1))
        assert difference.max() <= 3, images.path(i)


def test_wrong_options_are_named(images):
    with pytest.raises(ValueError, match="data.decoder is gpu, but runtime.device is cpu"):
        TrainLoader(images, sampler(images), AUGMENT, decoder="gpu")
    with pytest.raises(ValueError, match="eval.crop_ratio"):
        ValidationLoader(
            images, ValidationSampler(4, batch_size=2), image_size_px=64, crop_ratio=1.5, mean=(0, 0, 0), std=(1, 1, 1)
        )
