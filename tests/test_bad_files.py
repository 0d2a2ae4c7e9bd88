"""Every kind of file that data sets hold, with its stated outcome: read as Pillow reads it, read otherwise, or bad.

The table of docs/data.md is this one.
"""

import json
import logging

import numpy as np
import pytest
import skimage.data
import torch
from layouts import encode, pack_folder
from PIL import Image
from torchvision import transforms

from deit_fast.cli import main
from deit_fast.config import DataConfig
from deit_fast.dali_pipelines.loader import TrainLoader, ValidationLoader
from deit_fast.dali_pipelines.native.plugin import is_available
from deit_fast.dali_pipelines.sampler import TrainSampler, ValidationSampler
from deit_fast.dali_pipelines.scan import scan_images
from deit_fast.dali_pipelines.train_augment import TrainAugment
from deit_fast.open_images import open_images

SIZE_PX = 64
PICTURE = Image.fromarray(skimage.data.coffee()).resize((150, 120))
JPEG = encode(PICTURE, quality=92)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
SIXTEEN_BIT = Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257)
FLIPPED = slice(3000, 3040)
"""Bytes well inside the compressed data of JPEG."""

AS_PILLOW = {
    "grayscale.jpg": encode(PICTURE.convert("L")),
    "cmyk.jpg": encode(PICTURE.convert("CMYK")),
    "progressive.jpg": encode(PICTURE, progressive=True),
    "png named jpeg.JPEG": encode(PICTURE, "PNG"),
    "webp named jpeg.jpg": encode(PICTURE, "WEBP", quality=90),
    "bmp named jpeg.jpg": encode(PICTURE, "BMP"),
    "palette.png": encode(PICTURE.convert("P"), "PNG"),
    "transparent.png": encode(PICTURE.convert("RGBA"), "PNG"),
    "rotated by exif.jpg": encode(PICTURE, exif=ROTATED),
    "one pixel.jpg": encode(PICTURE.resize((1, 1))),
    "a line.jpg": encode(PICTURE.resize((600, 5))),
}
READ_OTHERWISE = {
    "16 bit.png": encode(SIXTEEN_BIT, "PNG"),
    "flipped bytes.jpg": JPEG[:3000] + bytes(255 - b for b in JPEG[FLIPPED]) + JPEG[3040:],
}
BAD = {
    "empty.jpg": (b"", "empty"),
    "garbage.jpg": (b"garbage" * 100, "no image"),
    "gif.jpg": (encode(PICTURE.convert("P"), "GIF"), "a GIF, which DALI does not decode"),
    "header only.jpg": (JPEG[:200], "a truncated JPEG"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "a truncated JPEG"),
    "without end.jpg": (JPEG[:-2], "a truncated JPEG"),
    "truncated.png": (encode(PICTURE, "PNG")[:2000], "a damaged image"),
    "missing.jpg": (None, "missing"),
}
FOUND_IN_TRAINING_WHATEVER_THE_CROP = {"empty.jpg", "garbage.jpg", "gif.jpg", "header only.jpg", "missing.jpg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One class with every kind, and one with sound JPEGs, twice: train and val."""
    root = tmp_path_factory.mktemp("kinds")
    for split in ("train", "val"):
        (root / split / "kinds").mkdir(parents=True)
        (root / split / "sound").mkdir()
        for name, content in {**AS_PILLOW, **READ_OTHERWISE, **{name: made for name, (made, _) in BAD.items()}}.items():
            (root / split / "kinds" / name).write_bytes(content or b"")
        for i in range(11):
            (root / split / "sound" / f"{i}.jpg").write_bytes(encode(PICTURE.rotate(30 * i)))
    return root


@pytest.fixture(scope="module")
def sets(folder, tmp_path_factory):
    """(source, split) -> images; in the folders one file goes missing after the listing."""
    packed = pack_folder(folder, tmp_path_factory.mktemp("packed"))
    found = {
        (source, split): open_images(DataConfig(path=str(root)), split)
        for source, root in (("folder", folder), ("shards", packed))
        for split in ("train", "val")
    }
    for split in ("train", "val"):
        (folder / split / "kinds" / "missing.jpg").unlink()
    return found


def file_names(sets, split):
    """Of all images, in either source."""
    files = sets["folder", split]
    return [files.path(i).rpartition("/")[2] for i in range(len(files))]


def test_the_scan_finds_the_bad_ones_and_says_why(sets):
    expected = {name: reason for name, (_, reason) in BAD.items()}
    names = file_names(sets, "train")
    found = {image: reason for _, bad in scan_images(sets["folder", "train"], 2) for image, reason in bad}
    assert {names[image]: reason for image, reason in found.items()} == expected
    in_shards = {image: reason for _, bad in scan_images(sets["shards", "train"], 2) for image, reason in bad}
    assert in_shards.keys() == found.keys()
    assert set(in_shards.values()) == {
        *(set(expected.values()) - {"missing", "empty"}),
        "empty, or missing in the store",
    }


needs_native = pytest.mark.skipif(not is_available(), reason="the native operators are not built")
on_both_backends = pytest.mark.parametrize("backend", ["graph", pytest.param("native", marks=needs_native)])


@on_both_backends
@pytest.mark.parametrize("source", ["folder", "shards"])
def test_what_is_read_is_what_pillow_reads(sets, source, backend, caplog):
    """Within 6 of 255, mean 0.5; bad ones are left out of the scores and named."""
    images, files, names = sets[source, "val"], sets["folder", "val"], file_names(sets, "val")
    loader = ValidationLoader(
        images,
        ValidationSampler(len(images), batch_size=4),
        image_size_px=SIZE_PX,
        crop_ratio=1.0,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        num_threads=1,
        bad_sample="replace",
        backend=backend,
    )
    with caplog.at_level(logging.WARNING):
        shown = {}
        for batch in loader:
            shown |= dict(zip(batch.views.tolist(), 255 * batch.images, strict=True))
    assert {names[i] for i in set(range(len(images))) - shown.keys()} == BAD.keys()
    assert caplog.text.count("is left out of the scores") == len(BAD)
    as_torchvision = transforms.Compose(
        [
            transforms.Resize(SIZE_PX, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE_PX),
            transforms.PILToTensor(),
        ]
    )
    for i, view in shown.items():
        if names[i] in AS_PILLOW:
            with Image.open(files.path(i)) as picture:
                difference = (view - as_torchvision(picture.convert("RGB")).float()).abs()
            assert difference.max() < 6.5, names[i]
            assert difference.mean() < 0.5, names[i]
    deep = as_torchvision(PICTURE.convert("L").convert("RGB")).float()
    assert (shown[names.index("16 bit.png")] - deep).abs().mean() < 1  # scaled to 8 bits; Pillow would saturate


@on_both_backends
@pytest.mark.parametrize("source", ["folder", "shards"])
def test_training_replaces_the_bad_ones(sets, source, backend):
    """A truncated file is found when a crop reaches what it lacks; the others at the first sight."""
    images, names = sets[source, "train"], file_names(sets, "train")
    sampler = TrainSampler(len(images), global_batch_size=16, group_size=16, repeats=1, seed=0)
    augment = TrainAugment(image_size_px=SIZE_PX, policy="none", erase_probability=0.0)
    options = {"num_threads": 1, "bad_sample": "replace", "max_bad_fraction": 0.5, "backend": backend}
    loader = TrainLoader(images, sampler, augment, **options)
    for batch in loader.batches(0, 2 * sampler.steps_per_epoch):
        assert torch.isfinite(batch.images).all()
    found = {names[image] for image in loader.substitutes.bad}
    assert found >= FOUND_IN_TRAINING_WHATEVER_THE_CROP
    assert found <= BAD.keys()
    assert loader.substitutes.replaced_views >= len(FOUND_IN_TRAINING_WHATEVER_THE_CROP)


@on_both_backends
def test_many_bad_images_in_large_batches_do_not_kill_the_process(tmp_path, digits, backend):
    """DALI's whole-image decoder died of this batch (SIGSEGV), whatever the number of threads."""
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    bad = set(range(5, 256, 20))
    for i, file in enumerate(sorted((digits / "train").rglob("*.jpg"))[:256]):
        content = file.read_bytes()
        (folder / f"{i:03d}.jpg").write_bytes((content[:-200], b"garbage")[i % 2] if i in bad else content)
    images = open_images(DataConfig(path=str(tmp_path)), "val")
    assert {image for _, found in scan_images(images, 2) for image, _ in found} == bad
    sampler = ValidationSampler(len(images), batch_size=128)
    options = {"image_size_px": 32, "crop_ratio": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3, "num_threads": 2}
    loader = ValidationLoader(images, sampler, **options, bad_sample="replace", backend=backend)
    assert sum(len(batch.labels) for batch in loader) == 256 - len(bad)


def test_a_run_counts_them(few_digits, tmp_path, capsys, monkeypatch):
    """A scan finds them beforehand: training replaces them from its first batch, and counts them in rows and log."""
    import shutil

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "digits"
    shutil.copytree(few_digits, root)
    files = sorted((root / "train").rglob("*.jpg"))
    bad = [3, 50, 77]
    for image in bad:
        files[image].write_bytes(b"garbage")
    assert main(["data", "scan", "--data.path", str(root), "--json", str(tmp_path / "scan.json")]) == 0
    assert "train: 100 images, 3 bad" in capsys.readouterr().out
    scanned = json.loads((tmp_path / "scan.json").read_text())["train"]
    assert [row["name"] for row in scanned["bad"]] == [str(files[image].relative_to(root)) for image in bad]
    assert open_images(DataConfig(path=str(root)), "train").bad.tolist() == bad
    run = ("train", "--config", "demo_student", "--data.path", str(root), "--checkpoint.dir", str(tmp_path / "run"))
    size = ("--runtime.batch_size_per_device", "32", "--mix.group_size", "16", "--schedule.epochs", "1")
    assert main([*run, *size, "--data.repeats", "1", "--data.max_bad_fraction", "0.05"]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:96]  # the official order, three batches
    expected = sum(int(image) in bad for image in order)
    assert expected > 0
    assert (row["bad_images"], row["replaced_views"]) == (3, expected)
    assert f"replaced {expected} views of bad images" in capsys.readouterr().err
    assert main([*run[:-1], str(tmp_path / "other"), *size, "--data.max_bad_fraction", "0.02"]) == 2
    assert "3 of 100 images cannot be read or decoded" in capsys.readouterr().err
