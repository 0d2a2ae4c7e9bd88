"""Other people's loaders: that they show the recipe's images, all that they are asked for, and say what is missing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deit_fast.benchmarks.peers import CROP, FULL, PEERS, VALIDATION, Peer, PeerWork, peer_turn, shown_name
from deit_fast.benchmarks.torch_peers import TRANSFORMS, Epochs, Images
from deit_fast.cli import main
from deit_fast.config import Config
from deit_fast.dali_pipelines.image_folder import scan_image_folder


@pytest.fixture(scope="module")
def images(photographs):
    return scan_image_folder(photographs / "train")


@pytest.fixture(scope="module")
def config():
    return replace(Config(), model=replace(Config().model, image_size_px=64))


@pytest.fixture(scope="module")
def expected(images, config):
    """torchvision's validation of an image of each shape."""
    load, make_transform = TRANSFORMS["torchvision"]
    return torch.stack([Images(images, load, make_transform(config, VALIDATION))[index][0] for index in range(8)])


def assert_close_to_torchvision(shown, expected):
    """Decoders, rounding and the width of bicubic differ: normalised values by less than 0.25 on average."""
    assert shown.shape == expected.shape
    assert shown.dtype == torch.float32
    assert (shown - expected).abs().mean() < 0.25
    shifted = expected.roll(4, -1)  # what a crop that is 4 px off would give is farther away
    assert (shown - expected).abs().mean() < 0.5 * (shown - shifted).abs().mean()


@pytest.mark.parametrize("peer", list(TRANSFORMS))
def test_transforms_give_square_images_with_their_labels(images, config, peer):
    load, make_transform = TRANSFORMS[peer]
    for workload in (CROP, FULL, VALIDATION):
        image, label = Images(images, load, make_transform(config, workload))[7]
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.float32
        assert label == images.labels[7]


def test_timm(images, config, expected):
    load, make_transform = TRANSFORMS["timm"]
    shown = Images(images, load, make_transform(config, VALIDATION))
    assert_close_to_torchvision(torch.stack([shown[index][0] for index in range(8)]), expected)


def test_each_pass_is_as_long_as_the_other():
    passes = Epochs(10, 4, 3, shuffle=True)
    seen = [list(passes), list(passes)]
    assert [len(batches) for batches in seen] == [3, 3]
    assert sorted(np.array(seen).ravel()[:10]) == list(range(10))


def test_albumentations(images, config, expected):
    peer = pytest.importorskip("deit_fast.benchmarks.albumentations_peer", reason="albumentations is not installed")
    show = peer.transform(config, VALIDATION)
    shown = torch.stack([show(peer.open_with_opencv(images.path(index))) for index in range(8)])
    assert_close_to_torchvision(shown, expected)
    crop = peer.transform(config, CROP)
    first, second = (crop(peer.open_with_opencv(images.path(0))) for _ in range(2))
    assert first.shape == (3, 64, 64)
    assert not torch.equal(first, second)


@pytest.fixture
def spdl_peer():
    peer = pytest.importorskip("deit_fast.benchmarks.spdl_peer", reason="spdl is not installed")
    try:
        peer.check_ffmpeg()
    except RuntimeError as error:
        pytest.skip(str(error))
    return peer


def test_spdl(images, config, expected, spdl_peer):
    frames = [spdl_peer.decode(images.path(index), spdl_peer.validation_filter(config)) for index in range(8)]
    shown = spdl_peer.to_batch(frames)
    assert shown.is_contiguous(memory_format=torch.channels_last)
    assert_close_to_torchvision(shown, expected)
    for workload in PEERS["spdl"].workloads:
        prepare = peer_turn("spdl", workload, config, images, workers=2, batch_size=8, batches=8)
        assert [prepare()(), prepare()()] == [64, 64]  # more than the 48 images that there are


@pytest.mark.slow
def test_ffcv(images, config, expected, tmp_path):
    peer = pytest.importorskip("deit_fast.benchmarks.ffcv_peer", reason="ffcv is not installed")
    work = PeerWork("ffcv", VALIDATION, config, images, workers=1, batch_size=8, batches=6)
    shown, labels = next(iter(peer.open_loader(work, tmp_path / "images.beton")))
    assert labels.flatten().tolist() == images.labels[:8].tolist()
    assert_close_to_torchvision(shown, expected)
    prepare = peer_turn("ffcv", CROP, config, images, workers=2, batch_size=8, batches=8)
    assert [prepare()(), prepare()()] == [64, 64]


def test_pillow_simd_is_named(monkeypatch):
    assert shown_name("timm") == "timm"
    monkeypatch.setattr("PIL.__version__", "12.1.1.post0")  # as Pillow-SIMD numbers its releases
    assert shown_name("timm") == "timm on Pillow-SIMD 12.1.1.post0"
    assert shown_name("torchvision") == "torchvision"


def test_what_is_missing_is_named(capsys, monkeypatch):
    assert main(["bench", "loader", "--against", "timm,nobody"]) == 2
    assert "--against nobody" in capsys.readouterr().err
    assert main(["bench", "loader", "--packed", "/nowhere"]) == 2
    assert "data pack --output /nowhere" in capsys.readouterr().err
    monkeypatch.setitem(PEERS, "absent", Peer("absent_peer", "no_such_package", "pip install it"))
    assert main(["bench", "loader", "--against", "absent"]) == 1
    assert "needs the package no_such_package, which is missing: pip install it" in capsys.readouterr().err
