"""From records and traces to figures and advice: arithmetic that needs no run, with traces as a GPU gives them."""

import gzip
import json

import pytest
import torch

from deit_fast.profile.advice import advise
from deit_fast.profile.idle import idle_analysis, minus, overlap, union
from deit_fast.profile.memory import fragmentation, timeline
from deit_fast.profile.operators import host_wait_ms, launches, module_times, roofline, top_kernels
from deit_fast.profile.phases import RECORDED, Mark, Phases, Span, StepMarks, describe_steps, phase_times
from deit_fast.profile.summary import all_reduce_overlap, loader_verdict, phase_rows, step_row, straggler
from deit_fast.profile.trace import Trace, read_trace

CPU = torch.device("cpu")


def entry(name, category, start, duration, thread=1, **args):
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "ts": start,
        "dur": duration,
        "pid": 1,
        "tid": thread,
        "args": args,
    }


def gpu_trace():
    """One step of 100 us as a GPU's trace: attention forward on the main thread, its backward on another."""
    return {
        "traceEvents": [
            entry("phase: fetch", "user_annotation", 0, 20),
            entry("phase: mix", "user_annotation", 20, 5),
            entry("phase: forward", "user_annotation", 25, 25),
            entry("module: attention", "user_annotation", 26, 20),
            entry("aten::mm", "cpu_op", 27, 6, **{"External id": 1, "Sequence number": 7}),
            entry("cudaLaunchKernel", "cuda_runtime", 28, 2),
            entry("phase: backward", "user_annotation", 50, 30),
            entry("autograd::engine::evaluate_function: MmBackward0", "cpu_op", 52, 10, thread=2,
                  **{"External id": 2, "Sequence number": 7, "Fwd thread id": 1}),
            entry("aten::mm", "cpu_op", 53, 8, thread=2, **{"External id": 3, "Sequence number": -1}),
            entry("cudaLaunchKernel", "cuda_runtime", 54, 2, thread=2),
            entry("phase: log", "user_annotation", 80, 20),
            entry("cudaStreamSynchronize", "cuda_runtime", 82, 9),
            entry("cudaStreamSynchronize", "cuda_runtime", 40, 4),
            entry("gemm", "kernel", 30, 20, thread=7, **{"External id": 1}),
            entry("gemm", "kernel", 56, 14, thread=7, **{"External id": 3}),
            entry("ncclDevKernel_AllReduce", "kernel", 60, 20, thread=8),
            entry("Memcpy HtoD", "gpu_memcpy", 22, 4, thread=7),
            {"ph": "i", "name": "[memory]", "ts": 30, "args": {"Total Allocated": 512, "Device Type": 1}},
            {"ph": "i", "name": "[memory]", "ts": 55, "args": {"Total Allocated": 2048, "Device Type": 1}},
            {"ph": "i", "name": "[memory]", "ts": 56, "args": {"Total Allocated": 99999, "Device Type": 0}},
        ]
    }  # fmt: skip


def test_intervals_are_united_and_taken_away_as_sets_of_points():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        points = [set(), set()]
        intervals = [[], []]
        for which in (0, 1):
            for begin in torch.randint(0, 60, (6,), generator=generator).tolist():
                length = int(torch.randint(1, 12, (1,), generator=generator))
                intervals[which].append((begin, begin + length))
                points[which] |= set(range(begin, begin + length))
        one, other = union(intervals[0]), union(intervals[1])
        covered = lambda spans: {point for begin, end in spans for point in range(begin, end)}  # noqa: E731
        assert covered(one) == points[0]
        assert covered(minus(one, other)) == points[0] - points[1]
        assert overlap(one, other) == len(points[0] & points[1])


def test_a_gpus_time_is_split_and_its_idle_time_has_causes():
    found = idle_analysis(Trace(gpu_trace()))
    assert found["compute"] == pytest.approx(0.34)
    assert found["communication"] == pytest.approx(0.10)  # 10 of its 20 us run beside the backward
    assert found["memory"] == pytest.approx(0.04)
    assert found["idle"] == pytest.approx(0.52)
    assert found["idle_causes"]["waiting for data"] == pytest.approx(0.20)
    assert sum(found["idle_causes"].values()) == pytest.approx(0.52)


def test_device_time_goes_to_the_part_of_the_model_that_launched_it():
    trace = Trace(gpu_trace())
    (attention,) = [row for row in module_times(trace) if row["share"] > 0]
    assert attention == {"module": "attention", "forward_ms": 0.020, "backward_ms": 0.014, "share": 1.0}
    assert host_wait_ms(trace) == pytest.approx(0.004)  # that in the log phase is meant
    assert [row["kernel"] for row in top_kernels(trace)] == ["gemm", "ncclDevKernel_AllReduce", "Memcpy HtoD"]
    counted = launches(trace)
    assert (counted["per_step"], counted["host_launches_per_step"], counted["short_per_step"]) == (4, 2, 1)


