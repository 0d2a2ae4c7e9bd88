"""The loaders on the native backend: against Pillow and the graph backend, bad files, threads, what fails and how."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from deit_fast.benchmarks.native_parity import pillow_resize
from deit_fast.benchmarks.parity import timm_rand_augment
from deit_fast.config import Config, DataConfig
from deit_fast.dali_pipelines import native_graph
from deit_fast.dali_pipelines.draws import choose_crop, draw_crops, draw_erasing, draw_flips
from deit_fast.dali_pipelines.image_folder import scan_image_folder
from deit_fast.dali_pipelines.loader import TrainLoader, ValidationLoader
from deit_fast.dali_pipelines.native import plugin
from deit_fast.dali_pipelines.operation import Operation
from deit_fast.dali_pipelines.rand_augment import draw_rand_augment, parse_rand_augment
from deit_fast.dali_pipelines.sampler import TrainSampler, ValidationSampler
from deit_fast.dali_pipelines.train_augment import IMAGENET_MEAN, IMAGENET_STD, TrainAugment
from deit_fast.data import train_loader, validation_loader
from deit_fast.distributed import Ranks

pytestmark = pytest.mark.skipif(not plugin.is_available(), reason=plugin.describe())

SIZE = 96
AUGMENT = TrainAugment(image_size_px=SIZE)
SEED = 3


@pytest.fixture(scope="module")
def images(photographs):
    return scan_image_folder(photographs / "train")


def sampler(images, repeats=3, **options):
    """Of the photographs, three steps make an epoch."""
    return TrainSampler(len(images), global_batch_size=16, group_size=8, repeats=repeats, seed=0, **options)


def take(images, count, augment=AUGMENT, first=0, sample=None, backend="native", **options):
    loader = TrainLoader(images, sample or sampler(images), augment, seed=SEED, backend=backend, **options)
    return [(batch.images.clone(), batch.views) for batch in loader.batches(first, first + count)]


def to_bytes(batch):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (batch.float() * std + mean) * 255


def by_pillow(picture, box, flip, operations, magnitudes, signs):
    """torchvision's crop, Pillow's resize and timm's operations, on this view's draws."""
    top, left, height, width = box
    pixels = pillow_resize(np.asarray(picture)[top : top + height, left : left + width], SIZE, SIZE)
    pixels = np.ascontiguousarray(pixels[:, :: -1 if flip else 1])
    for operation, magnitude, sign in zip(operations, magnitudes, signs, strict=True):
        if operation != Operation.NONE:
            (pixels,) = timm_rand_augment([pixels], operation, magnitude, np.array([sign]))
    return pixels


def test_a_whole_view_is_pillows(images):
    """All of the recipe but rotation, bit for bit before normalisation; then noise where timm would put it."""
    policy = "rand-m7-inc1"
    augment = replace(AUGMENT, rand_augment=policy, erase_probability=0.5)
    sample = sampler(images)
    checked = 0
    for pixels, views in take(images, 3, augment):
        views = views.numpy()
        drawn = draw_rand_augment(parse_rand_augment(policy), SEED, 0, views)
        crops, flips = draw_crops(SEED, 0, views, 0.08), draw_flips(SEED, 0, views, 0.5)
        (rectangle,) = draw_erasing(SEED, 0, views, augment)
        for i, image in enumerate(sample.images(0, views)):
            if Operation.ROTATE in drawn.operations[i]:
                continue
            picture = Image.open(images.path(image)).convert("RGB")
            signs = np.sign(drawn.arguments[i] - (drawn.operations[i] < Operation.ROTATE))  # enhancement is about 1
            expected = by_pillow(picture, choose_crop(crops, i, picture.height, picture.width), flips[i],
                                 drawn.operations[i], [7.0, 7.0], signs)  # fmt: skip
            expected = (expected / 255 - IMAGENET_MEAN) / IMAGENET_STD
            if rectangle.erased[i]:
                (top, left), (height, width) = rectangle.anchors[i], rectangle.shapes[i]
                expected[top : top + height, left : left + width] = rectangle.content[i]
            difference = np.abs(pixels[i].permute(1, 2, 0).numpy() - expected)
            assert difference.max() < 2e-6 * 8, (i, drawn.operations[i])
            checked += 1
    assert checked >= 30


def test_views_are_the_graphs(images):
    """Without operations: DALI's resize is off by up to 8 of 255 from Pillow's, in 99.5 % of values by at most 1."""
    plain = replace(AUGMENT, policy="none")
    for (ours, _), (theirs, _) in zip(take(images, 2, plain), take(images, 2, plain, backend="graph"), strict=True):
        difference = (to_bytes(ours) - to_bytes(theirs)).abs()
        assert (difference < 1.01).float().mean() >= 0.995
        assert difference.max() < 8.5


def test_with_operations_views_are_the_graphs(images):
    """Operations with thresholds turn a difference of 1 into more; most values stay within 1."""
    for policy in ("rand", "three"):
        augment = replace(AUGMENT, policy=policy, crop="simple" if policy == "three" else "resized")
        for (ours, _), (theirs, _) in zip(
            take(images, 2, augment), take(images, 2, augment, backend="graph"), strict=True
        ):
            assert ((to_bytes(ours) - to_bytes(theirs)).abs() < 1.01).float().mean() >= 0.95


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(images, dtype):
    ((full, _),) = take(images, 1)
    ((half, _),) = take(images, 1, dtype=dtype)
    assert half.dtype == dtype
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half, full.to(dtype))


def test_bytes_come_out_when_asked_for(images):
    augment = replace(AUGMENT, erase_mode="const", erase_probability=0.5)
    ((raw, _),) = take(images, 1, replace(augment, normalize=False))
    ((normalised, _),) = take(images, 1, augment)
    assert raw.dtype == torch.uint8
    assert (to_bytes(normalised) - raw.float()).abs().max() < 0.51


def test_neither_threads_nor_the_starting_step_nor_the_split_nor_shared_decoding_change_a_view(images):
    whole = take(images, 3, num_threads=1, prefetch=1)
    others = (
        take(images, 3, num_threads=4, prefetch=3),
        whole[:2] + take(images, 1, first=2),
        take(images, 3, replace(AUGMENT, decode_once=True)),
    )
    for other in others:
        for mine, theirs in zip(whole, other, strict=True):
            assert torch.equal(mine[0], theirs[0])
    found = {int(view): image for batch, views in whole for view, image in zip(views, batch, strict=True)}
    for rank in range(2):
        for batch, views in take(images, 3, sample=sampler(images, rank=rank, world_size=2)):
            for view, image in zip(views, batch, strict=True):
                assert torch.equal(found.pop(int(view)), image)
    assert not found


def test_without_a_jpeg_library_dalis_decoder_gives_the_same_pixels(images, monkeypatch):
    whole = take(images, 2)
    monkeypatch.setattr(native_graph, "decodes_jpeg", lambda: False)
    for (ours, _), (theirs, _) in zip(take(images, 2), whole, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("level", plugin.simd_levels() if plugin.is_available() else [])
def test_levels_give_the_same_batch(images, level, monkeypatch):
    ((fastest, _),) = take(images, 1)
    monkeypatch.setenv(plugin.SIMD_VARIABLE, level)
    ((forced, _),) = take(images, 1)
    assert torch.equal(forced, fastest)


@pytest.mark.parametrize(("crop_ratio", "size"), [(0.875, 224), (1.0, 65)])
def test_validation_is_torchvisions_bit_for_bit(photographs, tmp_path, crop_ratio, size):
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    source = Image.open(next((photographs / "val").rglob("*.jpg")))
    for i, shape in enumerate([(500, 375), (333, 500), (257, 255), (400, 401), (64, 500), (301, 301), (640, 427)]):
        source.resize(shape).save(folder / f"{i}.jpg", quality=95)
    images = scan_image_folder(tmp_path / "val")
    loader = ValidationLoader(
        images, ValidationSampler(len(images), batch_size=4), image_size_px=size, crop_ratio=crop_ratio,
        mean=IMAGENET_MEAN, std=IMAGENET_STD, backend="native",
    )  # fmt: skip
    theirs = transforms.Compose(
        [
            transforms.Resize(int(size / crop_ratio), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )
    for batch in loader:
        expected = torch.stack([theirs(Image.open(images.path(image))) for image in batch.views.numpy()])
        assert (to_bytes(batch.images) - expected.float()).abs().max() < 1e-3


def test_odd_files_come_through_dalis_decoder_and_bad_ones_are_replaced(photographs, tmp_path):
    root = tmp_path / "train"
    shutil.copytree(photographs / "train", root)
    files = sorted(root.rglob("*.jpg"))
    Image.open(files[0]).convert("CMYK").save(files[0], "JPEG")
    Image.open(files[1]).save(files[1], "PNG")
    Image.open(files[2]).convert("L").save(files[2], "JPEG", progressive=True)
    whole = files[3].read_bytes()
    files[3].write_bytes(whole[: len(whole) // 2])
    files[4].write_bytes(b"")
    files[5].write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    images = scan_image_folder(root)
    loaders = {
        backend: TrainLoader(images, sampler(images, repeats=1), replace(AUGMENT, policy="none"), seed=SEED,
                             backend=backend, bad_sample="replace", max_bad_fraction=0.2)
        for backend in ("graph", "native")
    }  # fmt: skip
    steps = loaders["native"].sampler.steps_per_epoch
    for ours, theirs in zip(*(loader.batches(0, steps) for loader in loaders.values()), strict=True):
        assert torch.equal(ours.views, theirs.views)
        assert (to_bytes(ours.images) - to_bytes(theirs.images)).abs().mean() < 0.5
    assert loaders["native"].substitutes.bad == loaders["graph"].substitutes.bad
    assert len(loaders["native"].substitutes.bad) == 3


def test_the_configuration_chooses_the_backend(photographs):
    config = replace(Config(), data=DataConfig(path=str(photographs), repeats=1))
    config = replace(config, runtime=replace(config.runtime, batch_size_per_device=16),
                     mix=replace(config.mix, group_size=16))  # fmt: skip
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    images = scan_image_folder(photographs / "train")
    for backend, expected in (("auto", "native"), ("graph", "graph"), ("native", "native")):
        chosen = replace(config, data=replace(config.data, backend=backend))
        assert train_loader(chosen, images, ranks, "fp32").backend == expected
        assert validation_loader(chosen.data, chosen.eval, images, 224, ranks, "fp32").backend == expected


def test_what_cannot_be_says_so(monkeypatch):
    with pytest.raises(ValueError, match="data.backend native runs on the CPU, but runtime.device is cuda"):
        native_graph.choose_backend("native", "gpu")
    assert native_graph.choose_backend("auto", "gpu") == "graph"
    monkeypatch.setenv(plugin.SIMD_VARIABLE, "sse9")
    with pytest.raises(ValueError, match="DEIT_FAST_SIMD sse9 is not among this machine's levels: auto, portable"):
        plugin.simd_level()


def test_a_plugin_for_another_dali_is_refused(tmp_path, monkeypatch):
    """Its first line says how to mend it; nothing of it is loaded."""
    data = plugin.plugin_path().read_bytes()
    version = plugin.nvidia.dali.__version__.encode()
    other = tmp_path / plugin.PLUGIN
    other.write_bytes(
        data.replace(b"built for DALI " + version + b"\0", b"built for DALI " + b"0" * len(version) + b"\0")
    )
    for path, why in ((other, "built for another DALI"), (tmp_path / "none.so", "not built")):
        monkeypatch.setattr(plugin, "plugin_path", lambda path=path: path)
        with pytest.raises(plugin.NativeUnavailableError, match=f"{why}.*native.build"):
            plugin.load_plugin.__wrapped__()
