"""What a profile does on a GPU, without one: a trace as a GPU gives it, and the device's calls replaced."""

import gzip
import json
import time
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from small_runs import ALONE, config
from test_profile import LENGTHS, SMALL
from torch._subclasses.fake_tensor import FakeTensorMode

from deit_fast.memory import DeviceMemory
from deit_fast.profile.idle import collectives, idle_analysis
from deit_fast.profile.memory import device_memory, fragmentation, timeline
from deit_fast.profile.operators import host_wait_ms, launches, module_times, roofline, top_kernels, top_operators
from deit_fast.profile.phases import Mark, Phases, phase_times
from deit_fast.profile.ranges import PhaseRanges, nvtx_range
from deit_fast.profile.run import profiled_trainer, run_profile
from deit_fast.profile.trace import Trace, read_trace
from deit_fast.profile.watch import OperatorWatch, describe_watch, watched

MAIN, AUTOGRAD, DALI = 1, 2, 3
COMPUTE, NCCL, DALI_STREAM = 7, 8, 9


def entry(name, category, start, duration, thread=MAIN, **args):
    args = {key.replace("_", " "): value for key, value in args.items()}
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


def work(name, start, duration, stream=COMPUTE, category="kernel", **args):
    return entry(name, category, start, duration, stream, **args)


def allocation(at, total, device_type=1):
    return {"ph": "i", "name": "[memory]", "ts": at, "args": {"Total Allocated": total, "Device Type": device_type}}


def gpu_trace():
    """One step of 100 us as a GPU's trace: attention forward on the main thread, its backward on another.

    In the loss a number is read, through unpinned memory and through pinned; DALI works beside on threads and a stream
    of its own; a kernel is launched in a range that is no operator's.
    """
    return {
        "traceEvents": [
            entry("phase: fetch", "user_annotation", 0, 20),
            entry("cudaStreamSynchronize", "cuda_runtime", 5, 9, correlation=90),
            entry("cudaEventSynchronize", "cuda_runtime", 30, 40, DALI, correlation=91),
            work("jpeg_decode", 2, 6, DALI_STREAM, correlation=92),
            entry("phase: mix", "user_annotation", 20, 5),
            entry("phase: forward", "user_annotation", 25, 15),
            entry("module: attention", "user_annotation", 26, 12),
            entry("aten::mm", "cpu_op", 27, 4, External_id=1, Sequence_number=7),
            entry("cudaLaunchKernel", "cuda_runtime", 28, 2, correlation=11, External_id=1),
            entry("cuLaunchKernelEx", "cuda_driver", 32, 2, correlation=12),
            entry("phase: loss", "user_annotation", 40, 10),
            entry("aten::_local_scalar_dense", "cpu_op", 41, 8, External_id=4),
            entry("cudaMemcpyAsync", "cuda_runtime", 42, 4, correlation=13, External_id=4),
            entry("cudaStreamSynchronize", "cuda_runtime", 46, 2, correlation=14, External_id=4),
            entry("phase: backward", "user_annotation", 50, 30),
            entry("autograd::engine::evaluate_function: MmBackward0", "cpu_op", 52, 10, AUTOGRAD, External_id=2,
                  Sequence_number=7, Fwd_thread_id=1),
            entry("aten::mm", "cpu_op", 53, 8, AUTOGRAD, External_id=3, Sequence_number=-1),
            entry("cudaLaunchKernel", "cuda_runtime", 54, 2, AUTOGRAD, correlation=15, External_id=3),
            entry("c10d::allreduce_", "cpu_op", 63, 2, AUTOGRAD, External_id=5),
            entry("phase: log", "user_annotation", 80, 20),
            entry("cudaStreamSynchronize", "cuda_runtime", 82, 9, correlation=16),
            entry("phase: forward", "gpu_user_annotation", 30, 40, COMPUTE),
            work("gemm", 30, 10, External_id=1, correlation=11),
            work("add_norm", 40, 5, correlation=12),
            work("Memcpy DtoH (Device -> Pageable)", 45, 1, category="gpu_memcpy", External_id=4, correlation=13),
            work("gemm", 56, 14, External_id=3, correlation=15),
            work("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 60, 20, NCCL,
                 External_id=5),
            work("Memcpy HtoD (Pinned -> Device)", 22, 4, category="gpu_memcpy"),
            allocation(30, 512), allocation(55, 2048), allocation(56, 99999, device_type=0),
        ]
    }  # fmt: skip


