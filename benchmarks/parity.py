"""What our operations differ in from timm's on Pillow, pixel by pixel, on photographs, at fixed magnitudes.

`deit-fast bench parity` prints the table of docs/parity.md; the tests hold the operations to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageFilter, ImageOps
from timm.data import auto_augment
from torchvision.transforms.functional import to_grayscale

from deit_fast.dali_pipelines.augment import apply_place
from deit_fast.dali_pipelines.draws import blur_kernels, geometry_matrices
from deit_fast.dali_pipelines.operation import (
    GEOMETRIC_OPERATIONS,
    RAND_AUGMENT_OPERATIONS,
    Operation,
    OperationDraws,
)
from deit_fast.dali_pipelines.operations import FILL
from deit_fast.dali_pipelines.policy import Place
from deit_fast.dali_pipelines.rand_augment import level_to_argument
from deit_fast.dali_pipelines.three_augment import THREE_AUGMENT_OPERATIONS
from deit_fast.dali_pipelines.train_augment import TrainAugment

from .photographs import photographs
from .table import markdown

Geometry = Literal["exact", "bilinear"]
MAGNITUDES = (3.3, 9.0)
"""timm's, of 10: a weak one with a fraction, and the recipe's."""
TIMM_NAMES = {
    Operation.AUTO_CONTRAST: "AutoContrast",
    Operation.EQUALIZE: "Equalize",
    Operation.INVERT: "Invert",
    Operation.POSTERIZE: "PosterizeIncreasing",
    Operation.SOLARIZE: "SolarizeIncreasing",
    Operation.SOLARIZE_ADD: "SolarizeAdd",
    Operation.COLOR: "ColorIncreasing",
    Operation.CONTRAST: "ContrastIncreasing",
    Operation.BRIGHTNESS: "BrightnessIncreasing",
    Operation.SHARPNESS: "SharpnessIncreasing",
    Operation.ROTATE: "Rotate",
    Operation.SHEAR_X: "ShearX",
    Operation.TRANSLATE_X: "TranslateXRel",
    Operation.SHEAR_Y: "ShearY",
    Operation.TRANSLATE_Y: "TranslateYRel",
}
RAND_PLACE = Place((Operation.NONE, *RAND_AUGMENT_OPERATIONS))
THREE_PLACE = Place(THREE_AUGMENT_OPERATIONS)


def square_photographs(size_px: int) -> list[np.ndarray]:
    """Six photographs, and two flat or dark images that hit special cases; [size, size, 3] uint8 each."""
    found = [
        np.asarray(Image.fromarray(photograph).resize((size_px, size_px), Image.Resampling.BICUBIC))
        for photograph in photographs()
    ]
    flat = np.full((size_px, size_px, 3), (255, 0, 77), dtype=np.uint8)
    dark = (found[0] // 16 + np.array([[[0, 60, 9]]], dtype=np.uint8)).astype(np.uint8)
    return [*found, flat, dark]


def through_place(
    images: list[np.ndarray], place: Place, draws: OperationDraws, geometry: Geometry = "exact"
) -> list[np.ndarray]:
    """Square images through one place of the graph, on the CPU; draws of one place."""
    size = images[0].shape[0]
    augment = TrainAugment(image_size_px=size, geometry=geometry)
    inputs: list[Any] = [images, np.ascontiguousarray(draws.operations[:, 0]), draws.arguments[:, 0].astype(np.float32)]
    if place.is_geometric:
        inputs.append(geometry_matrices(draws, 0, size).astype(np.float32))
    elif place.blurs:
        inputs.append(blur_kernels(draws, 0))
    dtypes = [types.UINT8, types.INT32, types.FLOAT, types.FLOAT][: len(inputs)]

    @pipeline_def(
        batch_size=len(images), num_threads=2, device_id=None, enable_conditionals=True, exec_dynamic=True,
        prefetch_queue_depth=1,
    )  # fmt: skip
    def pipeline() -> object:
        nodes = fn.external_source(
            source=lambda: inputs,
            num_outputs=len(inputs),
            dtype=dtypes,
            ndim=[value[0].ndim for value in inputs],
            layout=["HWC", "", "", ""][: len(inputs)],
        )
        table = nodes[3] if len(inputs) > 3 else None
        return apply_place(nodes[0], place, nodes[1], nodes[2], table, augment)

    (output,) = pipeline().run()
    return [np.asarray(output.at(i)) for i in range(len(images))]


def draws_of(operation: int, arguments: np.ndarray) -> OperationDraws:
    """One place, the same operation for all."""
    return OperationDraws(np.full((len(arguments), 1), operation, dtype=np.int32), arguments[:, None])


def our_rand_augment(
    images: list[np.ndarray], operation: int, magnitude: float, signs: np.ndarray, geometry: Geometry = "exact"
) -> list[np.ndarray]:
    """One operation of RandAugment on each image, with the signs given."""
    count = len(images)
    arguments = level_to_argument(np.full(count, operation), np.full(count, magnitude), signs)
    return through_place(images, RAND_PLACE, draws_of(operation, arguments), geometry)


def timm_rand_augment(
    images: list[np.ndarray],
    operation: int,
    magnitude: float,
    signs: np.ndarray,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> list[np.ndarray]:
    """timm's operation at the same magnitude, its random sign replaced by ours."""
    name = TIMM_NAMES[operation]
    apply, level = auto_augment.NAME_TO_OP[name], auto_augment.LEVEL_TO_ARG[name]
    options = {"fillcolor": FILL, "resample": resample} if operation in GEOMETRIC_OPERATIONS else {}
    results = []
    for image, sign in zip(images, signs, strict=True):
        with mock.patch.object(auto_augment, "_randomly_negate", lambda value, sign=sign: sign * value):
            arguments = level(magnitude, {"translate_pct": 0.45}) if level else ()
        results.append(np.asarray(apply(Image.fromarray(image), *arguments, **options)))
    return results


