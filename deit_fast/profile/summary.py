"""From the steps of all ranks to the figures of a report: phases, spread between ranks, cost of the measurement."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .idle import length, union
from .phases import BARE, PHASES, RECORDED

WAITING = ("all-reduce tail",)
"""Phases in which a rank waits for the others: being long there is not being slow."""


def quantile(values: Sequence[float], q: float) -> float:
    """By linear interpolation between the sorted values; 0 without any."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def recorded_steps(rank: dict[str, Any]) -> list[dict[str, Any]]:
    """Its steps with all marks and nothing else switched on."""
    return [step for step in rank["steps"] if step["kind"] == RECORDED]


def times_of(step: dict[str, Any]) -> dict[str, float]:
    """Phase -> ms of a step, by the device's clock where there is one."""
    return step["device_ms"] or step["host_ms"]


def mean_times(rank: dict[str, Any]) -> dict[str, float]:
    """Phase -> mean ms over a rank's recorded steps; they add up to its mean step."""
    steps = recorded_steps(rank)
    return {phase: sum(times_of(step).get(phase, 0.0) for step in steps) / max(1, len(steps)) for phase in PHASES}


def phase_rows(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each phase that occurs: mean, median and p95 over all ranks' steps, share, and each rank's mean."""
    means = [mean_times(rank) for rank in ranks]
    total = statistics.mean(sum(mean.values()) for mean in means) or 1.0
    rows = []
    for phase in PHASES:
        values = [times_of(step).get(phase, 0.0) for rank in ranks for step in recorded_steps(rank)]
        if not any(values):
            continue
        mean = statistics.mean(values)
        host = [step["host_ms"].get(phase, 0.0) for rank in ranks for step in recorded_steps(rank)]
        rows.append(
            {
                "phase": phase,
                "mean_ms": mean,
                "p50_ms": quantile(values, 0.5),
                "p95_ms": quantile(values, 0.95),
                "share": mean / total,
                "host_ms": statistics.mean(host),
                "by_rank_ms": [rank_mean[phase] for rank_mean in means],
            }
        )
    return rows


def step_row(ranks: list[dict[str, Any]], images_per_step: int) -> dict[str, float]:
    """The whole step over all ranks' recorded steps: quantiles, and images/s of all devices together."""
    totals = [step["total_ms"] for rank in ranks for step in recorded_steps(rank)]
    return {
        "mean_ms": statistics.mean(totals),
        "p50_ms": quantile(totals, 0.5),
        "p95_ms": quantile(totals, 0.95),
        "p99_ms": quantile(totals, 0.99),
        "images_per_second": 1e3 * images_per_step / statistics.mean(totals),
        "steps": len(recorded_steps(ranks[0])),
    }


def overhead(ranks: list[dict[str, Any]], mark_us: float) -> dict[str, float]:
    """What the marks cost: their number times the measured cost of one; and recorded against bare steps, in turns."""
    steps = [step for rank in ranks for step in recorded_steps(rank)]
    bare = [step["total_ms"] for rank in ranks for step in rank["steps"] if step["kind"] == BARE]
    recorded = [step["total_ms"] for step in steps]
    marks = statistics.mean(len(step["marks"]) + 2 * len(step["spans"]) for step in steps)
    return {
        "mark_us": mark_us,
        "marks_per_step": marks,
        "share": marks * mark_us / 1e3 / statistics.mean(recorded),
        "recorded_p50_ms": quantile(recorded, 0.5),
        "bare_p50_ms": quantile(bare, 0.5),
        "bare_p20_ms": quantile(bare, 0.2),
        "bare_p80_ms": quantile(bare, 0.8),
    }


def straggler(ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The rank that the others wait for, the phase in which it is behind, and by how much; None for one rank.

    A rank's own work is its step without the wait for the others. `behind_ms` is what the step would gain if the
    slowest rank worked as the median of the others does.
    """
    if len(ranks) < 2:
        return None
    means = [mean_times(rank) for rank in ranks]
    work = [sum(ms for phase, ms in mean.items() if phase not in WAITING) for mean in means]
    slowest = max(range(len(ranks)), key=lambda rank: work[rank])
    others = [rank for rank in range(len(ranks)) if rank != slowest]
    excess = {
        phase: means[slowest][phase] - statistics.median(means[rank][phase] for rank in others)
        for phase in PHASES
        if phase not in WAITING
    }
    phase = max(excess, key=lambda name: excess[name])
    return {
        "rank": ranks[slowest]["rank"],
        "host": ranks[slowest]["host"],
        "phase": phase,
        "phase_ms": means[slowest][phase],
        "others_phase_ms": statistics.median(means[rank][phase] for rank in others),
        "behind_ms": work[slowest] - statistics.median(work[rank] for rank in others),
    }


def all_reduce_overlap(ranks: list[dict[str, Any]]) -> float | None:
    """Share of the time of all-reduces that ran beside the backward, from the spans of DDP's buckets; None for one."""
    hidden, total = 0.0, 0.0
    for rank in ranks:
        for step in recorded_steps(rank):
            spans = union([(begin, end) for name, begin, end in step["spans"] if name == "all-reduce"])
            tail = times_of(step).get("all-reduce tail", 0.0)
            total += length(spans)
            hidden += max(0.0, length(spans) - tail)
    return hidden / total if total else None


def loader_verdict(phases: list[dict[str, Any]], step: dict[str, float], ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Who waits for whom: the loader's speed alone against the speed of the step if its batch were always there."""
    rows = [row["by_rank_ms"] for row in phases if row["phase"] in ("fetch", "feed")]
    wait_ms = min(sum(of_phases) for of_phases in zip(*rows, strict=True))
    step_ms = step["mean_ms"]
    waits = [times_of(one).get("fetch", 0.0) for rank in ranks for one in recorded_steps(rank)]
    step_alone_ms = max(1e-9, step_ms - wait_ms)
    return {
        "wait_ms": wait_ms,
        "wait_share": wait_ms / step_ms,
        "step_could_take_images_per_second": step["images_per_second"] * step_ms / step_alone_ms,
        "batch_ready_share": sum(wait < 0.01 * step_ms for wait in waits) / max(1, len(waits)),
        "who_waits": "the step waits for the loader" if wait_ms > 0.05 * step_ms else "the loader waits for the step",
    }