def test_a_gpus_time_is_split_and_its_idle_time_has_causes():
    found = idle_analysis(Trace(gpu_trace()))
    assert found["compute"] == pytest.approx(0.35)  # DALI's kernel too
    assert found["communication"] == pytest.approx(0.10)  # 10 of its 20 us run beside the backward
    assert found["memory"] == pytest.approx(0.05)
    assert found["idle"] == pytest.approx(0.50)
    assert found["idle_causes"] == pytest.approx({"waiting for data": 0.14, "the host prepares the next work": 0.36})


def test_what_the_device_does_after_the_host_belongs_to_the_step():
    """The rest of the backward; but not what DALI prepares for the next."""
    late = gpu_trace()
    late["traceEvents"] += [
        work("gemm", 90, 60, External_id=3, correlation=15),
        work("jpeg_decode", 150, 99, DALI_STREAM),
    ]
    found = idle_analysis(Trace(late))
    assert found["ms_per_step"] == pytest.approx(0.150)
    assert found["compute"] * 150 == pytest.approx(35 + 60)


def test_what_a_collective_takes_longer_than_on_the_last_rank_is_waiting_for_it():
    trace = Trace(gpu_trace())
    assert [event.duration_us for event in collectives(trace)] == [20]
    found = idle_analysis(trace, [[20.0], [4.0]])  # its first 16 us, of which the backward covers 10
    assert found["communication"] == pytest.approx(0.04)
    assert found["idle_causes"]["waiting for a rank"] == pytest.approx(0.06)
    assert found["idle"] == pytest.approx(0.56)
    assert found["idle"] == pytest.approx(sum(found["idle_causes"].values()))
    assert idle_analysis(trace, [[20.0], [20.0]]) == idle_analysis(trace)  # nobody waits
    assert idle_analysis(trace, [[20.0], []]) == idle_analysis(trace)  # not the same collectives


def test_device_time_goes_to_the_part_of_the_model_that_launched_it():
    trace = Trace(gpu_trace())
    rows = {row["module"]: (row["forward_ms"], row["backward_ms"]) for row in module_times(trace)}
    assert rows == {
        "attention": (0.015, 0.014),  # the kernel that no operator launched too
        "all-reduce": (0, 0.020),
        "loss": (0.001, 0),
        "outside of the step: DALI and others": (0.010, 0),
    }
    assert sum(row["share"] for row in module_times(trace)) == pytest.approx(1)
    assert {row["operator"]: row["self_ms_per_step"] for row in top_operators(trace, 3)} == {
        "aten::mm": 0.024, "c10d::allreduce_": 0.020, "aten::_local_scalar_dense": 0.001,
    }  # fmt: skip


def test_kernels_are_grouped_by_name_and_launches_counted():
    trace = Trace(gpu_trace())
    (gemm, nccl, *rest) = top_kernels(trace)
    assert (gemm["kernel"], gemm["launches_per_step"], gemm["mean_us"]) == ("gemm", 2, 12)
    assert nccl["kernel"].startswith("ncclDevKernel_AllReduce")
    assert {row["kernel"] for row in rest} == {"jpeg_decode", "add_norm", "Memcpy HtoD (Pinned -> Device)",
                                               "Memcpy DtoH (Device -> Pageable)"}  # fmt: skip
    counted = launches(trace)
    assert (counted["per_step"], counted["host_launches_per_step"], counted["short_per_step"]) == (7, 3, 4)


def test_the_host_waits_in_the_step_and_not_for_data_nor_for_a_log_nor_in_dalis_threads():
    assert host_wait_ms(Trace(gpu_trace())) == pytest.approx(0.006)  # unpinned copy and synchronisation
    assert host_wait_ms(Trace({"traceEvents": [entry("phase: mix", "user_annotation", 0, 1)]})) is None  # a CPU's