def our_three_augment(images: list[np.ndarray], operation: int, argument: float) -> list[np.ndarray]:
    """One operation of 3-Augment; argument: threshold, or radius in pixels."""
    return through_place(images, THREE_PLACE, draws_of(operation, np.full(len(images), argument)))


def pillow_three_augment(images: list[np.ndarray], operation: int, argument: float) -> list[np.ndarray]:
    """The same as DeiT III's code does it."""
    apply = {
        Operation.GRAYSCALE: lambda image: to_grayscale(image, num_output_channels=3),
        Operation.SOLARIZE: lambda image: ImageOps.solarize(image, int(argument)),
        Operation.GAUSSIAN_BLUR: lambda image: image.filter(ImageFilter.GaussianBlur(argument)),
    }[operation]
    return [np.asarray(apply(Image.fromarray(image))) for image in images]


@dataclass(frozen=True)
class Parity:
    """How two sets of images of bytes differ."""

    operation: str
    setting: str
    geometry: str
    exact: float
    """Share of values that are equal."""
    within_one: float
    mean: float
    """Mean absolute difference, of 255."""
    largest: int


def compare(operation: str, setting: str, geometry: str, ours: list[np.ndarray], theirs: list[np.ndarray]) -> Parity:
    """Counts."""
    difference = np.abs(np.stack(ours).astype(int) - np.stack(theirs).astype(int))
    exact, within_one = float((difference == 0).mean()), float((difference <= 1).mean())
    return Parity(operation, setting, geometry, exact, within_one, float(difference.mean()), int(difference.max()))


def parity_rows(size_px: int) -> Iterator[Parity]:
    """Every operation of RandAugment at both magnitudes and signs, then 3-Augment's."""
    images = square_photographs(size_px) * 2
    signs = np.repeat([-1.0, 1.0], len(images) // 2)
    for operation, name in TIMM_NAMES.items():
        for magnitude in MAGNITUDES if auto_augment.LEVEL_TO_ARG[name] else MAGNITUDES[-1:]:
            theirs = timm_rand_augment(images, operation, magnitude, signs)
            setting = f"magnitude {magnitude:g}" if auto_augment.LEVEL_TO_ARG[name] else ""
            geometries: tuple[Geometry, ...] = ("exact", "bilinear")
            for geometry in geometries if operation in GEOMETRIC_OPERATIONS else geometries[:1]:
                ours = our_rand_augment(images, operation, magnitude, signs, geometry)
                yield compare(name, setting, geometry if operation in GEOMETRIC_OPERATIONS else "", ours, theirs)
    for name, operation, argument, setting in (
        ("Grayscale", Operation.GRAYSCALE, 0.0, ""),
        ("Solarize", Operation.SOLARIZE, 128.0, "threshold 128"),
        ("GaussianBlur", Operation.GAUSSIAN_BLUR, 0.7, "radius 0.7"),
        ("GaussianBlur", Operation.GAUSSIAN_BLUR, 1.8, "radius 1.8"),
    ):
        ours = our_three_augment(images, operation, argument)
        yield compare(name, setting, "", ours, pillow_three_augment(images, operation, argument))


def markdown_table(rows: list[Parity]) -> str:
    """The table of docs/parity.md."""
    headings = ("operation", "setting", "`augment.geometry`", "exact", "within 1", "mean difference", "largest")
    cells = [
        (row.operation, row.setting, row.geometry, f"{100 * row.exact:.2f} %", f"{100 * row.within_one:.2f} %",
         f"{row.mean:.4f}", str(row.largest))
        for row in rows
    ]  # fmt: skip
    return markdown(headings, cells, text_columns=3)
