"""From records to figures and advice: arithmetic that needs no run."""

import pytest
import torch

from deit_fast.profile.advice import advise
from deit_fast.profile.idle import minus, overlap, union
from deit_fast.profile.phases import RECORDED, Mark, Phases, Span, StepMarks, describe_steps, phase_times
from deit_fast.profile.summary import all_reduce_overlap, loader_verdict, phase_rows, step_row, straggler

CPU = torch.device("cpu")


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
    assert advise(record_of(rank(0, **SOUND), teacher=slow))[0].gain_ms == pytest.approx(30 * 19 / 28)
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


def test_a_wait_of_the_host_costs_no_more_than_the_device_is_idle_for_want_of_work():
    """Until the host is back the device works: a long wait is not a long loss."""
    record = record_of(
        rank(0, **SOUND),
        operators__waits=[WAIT],
        operators__host_wait_ms=40.0,
        idle__idle_causes={"the host prepares the next work": 0.06},
    )
    (advice,) = advise(record)
    assert advice.gain_ms == pytest.approx(6.0)
    record["operators"]["host_wait_ms"] = 2.0
    assert advise(record)[0].gain_ms == pytest.approx(2.0)


def test_a_long_tail_is_blamed_on_nvlink_only_where_there_can_be_one():
    record = record_of(*[rank(i, **SOUND, all_reduce_tail=20.0) for i in range(2)])
    assert "NVLink" in advise(record)[0].mend
    assert "NVLink" not in advise({**record, "device_type": "cpu"})[0].mend


def test_a_wait_that_no_phase_of_the_step_has_is_not_advised():
    assert causes(record_of(rank(0, **SOUND), operators__waits=[{**WAIT, "phase": "log"}])) == []


def test_the_hidden_part_of_an_all_reduce_is_what_ran_before_the_tail():
    one = rank(0, **SOUND, all_reduce_tail=4.0)
    one["steps"] = [{**one["steps"][0], "spans": [["all-reduce", 50.0, 60.0], ["all-reduce", 55.0, 70.0]]}]
    assert all_reduce_overlap([one]) == pytest.approx(16 / 20)
    assert all_reduce_overlap([rank(0, **SOUND)]) is None
