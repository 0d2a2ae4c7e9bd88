"""Speeds that others measured and published: what a prediction of utilisation is anchored to.

MFU = images/s of one device x FLOPs of an image / peak: 3 forwards for a training step, 1 for inference.
"""

from __future__ import annotations

from dataclasses import dataclass

from deit_fast.gpus import GPUS

NARROW = 384
"""Up to this embedding (DeiT-Ti, DeiT-S) small matrices keep utilisation low; wider models are another class."""
TRAINING, INFERENCE = 3, 1
NV_SUBQUADRATIC = "NVIDIA-BioNeMo/nvSubquadratic benchmarks/README.md"
NEMO = "NVIDIA NeMo ViT performance page"
TIMM = "timm results/benchmark-*.csv"


@dataclass(frozen=True)
class Anchor:
    """One published speed of one device. `conditions` says what was in the measurement."""

    gpu: str
    model: str
    embed_dim: int
    forward_gflop: float
    images_per_second: float
    passes: int
    conditions: str
    source: str

    @property
    def mfu(self) -> float:
        """Share of the device's peak."""
        return self.images_per_second * self.passes * self.forward_gflop * 1e9 / GPUS[self.gpu].half_flops

    def describe(self) -> str:
        """`deit_base on rtx3090: 391 images/s = 58 % (step on synthetic images; timm ...)`."""
        speed = f"{self.images_per_second:,.0f} images/s = {self.mfu:.0%}"
        return f"{self.model} on {self.gpu}: {speed} ({self.conditions}; {self.source})"


END_TO_END = "end to end, 8 GPUs"
SYNTHETIC = "step on synthetic images, AMP"
FORWARD, COMPILED = "inference, AMP", "inference, AMP, compiled"
STUDENTS = (
    Anchor("v100", "deit_base", 768, 35.1, 252, TRAINING, END_TO_END, "DeiT paper, arXiv 2012.12877: 53 h"),
    Anchor("a100", "ViT-g/14", 1408, 534, 86.6, TRAINING, "one 8-GPU node", NEMO),
    Anchor("h100", "ViT-g/14", 1408, 534, 178.5, TRAINING, "one 8-GPU node", NEMO),
    Anchor("h100", "ViT-5-Base", 768, 35.9, 2_119, TRAINING, END_TO_END, NV_SUBQUADRATIC),
    Anchor("h100", "ViT-5-Small", 384, 9.4, 3_638, TRAINING, END_TO_END, NV_SUBQUADRATIC),
    Anchor("h100", "ViT-5-Small", 384, 9.4, 8_003, TRAINING, "step on synthetic images, compiled", NV_SUBQUADRATIC),
    Anchor("rtx3090", "deit_tiny", 192, 2.51, 2_291, TRAINING, SYNTHETIC, TIMM),
    Anchor("rtx3090", "deit_small", 384, 9.2, 1_054, TRAINING, SYNTHETIC, TIMM),
    Anchor("rtx3090", "deit_base", 768, 35.1, 391, TRAINING, SYNTHETIC, TIMM),
    Anchor("rtx3090", "deit3_huge", 1280, 335, 38.3, TRAINING, SYNTHETIC, TIMM),
)
"""GFLOP: RECIPE's counts; ViT-5 by 2 x 201 tokens x 12 C^2 + 4 x 201^2 C a block, ViT-g/14 likewise at 257 tokens."""
TEACHERS = (
    Anchor("rtx3090", "regnety_160", 0, 31.8, 1_070, INFERENCE, FORWARD, TIMM),
    Anchor("rtx3090", "regnety_160", 0, 31.8, 1_137, INFERENCE, FORWARD, TIMM),
    Anchor("rtx4090", "regnety_160", 0, 31.8, 1_664, INFERENCE, FORWARD, TIMM),
    Anchor("rtx4090", "regnety_160", 0, 31.8, 2_152, INFERENCE, COMPILED, TIMM),
    Anchor("rtx5090", "regnety_160", 0, 31.8, 2_299, INFERENCE, FORWARD, TIMM),
    Anchor("rtx5090", "regnety_160", 0, 31.8, 2_848, INFERENCE, COMPILED, TIMM),
)
STAND_INS = {
    "a100": ("a100", "h100"),
    "a100-40gb": ("a100", "h100"),
    "a800": ("a100", "h100"),
    "h100-pcie": ("h100",),
    "h100-nvl": ("h100",),
    "h200": ("h100",),
    "b200": ("h100",),
    "l40s": ("h100", "rtx3090"),
    "rtx4090": ("rtx3090",),
    "rtx5090": ("rtx3090",),
}
"""Kinds whose published speeds stand for one that has none, or too few."""
DEFAULT = ("h100", "rtx3090")
GIVEN = ("given",)
"""The basis of a range that the user gave."""


@dataclass(frozen=True)
class Utilisation:
    """A range of MFU, and what it rests on."""

    low: float
    high: float
    basis: tuple[str, ...]


def student_utilisation(kind: str | None, embed_dim: int) -> Utilisation:
    """The extremes of what was published for the kind (or its stand-ins) and models of that width."""
    kinds = STAND_INS.get(kind or "", (kind,) if kind in GPUS else DEFAULT)
    found = [a for a in STUDENTS if a.gpu in kinds and (a.embed_dim <= NARROW) == (embed_dim <= NARROW)]
    if not found:  # the V100 has one figure, of a wide model
        found = [a for a in STUDENTS if a.gpu in kinds]
    return _range(found)


def teacher_utilisation(kind: str | None, student: Utilisation) -> Utilisation:
    """Of a ConvNet's inference; for kinds without a published figure the student's range, which is an assumption."""
    found = [a for a in TEACHERS if a.gpu == kind]
    if found:
        return _range(found)
    return Utilisation(student.low, student.high, ("no published inference of a ConvNet there: the student's range",))


def _range(anchors: list[Anchor]) -> Utilisation:
    shares = [anchor.mfu for anchor in anchors]
    return Utilisation(min(shares), max(shares), tuple(anchor.describe() for anchor in anchors))
