"""Device memory of a training step by part, and the batch that fits. Bytes; predicted."""

from __future__ import annotations

from dataclasses import dataclass

from deit_fast.activations import Activations
from deit_fast.config import Config
from deit_fast.dali_pipelines.decode import RESERVED_DEVICE_BYTES
from deit_fast.data import prefetch
from deit_fast.memory import USABLE

from .costs import StudentCosts, TeacherCosts

DECODED_BYTES = 500 * 375 * 3
"""A whole image of ImageNet's usual size."""
HALF, FULL = 2, 4


@dataclass(frozen=True)
class MemoryPlan:
    """With activations kept or recomputed: `parts` in bytes for the batch, in the order of a table."""

    checkpoint_activations: bool
    batch_size: int
    accumulate_steps: int
    parts: dict[str, int]
    usable_bytes: int
    largest_batch_size: int

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether all parts fit into what of the device is planned for."""
        return self.total_bytes <= self.usable_bytes


def plan_memory(
    config: Config, student: StudentCosts, teacher: TeacherCosts | None, memory_bytes: int, *, recompute: bool
) -> MemoryPlan:
    """With runtime.batch_size_per_device and runtime.accumulate_steps, whatever runtime.checkpoint_activations is."""
    activations = student.recomputed if recompute else student.kept
    assert activations is not None
    batch_size, accumulate = config.runtime.batch_size_per_device, config.runtime.accumulate_steps
    parts = {**_once(config, student, teacher, activations), **dict.fromkeys(("activations", "teacher forward"), 0)}
    per_image = _per_image(config, student, teacher, activations)
    usable = int(USABLE * memory_bytes)
    largest = max(0, int((usable - sum(parts.values())) // sum(per_image.values())) // 2 * 2)
    for name, size in per_image.items():
        parts[name] = parts.get(name, 0) + batch_size * size
    return MemoryPlan(recompute, batch_size, accumulate, {k: v for k, v in parts.items() if v}, usable, largest)


def _once(
    config: Config, student: StudentCosts, teacher: TeacherCosts | None, activations: Activations
) -> dict[str, int]:
    """What does not grow with the batch. AdamW and LAMB hold two moments of each weight."""
    weights = FULL * student.parameters
    decoder = 0 if config.data.decoder == "cpu" else RESERVED_DEVICE_BYTES
    return {
        "weights (fp32)": weights,
        "gradients (fp32)": weights,
        "optimizer (two moments)": 2 * weights,
        "moving average": 0 if config.optim.ema_decay is None else weights,
        "half-precision copies of weights": activations.fixed_bytes,
        "teacher's weights": 0 if teacher is None else teacher.parameters * teacher.bytes_per_parameter,
        "loader and mixing": decoder,
    }


def _per_image(
    config: Config, student: StudentCosts, teacher: TeacherCosts | None, activations: Activations
) -> dict[str, int]:
    """For each image of runtime.batch_size_per_device; loader and teacher take all accumulated parts at once."""
    accumulate = config.runtime.accumulate_steps
    pixels = 3 * config.model.image_size_px**2
    batches = prefetch(config.data) + 2  # prepared ahead, in use, and mixed
    loader = batches * HALF * pixels + DECODED_BYTES + 2 * pixels  # decoded, and two stages of bytes at work
    return {
        "activations": student.passes * activations.peak_bytes_per_image,
        "teacher forward": 0 if teacher is None else accumulate * teacher.peak_bytes_per_image,
        "loader and mixing": accumulate * loader,
    }
