"""The parts that look into a step: the watch over operators, the pipeline grown operator by operator, ranges."""

import warnings

import pytest
import torch
from small_runs import ALONE, config
from torch import nn
from torch.profiler import ProfilerActivity, profile

from deit_fast.model import DeiT
from deit_fast.profile.loader_times import decoder_share, measure_operators
from deit_fast.profile.operators import module_times
from deit_fast.profile.phases import Phases
from deit_fast.profile.ranges import PhaseRanges, module_ranges, trace_range
from deit_fast.profile.run import write_trace
from deit_fast.profile.trace import read_trace
from deit_fast.profile.watch import OperatorWatch, copy_kind, describe_watch, watched
from deit_fast.trainer import Trainer
from deit_fast.variants import DeiTShape


def watch_of(work):
    watch = OperatorWatch(Phases(torch.device("cpu")))
    with watch:
        work()
    return describe_watch(watch)


def test_arithmetic_and_bytes_are_those_of_the_formulas():
    a, b = torch.ones(8, 16), torch.ones(16, 32)
    images, weight = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)

    def work():
        a @ b
        a.t().view(2, 8, 8)  # views: nothing moves
        with torch.inference_mode():
            nn.functional.conv2d(images, weight)

    rows = {row["operator"]: row for row in watch_of(work)["operators"]}
    assert rows["aten::mm"]["flops"] == 2 * 8 * 16 * 32
    assert rows["aten::mm"]["bytes"] == 4 * (8 * 16 + 16 * 32 + 8 * 32)
    assert rows["aten::view"]["bytes"] == rows["aten::t"]["bytes"] == 0
    assert rows["aten::convolution"]["flops"] == 2 * (2 * 6 * 6) * 4 * 27


def test_copies_are_told_apart_by_what_they_change():
    x = torch.ones(2, 3, 4, 4)
    assert copy_kind(x, x.half()) == "cast"
    assert copy_kind(x, x.contiguous(memory_format=torch.channels_last)) == "layout"
    assert copy_kind(x, x.clone()) == "copy"
    assert copy_kind(x, x.to("meta")) == "host to device"
    assert copy_kind(torch.ones(1, 5).t(), torch.ones(5, 1)) == "copy"  # the same order in memory
    (cast,) = watch_of(lambda: x.to(torch.float64))["copies"]
    assert (cast["kind"], cast["calls"], cast["bytes"]) == ("cast", 1, 96 * (4 + 8))
    assert "tests/test_profile_watch.py:" in cast["source"]


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool(x.all())]
)
def test_whatever_makes_the_host_wait_is_seen_with_its_line(wait):
    found = watch_of(lambda: wait(torch.ones(3)))["waits"]
    assert found
    assert all("tests/test_profile_watch.py:" in row["source"] for row in found)


def synchronisations(work, monkeypatch, warning):
    """The waits of a watched step in which this warning is the one by which CUDA tells of a synchronisation."""
    monkeypatch.setattr("deit_fast.profile.watch.SYNC_WARNING", warning)
    into = []
    with watched(Phases(torch.device("cpu")), into):
        work()
    return into[0]["waits"]


def test_a_synchronisation_that_no_operator_is_known_for_has_the_line_that_called_torch(monkeypatch):
    """Any warning of torch's C++ serves: this one is given in torch/functional.py."""
    resized = "An output with one or more elements was resized"
    (wait,) = synchronisations(lambda: torch.norm(torch.ones(3), dim=0, out=torch.ones(5)), monkeypatch, resized)
    assert (wait["operator"], wait["phase"], wait["calls"]) == ("synchronisation", "log", 1)
    assert "tests/test_profile_watch.py:" in wait["source"]


def test_a_wait_that_its_operator_is_known_for_is_listed_once(monkeypatch):
    def work():
        torch.ones(()).item(), warnings.warn("as on CUDA", stacklevel=1)

    (wait,) = synchronisations(work, monkeypatch, "as on CUDA")
    assert wait["operator"] == "aten::_local_scalar_dense"


def test_what_does_not_wait_is_not_named():
    rows = torch.tensor([0, 2])
    assert watch_of(lambda: torch.ones(3)[rows].sum() * 2 + torch.where(rows > 0, 1, 0).sum())["waits"] == []


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2)

    def forward(self, x):
        return self.head(self.mlp(self.attn(x)))


def rows_of_modules(network, inputs, folder):
    """Module -> its row, from a traced forward and backward."""
    ranges = PhaseRanges(trace_range)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, module_ranges(network, None):
        ranges("forward")
        output = network(inputs)
        ranges("backward")
        output.sum().backward()
        ranges.close()
    write_trace(profiler, folder / "trace.json.gz")
    trace = read_trace(folder / "trace.json.gz")
    assert [event.name for event in trace.phases] == ["phase: forward", "phase: backward"]
    return {row["module"]: row for row in module_times(trace)}


def test_forward_and_backward_go_to_the_module_that_they_belong_to(tmp_path):
    """The products of each: 2 in the backward of inner linears (gradients of input and weight)."""
    network = Network()
    rows = rows_of_modules(network, torch.randn(32, 64), tmp_path)
    for part in ("attention", "MLP", "head"):
        assert rows[part]["forward_ms"] > 0
        assert rows[part]["backward_ms"] > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("kernels", "parts"),
    [((), ("attention", "MLP", "norm")), (("add_norm",), ("attention and norm", "MLP and norm", "norm"))],
)
def test_the_parts_of_a_deit_have_their_time_with_and_without_fused_kernels(tmp_path, kernels, parts):
    shape = DeiTShape(64, 2, 2, 8, 32)
    network = DeiT(shape, image_size_px=32, num_classes=5, attention="reference", kernels=kernels)
    rows = rows_of_modules(network, torch.randn(8, 3, 32, 32), tmp_path)
    for part in ("patch embedding", "head", *parts):
        assert rows[part]["forward_ms"] > 0, part
        assert rows[part]["backward_ms"] > 0, part
    assert not any("add_attention" in vars(module) for module in network.modules())


@pytest.mark.parametrize("backend", ["graph", "native"])
def test_a_pipeline_is_grown_from_the_callback_to_the_whole(few_digits, tmp_path, backend):
    small = ("--runtime.batch_size_per_device", "8", "--mix.group_size", "8", "--augment.policy", "none")
    run = config(few_digits, tmp_path, "--data.backend", backend, *small, recipe="demo_student")
    rows = measure_operators(Trainer(run, ALONE).train_loader, 0, 2)
    names = [row["operator"] for row in rows]
    assert names[:2] == ["ExternalSource", "io.file.Read"]
    assert rows[-1]["total_cpu_ms"] == pytest.approx(sum(row["cpu_ms"] for row in rows))
    if backend == "native":
        assert names[2:] == ["branch: deit_fast.Crop", "deit_fast.Augment"]
        assert decoder_share(rows) is None
    else:
        assert names[2:6] == ["decoders.ImageSlice", "Resize", "branch: Flip", "CropMirrorNormalize"]
        assert decoder_share(rows) == pytest.approx(rows[2]["cpu_ms"] / rows[-1]["total_cpu_ms"])
