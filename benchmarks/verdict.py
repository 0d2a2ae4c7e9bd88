"""The verdict on a speed: against the budget, against the hardware, and which stage to work on.

Stages lie in lanes. Lanes run beside one another (the loader beside the device), stages of a lane one after another; on
a CPU all share the cores and there is one lane. So the slowest lane limits, and in it its longest stage; what would
limit next is found by taking that stage away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from deit_fast.budget import BUDGET_DAYS, BUDGET_DEVICES, REQUIRED_IMAGES_PER_SECOND, projected_days

Teacher = Literal["live", "cached", "absent"]
GOOD_MFU = 0.5
"""What a well-tuned ViT reaches on recent GPUs (docs/benchmarks.md): the run is held against it."""


class Stage(NamedTuple):
    """A part of a training step, or of the loader's work for it."""

    name: str
    lane: str
    ms_per_image: float
    """Wall milliseconds that all devices together need for an image when nothing else runs."""


@dataclass(frozen=True)
class Verdict:
    """Images/s over all devices unless it says otherwise; days are those of 300 epochs of ImageNet-1k."""

    required_images_per_second: float
    required_per_device: float
    measured_images_per_second: float
    measured_per_device: float
    devices: int
    margin: float
    """Measured over required: 1 meets the budget."""
    projected_days: float
    teacher: Teacher
    limiting_stage: str | None
    next_limiting_stage: str | None
    stages_images_per_second: float | None
    """What the slowest lane alone would allow; a measured speed far below it is lost between the stages."""
    mfu: float | None
    peak_flops: float | None
    """FLOP/s of all devices."""
    flops_per_image: float
    days_at_half_of_peak: float | None
    model: str
    is_budget_model: bool

    def as_dict(self) -> dict[str, object]:
        """For a record."""
        return asdict(self)


def reach_verdict(
    images_per_second: float,
    *,
    devices: int,
    teacher: Teacher,
    stages: Iterable[Stage] = (),
    flops_per_image: float,
    peak_flops: float | None,
    model: str,
    image_size_px: int,
) -> Verdict:
    """peak_flops: FLOP/s of all devices, None where it is not known; flops_per_image: student's and teacher's."""
    stages = list(stages)
    limiting = limiting_stage(stages)
    following = limiting_stage([stage for stage in stages if stage != limiting])
    slowest = max(lane_ms(stages).values(), default=0.0)
    good_speed = None if peak_flops is None else GOOD_MFU * peak_flops / flops_per_image
    return Verdict(
        required_images_per_second=REQUIRED_IMAGES_PER_SECOND,
        required_per_device=REQUIRED_IMAGES_PER_SECOND / BUDGET_DEVICES,
        measured_images_per_second=images_per_second,
        measured_per_device=images_per_second / devices,
        devices=devices,
        margin=images_per_second / REQUIRED_IMAGES_PER_SECOND,
        projected_days=projected_days(images_per_second),
        teacher=teacher,
        limiting_stage=limiting and limiting.name,
        next_limiting_stage=following and following.name,
        stages_images_per_second=1e3 / slowest if slowest else None,
        mfu=None if peak_flops is None else images_per_second * flops_per_image / peak_flops,
        peak_flops=peak_flops,
        flops_per_image=flops_per_image,
        days_at_half_of_peak=None if good_speed is None else projected_days(good_speed),
        model=model,
        is_budget_model=model.startswith("deit_base") and image_size_px == 224,
    )


def lane_ms(stages: Iterable[Stage]) -> dict[str, float]:
    """Milliseconds an image of each lane."""
    lanes: dict[str, float] = {}
    for stage in stages:
        lanes[stage.lane] = lanes.get(stage.lane, 0.0) + stage.ms_per_image
    return lanes


def limiting_stage(stages: list[Stage]) -> Stage | None:
    """The longest stage of the slowest lane; None without stages."""
    lanes = lane_ms(stages)
    if not lanes:
        return None
    slowest = max(lanes, key=lambda lane: lanes[lane])
    return max((stage for stage in stages if stage.lane == slowest), key=lambda stage: stage.ms_per_image)


def describe(verdict: Verdict, device: str) -> list[str]:
    """For people, a line for each question: the budget, the hardware, the stage. device: its type, cpu or cuda."""
    each = f"{verdict.measured_per_device:,.1f} each" if verdict.devices > 1 else "one"
    share = verdict.measured_per_device / verdict.required_per_device
    budget = (
        f"required {verdict.required_images_per_second:,.1f} images/s ({verdict.required_per_device:,.1f} on each of "
        f"{BUDGET_DEVICES} devices); measured {verdict.measured_images_per_second:,.1f} on {verdict.devices} {device} "
        f"({each}), teacher {verdict.teacher}: {verdict.margin:.3f} of the budget, {share:.3f} of a device's share, "
        f"{verdict.projected_days:,.1f} days for 300 epochs of ImageNet-1k (budget: {BUDGET_DAYS:g})"
    )
    if not verdict.is_budget_model:
        budget += f". The budget is DeiT-B's; this is {verdict.model}"
    lines = [budget]
    if verdict.mfu is not None and verdict.peak_flops is not None:
        origin = "measured here by matrix products" if device == "cpu" else "data sheet"
        lines.append(
            f"MFU {verdict.mfu:.1%} = images/s x {verdict.flops_per_image / 1e9:,.2f} GFLOP an image / "
            f"{verdict.peak_flops / 1e12:,.3f} TFLOP/s ({origin}); at {GOOD_MFU:.0%} it would take "
            f"{verdict.days_at_half_of_peak:,.1f} days"
        )
    if verdict.limiting_stage is not None:
        line = f"limited by {verdict.limiting_stage}"
        if verdict.next_limiting_stage is not None:
            line += f"; without it, by {verdict.next_limiting_stage}"
        if verdict.stages_images_per_second is not None:
            line += f"; the stages, each measured alone, allow {verdict.stages_images_per_second:,.1f} images/s"
        lines.append(line)
    return lines
