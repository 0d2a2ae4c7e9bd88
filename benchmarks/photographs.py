"""ImageNet-like JPEGs from the photographs that scikit-image and scikit-learn ship, for when there is no ImageNet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from deit_fast.config import Config
from deit_fast.distributed import Ranks

PHOTOGRAPHS = 640
"""As many are made where nobody says how many."""
LONG_SIDE_PX = 500
SHORT_SIDES_PX = (333, 375, 400)
"""ImageNet's most frequent shapes are 500x375, 500x333 and their upright forms; its files average 110 KB."""
JPEG_QUALITY = 92


def photographs() -> list[np.ndarray]:
    """Colour photographs, each [H, W, 3] uint8; RuntimeError naming the package that is missing."""
    try:
        from skimage import data
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise RuntimeError(
            f"ImageNet-like images are made from the photographs of {error.name}, which is missing; "
            "install it by `pip install 'deit-fast[dev]'`, or give real ones with --data.path DIR"
        ) from error
    return [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), *load_sample_images().images]


def write_photographs(root: Path, count: int, seed: int = 0) -> Path:
    """Writes `count` JPEGs (4:2:0) into train/ and val/ with 10 classes under `root`, unless it is there.

    Each is a random window of a photograph with a little noise, scaled to one of ImageNet's frequent shapes.
    """
    from PIL import Image

    if root.is_dir():
        return root
    partial = root.with_name(root.name + ".partial")
    sources = [Image.fromarray(photograph) for photograph in photographs()]
    generator = np.random.default_rng(seed)
    for index in range(count):
        source = sources[index % len(sources)]
        short = int(generator.choice(SHORT_SIDES_PX))
        width, height = (LONG_SIDE_PX, short) if generator.random() < 0.75 else (short, LONG_SIDE_PX)
        window = generator.uniform(0.6, 1.0) * min(source.width / width, source.height / height)
        w, h = window * width, window * height
        x, y = generator.uniform(0, source.width - w), generator.uniform(0, source.height - h)
        image = np.asarray(
            source.resize((width, height), Image.Resampling.BICUBIC, (x, y, x + w, y + h)), dtype=np.float32
        )
        noise = generator.standard_normal(image.shape, dtype=np.float32) * 6  # sensor noise: enlarging smoothed it away
        pixels = (image + noise).clip(0, 255).astype(np.uint8)
        folder = partial / ("val" if index % 5 == 4 else "train") / f"class_{index // 5 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:05d}.jpg", quality=JPEG_QUALITY)
    partial.rename(root)
    return root


def photographs_path(count: int) -> Path:
    """Where `count` of them are kept for the next call."""
    return Path("runs/bench") / f"photographs-{count}"


def make_photographs(count: int) -> Path:
    """Writes them where they are kept, unless they are there; RuntimeError naming the package that is missing."""
    return write_photographs(photographs_path(count), count)


def with_images(config: Config, count: int, ranks: Ranks) -> tuple[Config, str]:
    """The configuration with images to read, made where data.path names none, and what they are, in words."""
    if config.data.path:
        return config, config.data.path
    if ranks.is_main:
        make_photographs(count)
    ranks.barrier()
    path = photographs_path(count)
    config = replace(config, data=replace(config.data, path=str(path)))
    return config, f"{count} ImageNet-like JPEGs made from photographs of scikit-image and scikit-learn ({path})"
