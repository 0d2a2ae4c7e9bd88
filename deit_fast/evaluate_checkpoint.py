"""`deit-fast eval`: scores a checkpoint of this trainer, of timm, or of the official repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import DataConfig, EvalConfig, RuntimeConfig
from .data import open_images, validation_loader
from .distributed import Ranks
from .environment import describe_environment
from .evaluate import evaluate
from .model import create_student
from .precision import choose_precision
from .weights import Weights, infer_name, load_weights, num_classes, read_weights


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and how its images are prepared."""

    name: str
    image_size_px: int
    crop_ratio: float


def choose_subject(weights: Weights, name: str | None, image_size_px: int | None, crop_ratio: float | None) -> Subject:
    """Fills in what was not given: from the run's own config, else from the shapes of the weights (DeiT family).

    ValueError when the model's name is neither given nor to be found.
    """
    config = weights.config or {}
    model = config.get("model", {})
    name = name or model.get("name") or infer_name(weights.state_dict)
    if name is None:
        raise ValueError(
            f"{weights.path} does not tell which model it is; give it with --model.name (any name of timm)"
        )
    size = image_size_px or model.get("image_size_px") or (384 if name.endswith("_384") else 224)
    return Subject(name, size, crop_ratio or config.get("eval", {}).get("crop_ratio") or EvalConfig.crop_ratio)


def check_classes(weights: Weights, classes: Sequence[str]) -> None:
    """ValueError unless the checkpoint was trained on as many classes, and where it knows their names, on these."""
    trained = num_classes(weights.state_dict)
    if trained is not None and trained != len(classes):
        raise ValueError(
            f"{weights.path} was trained on {trained} classes, data.path has {len(classes)}; labels would differ"
        )
    if weights.classes is not None and list(weights.classes) != list(classes):
        odd = next(name for name, other in zip(classes, weights.classes, strict=True) if name != other)
        raise ValueError(f"{weights.path} was trained on other classes: it does not know {odd} of data.path")


def evaluate_checkpoint(
    path: str,
    data: DataConfig,
    runtime: RuntimeConfig,
    ranks: Ranks,
    *,
    batch_size_per_device: int,
    ema: bool = False,
    name: str | None = None,
    image_size_px: int | None = None,
    crop_ratio: float | None = None,
) -> dict[str, Any]:
    """Top-1 and top-5 in percent on `val/` of data.path, by head, with speed and environment; for table and JSON."""
    weights = read_weights(path, ema=ema)
    subject = choose_subject(weights, name, image_size_px, crop_ratio)
    images = open_images(data, "val")
    check_classes(weights, images.classes)
    model = create_student(
        subject.name,
        num_classes=len(images.classes),
        image_size_px=subject.image_size_px,
        drop_path_rate=0.0,
        attention=runtime.attention,
    )
    load_weights(model, weights.state_dict)
    precision = choose_precision(runtime.precision, ranks.device)
    evaluation = EvalConfig(crop_ratio=subject.crop_ratio, batch_size_per_device=batch_size_per_device)
    loader = validation_loader(data, evaluation, images, subject.image_size_px, ranks, precision)
    scores = evaluate(model.to(ranks.device), loader, ranks, precision)
    return {
        "checkpoint": path,
        "model": {"name": subject.name, "image_size_px": subject.image_size_px, "ema": ema},
        "crop_ratio": subject.crop_ratio,
        "precision": precision,
        **scores.as_dict(),
        "environment": describe_environment(ranks.device),
    }