def test_the_roofline_tells_what_an_operator_is_bound_by():
    peaks = {"flops_per_second": 1e12, "bytes_per_second": 1e11}  # 24 us allow 24 MFLOP or 2.4 MB
    bound = lambda flops, size: roofline(  # noqa: E731
        Trace(gpu_trace()), [{"operator": "aten::mm", "calls": 2, "flops": flops, "bytes": size}], peaks
    )[0]
    assert bound(21e6, 1e5)["bound"] == "compute"
    assert bound(1e6, 2e6)["bound"] == "memory"
    assert bound(1e5, 1e4)["bound"] == "overhead"
    assert bound(12e6, 1e5)["of_roof"] == pytest.approx(0.5)


def test_memory_is_that_of_the_device_in_its_phase():
    assert timeline(Trace(gpu_trace()), torch.device("cuda")) == [(0.030, 512, "forward"), (0.055, 2048, "backward")]
    assert fragmentation(75, 100) == 0.25


def test_a_trace_is_read_compressed_and_anything_else_is_refused(tmp_path):
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(json.dumps(gpu_trace()).encode()))
    assert read_trace(tmp_path / "t.json.gz").num_steps == 1
    (tmp_path / "t.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"t.json is no Chrome trace"):
        read_trace(tmp_path / "t.json")


class At:
    """A torch.cuda.Event of a known time."""

    def __init__(self, ms):
        self.ms = ms

    def elapsed_time(self, other):
        return other.ms - self.ms


def test_on_a_gpu_the_devices_clock_counts_that_runs_behind_the_hosts():
    marks = [Mark("fetch", 0.000, At(100)), Mark("forward", 0.001, At(103)), Mark("log", 0.002, At(150))]
    end = Mark("fetch", 0.004, At(151))
    assert phase_times(marks, end, on_device=True) == {"fetch": 3, "forward": 47, "log": 1}
    assert phase_times(marks, end, on_device=False) == pytest.approx({"fetch": 1, "forward": 1, "log": 2})


class WatchOfFakes(OperatorWatch):
    """Fake tensors ask for their device by an operator, which real ones do not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_copies_of_a_gpu_are_told_apart_and_only_a_blocking_one_to_the_host_is_a_wait():
    watch = WatchOfFakes(Phases(torch.device("cpu")))
    watch.phases.device = torch.device("cuda")
    with FakeTensorMode():
        on_gpu, on_host = torch.empty(4, 8, device="cuda"), torch.empty(4, 8)
        with watch:
            on_gpu.to("cpu")
            on_gpu.to("cpu", non_blocking=True)
            on_host.copy_(on_gpu)
            on_host.copy_(on_gpu, non_blocking=True)
            on_host.to("cuda")
            on_gpu.t().contiguous()
            on_gpu.half()
            on_gpu @ on_gpu.t()
    found = describe_watch(watch)
    calls = {row["kind"]: row["calls"] for row in found["copies"]}
    assert calls == {"device to host": 4, "host to device": 1, "layout": 1, "cast": 1}
    assert [(row["operator"], row["calls"]) for row in found["waits"]] == [("copy to the host", 2)]
    assert {row["operator"]: row["flops"] for row in found["operators"]}["aten::mm"] == 2 * 4 * 8 * 4


class FakeEvent:
    """A clock in place of torch.cuda.Event."""

    def __init__(self, *, enable_timing):
        assert enable_timing  # else elapsed_time raises

    def record(self):
        self.at_s = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at_s - self.at_s)


@pytest.fixture
def fake_cuda(monkeypatch):
    """The calls of torch.cuda that a profile makes; `ranges`: those of NVTX, `sync_modes`: of the detector."""
    fake = SimpleNamespace(ranges=[], sync_modes=[])
    stream = SimpleNamespace(wait_stream=lambda _other: None)
    replaced = {
        "Event": FakeEvent,
        "Stream": lambda _device: stream,
        "current_stream": lambda _device=None: stream,
        "stream": contextmanager(lambda _stream: iter([None])),
        "synchronize": lambda _device=None: None,
        "set_sync_debug_mode": fake.sync_modes.append,
        "nvtx.range_push": fake.ranges.append,
        "nvtx.range_pop": lambda: fake.ranges.append(None),
    }
    for name, stand_in in replaced.items():
        monkeypatch.setattr(f"torch.cuda.{name}", stand_in)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, _stream: None)
    return fake


def test_the_way_of_a_gpu_is_gone_with_its_calls_replaced(
    few_digits, tmp_path, teacher_checkpoint, fake_cuda, monkeypatch
):
    monkeypatch.setattr("deit_fast.profile.run.Phases", lambda _device: Phases(torch.device("cuda")))
    trainer = profiled_trainer(
        config(few_digits, tmp_path, *SMALL, teacher=teacher_checkpoint), ALONE, tmp_path, LENGTHS
    )
    mixed, compared, mix = [], [], trainer.train_step.mix

    def remembered(*arguments):
        mixed.append(mix(*arguments))
        return mixed[-1]

    trainer.train_step.mix = remembered
    monkeypatch.setattr("deit_fast.profile.run.compare_precisions", lambda _, images: compared.append(images))
    measured = run_profile(trainer, tmp_path, LENGTHS)
    assert compared[0] is mixed[-1][0].teacher  # the loader's images may be bytes, which a teacher does not take
    steps = [step for step in measured.ranks[0]["steps"] if step["kind"] == "recorded"]
    for step in steps:
        assert sum(step["device_ms"].values()) == pytest.approx(step["total_ms"])
        assert step["device_ms"].keys() == step["host_ms"].keys()
        ((name, begin, end),) = step["spans"]
        assert name == "teacher stream"
        assert 0 < begin < end < step["total_ms"]
    assert fake_cuda.sync_modes == ["warn", "default"]
    pushed = [name for name in fake_cuda.ranges if name]
    assert fake_cuda.ranges == [text for name in pushed for text in (name, None)]  # one after another, all ended
    assert set(pushed) > {"phase: fetch", "phase: mix", "phase: teacher", "phase: backward", "phase: log"}


def test_the_detector_of_synchronisations_gives_the_line_and_is_switched_off_whatever_happens(fake_cuda):
    into = []
    with pytest.raises(KeyError), watched(Phases(torch.device("cuda")), into):
        raise KeyError
    assert fake_cuda.sync_modes == ["warn", "default"]

    def detected(mode):
        if mode == "warn":  # as the first synchronisation under it would
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)

    torch.cuda.set_sync_debug_mode = detected
    with watched(Phases(torch.device("cuda")), into):
        pass
    (wait,) = into[0]["waits"]
    assert wait["operator"] == "synchronisation"
    assert "tests/test_profile_gpu.py:" in wait["source"]
    assert "called a synchronizing CUDA operation" in wait["source"]


def test_nvtx_ranges_follow_one_another(fake_cuda):
    ranges = PhaseRanges(nvtx_range)
    ranges("mix"), ranges("forward"), ranges.close(), ranges.close()
    assert fake_cuda.ranges == ["phase: mix", None, "phase: forward", None]


def test_device_memory_is_torchs_dalis_and_others(monkeypatch):
    used, reserved = [3 << 30], [1 << 30]
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: ((80 << 30) - used[0], 80 << 30))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _device: reserved[0])
    stats = {"allocated_bytes.all.peak": 6, "reserved_bytes.all.peak": 8, "inactive_split_bytes.all.peak": 1,
             "num_alloc_retries": 2}  # fmt: skip
    monkeypatch.setattr("torch.cuda.memory_stats", lambda _device: stats)
    on_device = DeviceMemory(torch.device("cuda"))
    used[0], reserved[0] = 12 << 30, 5 << 30
    found = device_memory(on_device)
    assert (found["others_on_device"], found["dali_on_device"]) == (2 << 30, 5 << 30)
    assert found["allocator"]["fragmentation"] == 0.25
    assert found["allocator"]["retries"] == 2
    assert device_memory(DeviceMemory(torch.device("cpu"))) == {
        "allocator": None, "dali_on_device": None, "others_on_device": None,
    }  # fmt: skip
