"""Real images for all tests: the handwritten digits as the demo writes them, and photographs."""

import os
import shutil

import pytest
import torch
from layouts import WNIDS, small_jpegs

from deit_fast.benchmarks.photographs import write_photographs
from deit_fast.digits import write_digits

# They need a process of their own: test_kernels_interpreted.py starts it.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache, where a tuned file or a listing may lie."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME") if before is None else os.environ.update(XDG_CACHE_HOME=before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """1,437 + 360 JPEGs of 32 x 32 px in 10 classes."""
    return write_digits(tmp_path_factory.mktemp("digits") / "digits")


@pytest.fixture(scope="session")
def few_digits(digits, tmp_path_factory):
    """10 + 4 digits of each class: 100 and 40 images."""
    root = tmp_path_factory.mktemp("few") / "digits"
    for split, count in (("train", 10), ("val", 4)):
        for folder in sorted((digits / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                shutil.copy(path, root / split / folder.name)
    return root


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """60 ImageNet-like JPEGs in train/ and val/, of several shapes."""
    return write_photographs(tmp_path_factory.mktemp("photographs") / "photographs", 60)


@pytest.fixture(scope="session")
def jpegs():
    """The bytes of 12 small JPEGs."""
    return small_jpegs(12)


@pytest.fixture(scope="session")
def imagefolder(jpegs, tmp_path_factory):
    """Three classes of 3 training images and 1 for validation."""
    root = tmp_path_factory.mktemp("imagefolder")
    for i, jpeg in enumerate(jpegs):
        wnid, split = WNIDS[i % 3], "train" if i < 9 else "val"
        name = f"{wnid}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{i - 8:08d}.JPEG"
        (root / split / wnid).mkdir(parents=True, exist_ok=True)
        (root / split / wnid / name).write_bytes(jpeg)
    return root


@pytest.fixture(scope="session")
def teacher_checkpoint(tmp_path_factory):
    """A small ConvNet (resnet10t) with 10 classes and its first weights."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "resnet10t.pth"
    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, headless, driven by playwright."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("pages are tested in Chromium: apt-get install chromium")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--headless", *flags.split()])
        yield browser
        browser.close()
