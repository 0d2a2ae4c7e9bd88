"""`deit-fast bench images`: the images that another device or backend makes, against those of DALI's graph on the CPU.

The same views of the same files with the same draws; a difference is decoding, resizing or rounding. In grey levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from deit_fast.cli import write_json
from deit_fast.config import IMAGENET_STD, Config
from deit_fast.config_file import add_config_arguments, config_parser, parse_config
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.dali_pipelines.native.plugin import is_available
from deit_fast.data import train_loader, validation_loader
from deit_fast.distributed import Ranks, one_process
from deit_fast.open_images import open_images
from deit_fast.tuned import with_values

from .photographs import with_images
from .table import print_table

COMPARED_BATCHES = 2
LARGEST_MEAN = 1.0
"""Grey levels: decoders and resizes differ by less than one on average (docs/parity.md, docs/native.md)."""
FAR = 8.0
LARGEST_FAR_SHARE = 0.01
"""Of the pixels more than FAR grey levels away: edges that a warp samples on the other side, and nothing wider."""


@dataclass(frozen=True)
class Difference:
    """One pipeline against the reference."""

    view: str
    pipeline: str
    mean: float
    largest: float
    share_far: float
    same_labels: bool

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding."""
        return self.same_labels and self.mean <= LARGEST_MEAN and self.share_far <= LARGEST_FAR_SHARE


def run(arguments: Sequence[str]) -> int:
    """Prints the table; 1 when a pipeline makes other images."""
    parser = config_parser("deit-fast bench images", "Images of each pipeline here against those of the CPU's graph.")
    parser.add_argument("--images", type=int, default=64, help="images that are made when data.path is not given")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    add_config_arguments(parser)
    config, options = parse_config(parser, arguments, "deit_tiny")
    with one_process(config.runtime.device, "deit-fast bench images") as ranks:
        config, _ = with_images(config, options.images, ranks)
        rows = compare_images(config, ranks)
    show(rows)
    write_json(options.json, [asdict(row) | {"holds": row.holds} for row in rows])
    return 0 if all(row.holds for row in rows) else 1


def pipelines(device: torch.device) -> dict[str, dict[str, str]]:
    """What there is besides the reference: name -> values of its keys. ValueError when there is nothing."""
    if device.type == "cuda":
        return {f"GPU, JPEGs decoded on the {decoder.upper()}": {"data.decoder": decoder} for decoder in ("cpu", "gpu")}
    if is_available():
        return {"CPU, native operators": {"data.backend": "native"}}
    raise ValueError("there is only the CPU's graph here: no GPU, and no native operators to compare with it")


def compare_images(config: Config, ranks: Ranks) -> list[Difference]:
    """Training and validation views; fp32, so that no rounding is hidden."""
    config = with_values(config, {"runtime.kernels": "reference"})  # else the loader may leave the images as bytes
    reference = with_values(config, {"data.backend": "graph", "data.decoder": "cpu"})
    on_cpu = replace(ranks, device=torch.device("cpu"))
    rows = []
    for view, take in (("training", training_batches), ("validation", validation_batches)):
        truth = take(reference, on_cpu)
        for name, values in pipelines(ranks.device).items():
            batches = take(with_values(config, values), ranks)
            rows.append(difference(view, name, batches, truth))
    return rows


def training_batches(config: Config, ranks: Ranks) -> list[Batch]:
    """The first batches of a run."""
    loader = train_loader(config, open_images(config.data, "train"), ranks, "fp32")
    return [on_host(batch) for batch in loader.batches(0, COMPARED_BATCHES)]


def validation_batches(config: Config, ranks: Ranks) -> list[Batch]:
    """The first batches of the validation set."""
    evaluation = replace(config.eval, batch_size_per_device=config.runtime.batch_size_per_device)
    images: ImageSet = open_images(config.data, "val")
    loader = validation_loader(config.data, evaluation, images, config.model.image_size_px, ranks, "fp32")
    return [on_host(batch) for batch, _ in zip(loader, range(COMPARED_BATCHES), strict=False)]


def on_host(batch: Batch) -> Batch:
    """A copy: the loader's memory is used again."""
    return Batch(batch.images.float().cpu().clone(), batch.labels.cpu(), batch.views)


def difference(view: str, pipeline: str, batches: list[Batch], truth: list[Batch]) -> Difference:
    """In grey levels of the un-normalised image."""
    grey = 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    pairs = list(zip(batches, truth, strict=True))
    off = torch.cat([((ours.images - theirs.images) * grey).abs().flatten() for ours, theirs in pairs])
    same = all(torch.equal(ours.labels, theirs.labels) for ours, theirs in pairs)
    return Difference(view, pipeline, off.mean().item(), off.max().item(), (off > FAR).float().mean().item(), same)


def show(rows: list[Difference]) -> None:
    """Prints the table."""
    cells = [
        (
            row.view,
            row.pipeline,
            f"{row.mean:.3f}",
            f"{row.largest:.1f}",
            f"{row.share_far:.4%}",
            "the same" if row.same_labels else "others",
            "holds" if row.holds else "differs",
        )
        for row in rows
    ]
    headings = ("views", "pipeline", "mean", "largest", f"more than {FAR:.0f}", "labels", "")
    print_table("against DALI's graph on the CPU, in grey levels", headings, cells, text_columns=2)