def test_the_roofline_tells_what_an_operator_is_bound_by():
    peaks = {"flops_per_second": 1e12, "bytes_per_second": 1e11}  # 34 us allow 34 MFLOP or 3.4 MB
    bound = lambda flops, size: roofline(  # noqa: E731
        Trace(gpu_trace()), [{"operator": "aten::mm", "calls": 2, "flops": flops, "bytes": size}], peaks
    )[0]
    assert bound(30e6, 1e5)["bound"] == "compute"
    assert bound(1e6, 3e6)["bound"] == "memory"
    assert bound(1e5, 1e4)["bound"] == "overhead"
    assert bound(17e6, 1e5)["of_roof"] == pytest.approx(0.5)


def test_memory_is_that_of_the_device_in_its_phase():
    assert timeline(Trace(gpu_trace()), torch.device("cuda")) == [(0.030, 512, "forward"), (0.055, 2048, "backward")]
    assert fragmentation(75, 100) == 0.25


def test_a_trace_is_read_compressed_and_anything_else_is_refused(tmp_path):
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(json.dumps(gpu_trace()).encode()))
    assert read_trace(tmp_path / "t.json.gz").num_steps == 1
    (tmp_path / "t.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"t.json is no Chrome trace"):
        read_trace(tmp_path / "t.json")


def test_the_phases_of_a_step_add_up_to_the_step():
    phases = Phases(CPU)
    at = lambda phase, ms: Mark(phase, ms / 1e3, None)  # noqa: E731
    marks = [at("fetch", 0), at("feed", 1), at("fetch", 3), at("mix", 4), at("log", 9)]
    phases.steps = [
        StepMarks(5, RECORDED, marks, [Span("all-reduce", at("", 5), at("", 8))]),
        StepMarks(6, "bare", [at("fetch", 10)]),
        StepMarks(7, "end", [at("fetch", 13)]),
    ]
    first, bare = describe_steps(phases)
    assert first["host_ms"] == pytest.approx({"fetch": 2, "feed": 2, "mix": 5, "log": 1})
    assert first["total_ms"] == pytest.approx(sum(first["host_ms"].values()))
    assert first["spans"] == [["all-reduce", pytest.approx(5), pytest.approx(8)]]
    assert bare == {"step": 6, "kind": "bare", "total_ms": pytest.approx(3)}
    assert sum(phase_times(marks, at("", 10), on_device=False).values()) == pytest.approx(10)


class Event:
    """Stands in for torch.cuda.Event."""

    def __init__(self, ms):
        self.ms = ms

    def elapsed_time(self, other):
        return other.ms - self.ms


def test_on_a_gpu_the_devices_clock_counts_that_runs_behind_the_hosts():
    marks = [Mark("fetch", 0.000, Event(100)), Mark("forward", 0.001, Event(103)), Mark("log", 0.002, Event(150))]
    end = Mark("fetch", 0.004, Event(151))
    assert phase_times(marks, end, on_device=True) == {"fetch": 3, "forward": 47, "log": 1}
    assert phase_times(marks, end, on_device=False) == pytest.approx({"fetch": 1, "forward": 1, "log": 2})


def rank(number, **phases_ms):
    """A rank whose three recorded steps take these milliseconds."""
    times = {name.replace("_", " ").replace("all reduce", "all-reduce"): ms for name, ms in phases_ms.items()}
    step = {"step": 1, "kind": RECORDED, "total_ms": sum(times.values()), "host_ms": times, "device_ms": None,
            "marks": [[name, 0.0] for name in times], "spans": []}  # fmt: skip
    return {"rank": number, "host": f"node{number}", "steps": [step] * 3}


def record_of(*ranks, **changes):
    """The record of a sound run with these ranks, and what is changed in it."""
    phases, step = phase_rows(list(ranks)), step_row(list(ranks), 256)
    record = {
        "device_type": "cuda",
        "step": step,
        "phases": phases,
        "straggler": straggler(list(ranks)),
        "all_reduce_overlap": None,
        "teacher": None,
        "config": {"runtime": {"precision": "auto", "teacher_precision": "auto"}},
        "idle": {"ms_per_step": step["mean_ms"], "idle_causes": {}},
        "memory": {"allocator": None},
        "operators": {
            "waits": [], "copies": [], "host_wait_ms": 0.0,
            "peaks": {"flops_per_second": 1e14, "bytes_per_second": 1e12},
            "compile": {"recompiles_while_measured": 0},
            "launches": {"per_step": 900, "short_share_of_count": 0.6, "short_us": 10},
        },
        "loader": {
            "backend": "graph", "num_threads": 8, "alone": {"images_per_second": 214.0, "cores_used": 7.5},
            **loader_verdict(phases, step, list(ranks)),
        },
    }  # fmt: skip
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = record
        for name in sections:
            section = section[name]
        section[key] = value
    return record


SOUND = {"fetch": 1.0, "mix": 1.0, "forward": 30.0, "backward": 60.0, "optimizer": 6.0, "log": 2.0}


def causes(record):
    return [advice.cause for advice in advise(record)]


def test_a_sound_run_gets_no_advice():
    assert causes(record_of(rank(0, **SOUND))) == []
    even = [rank(i, **SOUND, all_reduce_tail=3.0) for i in range(4)]
    assert causes(record_of(*even)) == []


def test_a_rank_with_a_slow_disk_is_named_and_neither_the_loader_nor_the_all_reduce_of_all():
    ranks = [rank(0, **SOUND, all_reduce_tail=42.0), rank(1, **{**SOUND, "fetch": 40.0}, all_reduce_tail=3.0)]
    record = record_of(*ranks)
    (advice,) = advise(record)
    assert advice.cause == "rank"
    assert advice.gain_ms == pytest.approx(39.0)
    assert "rank 1 on node1" in advice.line
    assert "its fetch takes 40.0 ms, the others' 1.0" in advice.line


def test_data_wait_says_what_the_loader_gives_and_the_step_could_take():
    record = record_of(rank(0, **{**SOUND, "fetch": 61.0}))
    first = advise(record)[0]
    assert first.cause == "data"
    assert first.gain_ms == pytest.approx(61.0)
    assert "data wait 38% of the step" in first.line
    assert "214 images/s" in first.line
    assert f"the step could take {256 / 0.099:,.0f}" in first.line
    assert "threads are busy" in first.mend
    idle_threads = record_of(
        rank(0, **{**SOUND, "fetch": 61.0}), loader__alone={"images_per_second": 214.0, "cores_used": 1.0}
    )
    assert "storage" in advise(idle_threads)[0].mend


WAIT = {"operator": "aten::_local_scalar_dense", "phase": "loss", "source": "step.py:9: loss.item()", "calls": 1}


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        ("host wait", {"operators__waits": [WAIT], "operators__host_wait_ms": 7.0}),
        ("recompiles", {"operators__compile": {"recompiles_while_measured": 2}}),
        ("memory", {"memory__allocator": {"retries": 3, "fragmentation": 0.1}}),
        ("launches", {"idle__idle_causes": {"the host prepares the next work": 0.3}}),
        ("layout", {"operators__copies": [{"kind": "layout", "bytes": 8e9, "source": "teacher.py:73: x"}]}),
        ("teacher", {"teacher": {"ms": 30.0, "dtype": "bfloat16", "alone_ms": None, "faster_ms": None}}),
    ],
)
def test_each_cause_is_named_alone(cause, changes):
    assert causes(record_of(rank(0, **SOUND), **changes)) == [cause]


