"""Rules for another way to run, which may be faster: each from the record to a line of advice, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .advice_line import Advice, is_noticed, launch_bound_ms, ms_of, percent
from .idle import LAUNCH_BOUND


def all_reduce(record: dict[str, Any]) -> Advice | None:
    """The tail that every rank has, so that nobody is to blame."""
    ms = ms_of(record, "all-reduce tail")
    if not is_noticed(record, ms):
        return None
    hidden = record["all_reduce_overlap"]
    shown = "" if hidden is None else f", {hidden:.0%} of the all-reduce is hidden behind the backward"
    evidence = f"the all-reduce's tail takes {percent(record, ms)} on every rank{shown}"
    mend = "a larger runtime.batch_size_per_device or runtime.accumulate_steps"
    if record["device_type"] == "cuda":
        mend += "; check NVLink and NCCL"
    return Advice("all-reduce", "option", "The all-reduce is not hidden", evidence, mend, ms)


def launch_bound(record: dict[str, Any]) -> Advice | None:
    """A GPU is idle while the host prepares work."""
    share = record["idle"]["idle_causes"].get(LAUNCH_BOUND, 0.0)
    if record["device_type"] != "cuda" or share < 0.1:
        return None
    launches = record["operators"]["launches"]
    evidence = (
        f"the device is idle for {share:.0%} of the step while the host launches {launches['per_step']:,.0f} kernels, "
        f"{launches['short_share_of_count']:.0%} of them under {launches['short_us']:.0f} us"
    )
    mend = "runtime.compile true, runtime.cuda_graphs true, or a larger batch"
    return Advice("launches", "option", "The host cannot launch fast enough", evidence, mend, launch_bound_ms(record))


def layouts(record: dict[str, Any]) -> Advice | None:
    """Copies that only change the order in memory."""
    moved = sum(copy["bytes"] for copy in record["operators"]["copies"] if copy["kind"] == "layout")
    ms = 1e3 * moved / record["operators"]["peaks"]["bytes_per_second"]
    if not is_noticed(record, ms):
        return None
    first = next(copy for copy in record["operators"]["copies"] if copy["kind"] == "layout")
    evidence = (
        f"layout conversions move {moved / 2**20:,.0f} MiB a step, at this device's bandwidth {percent(record, ms)}; "
        f"most at {first['source']}"
    )
    return Advice(
        "layout",
        "option",
        "Copies only change the layout",
        evidence,
        "try runtime.teacher_layout, or fuse it (runtime.compile)",
        ms,
    )


def label_cache(record: dict[str, Any]) -> Advice | None:
    """A live teacher is a large part of the step."""
    teacher = record["teacher"]
    if teacher is None or not is_noticed(record, teacher["ms"], 0.15):
        return None
    evidence = f"the teacher takes {percent(record, teacher['ms'])}"
    mend = "compute its labels once (`deit-fast teacher-cache`) if several runs use them"
    return Advice("teacher", "option", "The teacher is a large part of the step", evidence, mend, teacher["ms"])


OPTIONS: tuple[Callable[[dict[str, Any]], Advice | None], ...] = (all_reduce, launch_bound, layouts, label_cache)
