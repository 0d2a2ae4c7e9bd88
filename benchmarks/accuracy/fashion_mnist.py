"""Fashion-MNIST as a folder of JPEGs: 10 classes of clothing, small enough for a CPU, hard enough to tell models apart.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017
(arXiv 1708.07747). Debian's package dataset-fashion-mnist brings the four files.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SPLITS = {"train": "train", "val": "t10k"}
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
MARGIN_PX = 2
"""On each side, so that patches of 8 px tile 28 + 4."""
JPEG_QUALITY = 95


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of bytes, [n] or [n, height, width]; ValueError, naming the file, for anything else."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); `apt-get install dataset-fashion-mnist` brings it"
        ) from error
    dimensions = content[3] if content[:3] == b"\0\0\x08" else 0  # two zeros, then 8 for unsigned bytes
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4)) if dimensions else ()
    if not dimensions or len(content) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise ValueError(f"{path} is no whole IDX file of bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` images, the same number of each class; ValueError when there are not so many."""
    classes = np.unique(labels)
    each = count // len(classes)
    if not 1 <= each <= np.bincount(labels)[classes].min():
        raise ValueError(f"{count} images are not to be had evenly of {len(classes)} classes; there are {len(labels)}")
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in classes]))


def write_fashion_mnist(root: Path, counts: dict[str, int], source: Path = DEBIAN) -> Path:
    """Writes train/ and val/ with as many JPEGs as `counts` says, unless they are there; returns `root`.

    Grey in three channels, 32 x 32 px. Written beside `root`, then renamed, so that a broken attempt leaves nothing.
    """
    if root.is_dir():
        return root
    from PIL import Image

    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, stem in SPLITS.items():
        images = read_idx(source / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{stem}-labels-idx1-ubyte.gz")
        for index in balanced(labels, counts[split]):
            folder = partial / split / f"{labels[index]}_{CLASSES[labels[index]]}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.pad(images[index], MARGIN_PX)
            Image.fromarray(pixels).convert("RGB").save(folder / f"{index:05d}.jpg", quality=JPEG_QUALITY)
    partial.rename(root)
    return root
