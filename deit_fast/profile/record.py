"""The record of a profile: one JSON object that report, comparison and advice are made from."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import torch

from deit_fast.config_file import config_as_dict
from deit_fast.environment import describe_environment
from deit_fast.precision import DTYPES
from deit_fast.trainer import Trainer

from .advice import advise
from .idle import idle_analysis
from .loader_times import decoder_share
from .memory import memory_record
from .operators import host_wait_ms, launches, module_times, roofline, top_kernels, top_operators
from .peaks import measure_peaks
from .phases import mark_cost_us
from .run import Measured, teacher_module
from .summary import all_reduce_overlap, loader_verdict, overhead, phase_rows, step_row, straggler
from .teacher_times import teacher_ms
from .trace import Trace

SCHEMA = 1


def build_record(trainer: Trainer, measured: Measured) -> dict[str, Any]:
    """Everything that was measured, summed up; times in ms, sizes in bytes."""
    config, device = trainer.config, trainer.ranks.device
    trace = measured.trace
    size = trainer.state.global_batch_size
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": config.model.name,
        "precision": trainer.precision,
        "device_type": device.type,
        "world_size": trainer.ranks.world_size,
        "images_per_step": size,
        "step": step_row(measured.ranks, size),
        "phases": phase_rows(measured.ranks),
        "overhead": overhead(measured.ranks, mark_cost_us(device)),
        "straggler": straggler(measured.ranks),
        "all_reduce_overlap": all_reduce_overlap(measured.ranks),
        "operators": operators_record(trace, measured, device, trainer.precision),
        "idle": idle_analysis(trace, [rank["collectives_us"] for rank in measured.ranks]),
        "memory": memory_record(trace, trainer.state, teacher_module(trainer), device, measured.device_memory),
        "teacher": None,
        "ranks": measured.ranks,
        "config": config_as_dict(config),
        "environment": describe_environment(device),
    }
    if measured.teacher is not None:
        record["teacher"] = {"ms": teacher_ms(measured.ranks), **measured.teacher}
    record["loader"] = {
        "backend": trainer.train_loader.backend,
        "num_threads": trainer.train_loader.pipeline_options["num_threads"],
        "prefetch": trainer.train_loader.pipeline_options["prefetch_queue_depth"],
        "alone": measured.loader_alone,
        "operators": measured.loader_operators,
        "decoder_share": decoder_share(measured.loader_operators),
        **loader_verdict(record["phases"], record["step"], measured.ranks),
    }
    record["advice"] = [{**vars(advice), "line": advice.line} for advice in advise(record)]
    return record


def operators_record(trace: Trace, measured: Measured, device: torch.device, precision: str) -> dict[str, Any]:
    """What trace and watched step say of operators, kernels, copies and waits."""
    (watch,) = measured.watch
    dtype = DTYPES[precision]
    peaks = measure_peaks(device, dtype)
    after_warm_up, after_recorded = measured.graphs
    return {
        "top": top_operators(trace),
        "kernels": top_kernels(trace),
        "modules": module_times(trace),
        "launches": launches(trace),
        "roofline": roofline(trace, watch["operators"], peaks),
        "peaks": {**peaks, "dtype": str(dtype).removeprefix("torch.")},
        "copies": watch["copies"],
        "waits": watch["waits"],
        "host_wait_ms": host_wait_ms(trace),
        "compile": {
            **after_recorded,
            "recompiles_while_measured": after_recorded["graphs"] - after_warm_up["graphs"],
        },
    }