def test_a_teacher_in_fp32_is_a_fault_only_where_it_was_measured_to_be_slower():
    slow = {"ms": 30.0, "dtype": "float32", "faster_dtype": "bfloat16", "alone_ms": 28.0, "faster_ms": 9.0}
    assert causes(record_of(rank(0, **SOUND), teacher=slow)) == ["teacher precision", "teacher"]
    assert causes(record_of(rank(0, **SOUND), teacher={**slow, "faster_ms": 29.0})) == ["teacher"]


@pytest.mark.parametrize(
    ("runtime", "key"),
    [
        ({"precision": "fp32", "teacher_precision": "auto"}, "runtime.precision"),
        ({"precision": "auto", "teacher_precision": "fp32"}, "runtime.teacher_precision"),
        ({"precision": "fp32", "teacher_precision": "fp32"}, "runtime.teacher_precision"),
    ],
)
def test_the_mend_of_a_teacher_in_fp32_names_the_key_that_is_set(runtime, key):
    slow = {"ms": 30.0, "dtype": "float32", "faster_dtype": "bfloat16", "alone_ms": 28.0, "faster_ms": 9.0}
    first = advise(record_of(rank(0, **SOUND), teacher=slow, config__runtime=runtime))[0]
    assert first.mend == f"set {key}, which is fp32, to bf16"


def test_faults_come_before_options_and_five_lines_are_enough():
    record = record_of(
        rank(0, **{**SOUND, "fetch": 10.0, "log": 9.0}, all_reduce_tail=8.0),
        teacher={"ms": 50.0, "dtype": "float32", "faster_dtype": "bfloat16", "alone_ms": 50.0, "faster_ms": 42.0},
        operators__waits=[WAIT],
        operators__compile={"recompiles_while_measured": 2},
        idle__idle_causes={"the host prepares the next work": 0.3},
    )
    # of the options, the launches would gain most (30 % of the step), and still come after every fault
    assert causes(record) == ["data", "log", "teacher precision", "host wait", "recompiles"]


def test_a_wait_that_no_phase_of_the_step_has_is_not_advised():
    assert causes(record_of(rank(0, **SOUND), operators__waits=[{**WAIT, "phase": "log"}])) == []


def test_the_hidden_part_of_an_all_reduce_is_what_ran_before_the_tail():
    one = rank(0, **SOUND, all_reduce_tail=4.0)
    one["steps"] = [{**one["steps"][0], "spans": [["all-reduce", 50.0, 60.0], ["all-reduce", 55.0, 70.0]]}]
    assert all_reduce_overlap([one]) == pytest.approx(16 / 20)
    assert all_reduce_overlap([rank(0, **SOUND)]) is None
