"""A small real data set for the demo: the handwritten digits that scikit-learn ships, as a folder of JPEGs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

IMAGE_SIZE_PX = 32
VAL_SHARE = 0.2
JPEG_QUALITY = 95


def write_digits(root: Path, seed: int = 0) -> Path:
    """Writes train/ and val/ with one folder of JPEGs per digit under `root`, unless they are there; returns `root`.

    1,797 images of 8x8 grey levels (UCI, "Optical Recognition of Handwritten Digits"), enlarged to 32x32 px; a fifth of
    each class goes to val/. RuntimeError when scikit-learn or Pillow is missing. Written beside `root`, then renamed,
    so that a broken attempt leaves nothing.
    """
    if root.is_dir():
        return root
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(
            f"the demo's images need {error.name}; install it by `pip install 'deit-fast[demo]'`"
        ) from error

    digits = load_digits()
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for index, split in enumerate(split_by_class(digits.target, seed)):
        folder = partial / split / str(digits.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BICUBIC)
        image.convert("RGB").save(folder / f"{index:04d}.jpg", quality=JPEG_QUALITY)
    partial.rename(root)
    return root


def split_by_class(labels: np.ndarray, seed: int) -> list[str]:
    """`train` or `val` for each image: the same share of every class, drawn from the seed."""
    split = np.full(len(labels), "train", dtype=object)
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        split[members[: round(VAL_SHARE * len(members))]] = "val"
    return list(split)
