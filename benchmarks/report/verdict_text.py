"""The verdict in words: is the budget met, what limits, what to do about it."""

from __future__ import annotations

from typing import NamedTuple

from deit_fast.bench_records import Record
from deit_fast.budget import BUDGET_DAYS, BUDGET_DEVICES

from .results import machine

ADVICE = (
    (
        ("file read", "decode", "full recipe", "augmentation"),
        "more threads (`--data.num_threads`), packed shards (`deit-fast data pack`), the native backend "
        "(`--data.backend native`) or decoding on the GPU (`--data.decoder gpu`)",
    ),
    (
        ("teacher",),
        "compute the teacher's labels once (`deit-fast teacher-cache`) and train with `--distill.label_cache`; "
        "if it has to run live, `deit-fast tune` finds its fastest layout",
    ),
    (("optimizer", "EMA", "moving average"), "a larger batch spreads the update over more images"),
    (("mixing", "loss"), "fused kernels (`--runtime.kernels triton`), where `deit-fast tune` finds them faster"),
    (
        ("student", "forward", "backward"),
        "`deit-fast tune` measures attention, kernels, compilation and batch size on this machine; "
        "`deit-fast profile` shows where the time goes",
    ),
)
"""What helps, by words in a stage's name; the first that fits."""


class Judgement(NamedTuple):
    """What stands at the top of a page."""

    headline: str
    good: bool | None
    lines: list[str]
    share: float | None
    """Reached / required; None where the two cannot be compared."""


def advice_for(stage: str) -> str | None:
    """What to do when this stage limits."""
    return next((text for words, text in ADVICE if any(word in stage for word in words)), None)


def judge(record: Record | None) -> Judgement:
    """The judgement on a record's verdict; on none, how to get one."""
    if record is None:
        line = "Measure one: `deit-fast bench train --config deit_base_distilled --json rows.jsonl`, or `bench step`."
        return Judgement("No step was measured: nothing can be said about the budget", None, [line], None)
    headline, good, share = _headline(record)
    return Judgement(headline, good, _lines(record), share)


def _headline(record: Record) -> tuple[str, bool | None, float | None]:
    verdict = record["verdict"]
    measured, required = verdict["measured_images_per_second"], verdict["required_images_per_second"]
    each, required_each = verdict["measured_per_device"], verdict["required_per_device"]
    if not verdict["is_budget_model"]:
        return f"No verdict: the budget is DeiT-B's at 224\u00a0px, and this is `{verdict['model']}`", None, None
    if verdict["devices"] == BUDGET_DEVICES:
        share, text = verdict["margin"], f"{measured:,.1f} of {required:,.1f} images/s"
    else:
        share, text = each / required_each, f"{each:,.1f} of {required_each:,.1f} images/s on each device"
    if share < 1:
        return f"The budget is missed: {text}, {1 / share:,.2f} times too slow", False, share
    if record["bench"] != "train":
        return f"The step alone is fast enough, {text}; end to end is not measured", None, share
    if verdict["devices"] != BUDGET_DEVICES:
        return f"A device does its share, {text}; {BUDGET_DEVICES} of them are not measured", None, share
    return f"The budget is met: {text}", True, share


def _lines(record: Record) -> list[str]:
    verdict = record["verdict"]
    lines = []
    if limiting := verdict.get("limiting_stage"):
        advice = advice_for(limiting)
        lines.append(f"`{limiting}` limits" + (f". What helps: {advice}." if advice else "."))
        if following := verdict.get("next_limiting_stage"):
            lines.append(f"Once it is faster, `{following}` limits next.")
    days = f"{verdict['projected_days']:,.1f} days for 300 epochs of ImageNet-1k (budget: {BUDGET_DAYS:g})"
    lines.append(f"{days}, teacher {verdict['teacher']}, on {machine(record)}.")
    for teacher, other in record.get("verdicts", {}).items():
        if teacher != verdict["teacher"]:
            speed = f"{other['measured_images_per_second']:,.1f} images/s, {other['projected_days']:,.1f} days"
            lines.append(f"With the teacher {teacher}: {speed}.")
    if stalls := record.get("stalls"):
        waits = ", ".join(f"{stall['data_wait_fraction']:.0%} ({name})" for name, stall in stalls.items())
        lines.append(f"The host waits for the loader {waits} of the time.")
    if scaling := record.get("scaling"):
        lines.append(f"{scaling['devices']} devices give {scaling['efficiency']:.1%} of so many times one alone.")
    if verdict.get("mfu") is not None:
        line = f"{verdict['mfu']:.1%} of the hardware's peak is used (MFU)"
        if verdict.get("days_at_half_of_peak") is not None:
            line += f"; at half of the peak it would take {verdict['days_at_half_of_peak']:,.1f} days"
        lines.append(f"{line}.")
    return lines
