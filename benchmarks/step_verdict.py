"""The verdicts on measured stages: with the teacher live, and with its labels cached."""

from __future__ import annotations

import statistics
from typing import Any

from .assembled import Assembled
from .step import PARTS, TEACHER
from .timing import OURS, Contender, Timing, Timings
from .verdict import Stage, Teacher, Verdict, describe, reach_verdict


def step_stages(timings: Timings, lane: str = "device") -> list[Stage]:
    """The parts of a step that were timed, one after another on the device."""
    parts = {name: timings.get(Contender(name, OURS)) for name in PARTS}
    return [Stage(name, lane, timing.wall_ms) for name, timing in parts.items() if timing is not None]


def by_teacher(timings: Timings, parts: Assembled, name: str, cached_name: str) -> dict[Teacher, Timing]:
    """What was timed whole, by how the teacher answers in it: our `name`, and `cached_name` where there is one."""
    first: Teacher = "absent" if parts.config.distill.kind == "none" else "live"
    found: dict[Teacher, Timing] = {first: timings[Contender(name, OURS)]}
    if (cached := timings.get(Contender(cached_name, OURS))) is not None:
        found["cached"] = cached
    return found


def judge(measured: dict[Teacher, Timing], stages: list[Stage], parts: Assembled) -> dict[Teacher, Verdict]:
    """A verdict for each way that the teacher answers; without a teacher running, its stage is left out."""
    verdicts: dict[Teacher, Verdict] = {}
    for teacher, timing in measured.items():
        assert timing.flops_per_image is not None
        verdicts[teacher] = reach_verdict(
            statistics.median(timing.speeds),
            devices=parts.ranks.world_size,
            teacher=teacher,
            stages=[stage for stage in stages if teacher == "live" or stage.name != TEACHER],
            flops_per_image=timing.flops_per_image,
            peak_flops=timing.peak_flops,
            model=parts.config.model.name,
            image_size_px=parts.config.model.image_size_px,
        )
    return verdicts


def as_record(verdicts: dict[Teacher, Verdict], parts: Assembled) -> dict[str, Any]:
    """`verdict`: of the run as configured; `verdicts`: all that were reached."""
    main: Teacher = "cached" if parts.config.distill.label_cache and "cached" in verdicts else next(iter(verdicts))
    return {
        "verdict": verdicts[main].as_dict(),
        "verdicts": {teacher: verdict.as_dict() for teacher, verdict in verdicts.items()},
    }


def lines(verdicts: dict[Teacher, Verdict], device: str) -> list[str]:
    """All verdicts in words."""
    return [line for verdict in verdicts.values() for line in describe(verdict, device)]
