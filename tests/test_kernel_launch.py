"""What is compiled ahead is what a GPU would run: Triton's own launch path, with a driver that only names the GPU."""

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from deit_fast.kernels.attention import triton as attention
from deit_fast.kernels.cases import all_cases
from deit_fast.kernels.distill_loss import LossTerms
from deit_fast.kernels.distill_loss import triton as loss
from deit_fast.kernels.launch import launch, recording
from deit_fast.kernels.resources import compile_ahead

CASES = {case.name: case for case in all_cases()}
FEW = ("attention_backward/198/bf16", "distill_loss_forward/soft", "batch_prep/bf16", "add_norm_forward")


class PlannedGpu:
    """As much of a driver as Triton asks before it launches."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_device(self):
        return self.architecture

    def get_current_stream(self, _device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """Triton's cache is shared by all checkouts of a user, and PTX names the files that it was compiled from."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def check(name, architecture, monkeypatch):
    monkeypatch.setattr(driver, "_active", PlannedGpu(architecture))
    noted = CASES[name].launch(architecture)
    options = {"num_warps": noted.num_warps, "num_stages": noted.num_stages}
    launched = noted.kernel.run(*noted.arguments, grid=noted.grid, warmup=True, **options, **noted.constants)
    ahead = compile_ahead(noted, architecture)
    assert launched.asm["ptx"] == ahead.asm["ptx"]
    assert launched.metadata.shared == ahead.metadata.shared


@pytest.mark.parametrize("name", FEW)
def test_the_launch_compiles_to_the_code_of_the_budget(name, monkeypatch):
    check(name, 80, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
@pytest.mark.parametrize("name", CASES)
def test_every_launch_compiles_to_the_code_of_the_budget(name, architecture, monkeypatch):
    check(name, architecture, monkeypatch)


def test_a_recording_notes_what_would_be_launched():
    with recording(90) as launches:
        attention.forward(torch.empty(2, 198, 3, 4, 64, dtype=torch.bfloat16, device="meta"))
    (noted,) = launches
    assert (noted.name, noted.grid, noted.num_warps) == ("forward_short", (4 * 2 * 4,), 4)
    assert noted.constants["CHUNKS"] == (128, 64, 16)


class WhatElseRuns(TorchDispatchMode):
    """Notes torch's operations that would launch a kernel: those that give a tensor which is not an empty one."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and "empty" not in func._schema.name:
            self.seen.append(func._schema.name)
        return result


@pytest.mark.parametrize("kind", ["none", "hard", "soft"])
def test_the_loss_takes_two_launches(kind):
    """One forward, which adds up itself, and one backward; nothing by torch beside them."""
    logits, lam = torch.empty(256, 1000, dtype=torch.bfloat16, device="meta"), torch.empty(256, device="meta")
    labels = lam.long()
    terms = LossTerms(kind, smoothing=0.1)
    others = (None, None) if kind == "none" else (logits, logits)
    loss.finished_counter(logits)  # is made once in a process
    with recording(90) as launches, WhatElseRuns() as torchs:
        value, _, *gradients = loss.forward(logits, labels, labels, lam, terms, *others)
        loss.backward(*gradients, value, torch.bfloat16)
    assert [noted.name for noted in launches] == ["loss_and_gradients", "scale_gradients"]
    assert torchs.seen == []


def test_the_last_program_of_the_loss_sees_what_the_others_wrote():
    """The count acquires and releases, and what it guards is read past the first cache, which may hold old values."""
    case = CASES["distill_loss_forward/hard"]
    ptx = compile_ahead(case.launch(80), 80).asm["ptx"]
    assert re.findall(r"atom\.\S+", ptx) == ["atom.global.gpu.acq_rel.add.u32"]
    after = ptx[ptx.index("atom.global") :]
    assert set(re.findall(r"ld\.global\.\w+", after)) == {"ld.global.cg"}


KIB_OF_A_PROGRAM = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, 121: 99}
"""Shared memory at most (CUDA C++ programming guide, table of compute capabilities); beyond it a launch fails."""
LENGTHS = [1, 7, 17, 197, 198, 224, 225, 256, 257, 577, 578, 1026]


def check_fits(tokens, architecture):
    qkv = torch.empty(2, tokens, 3, 4, 64, dtype=torch.bfloat16, device="meta")
    out, lse = qkv.new_empty(2, tokens, 256), qkv.new_empty(2, 4, tokens, dtype=torch.float32)
    with recording(architecture) as launches:
        attention.forward(qkv)
        attention.backward(qkv, out, lse, out)
    for noted in launches:
        assert compile_ahead(noted, architecture).metadata.shared <= KIB_OF_A_PROGRAM[architecture] << 10, noted.name


@pytest.mark.parametrize("tokens", [224, 225])
def test_attention_fits_a_small_shared_memory(tokens):
    """The short backward keeps all keys there: 94 KiB for 224, 100 for 225, where an RTX 4090 gives a program 99."""
    check_fits(tokens, 89)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", KIB_OF_A_PROGRAM)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_attention_of_any_length_fits(tokens, architecture):
    check_fits(tokens, architecture)


def test_one_recording_at_a_time():
    with recording(80), pytest.raises(AssertionError, match="one recording"), recording(90):
        launch(None, (1,), num_warps=1)


@pytest.mark.parametrize(
    ("rows", "chunks"), [(1, (16,)), (16, (16,)), (17, (32,)), (198, (128, 64, 16)), (256, (128, 128)), (0, ())]
)
def test_chunks_cover_the_rows(rows, chunks):
    found, offsets = attention.chunks_of(rows)
    assert found == chunks
    assert offsets == tuple(sum(chunks[:i]) for i in range(len(chunks)))
