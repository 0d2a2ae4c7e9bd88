"""`deit-fast bench kernels`: timing on a CPU, the model of a GPU, and the reading of compiled code."""

import json
from pathlib import Path

import pytest
import torch
import triton

from deit_fast.benchmarks.kernel_contenders import Sizes, contests
from deit_fast.benchmarks.kernels import _seconds, fastest, is_correct, measure_kernels, show_kernels
from deit_fast.benchmarks.speed_of_light import CHIPS, bounds
from deit_fast.cli import main
from deit_fast.kernels.cases import all_cases
from deit_fast.kernels.resources import access_bytes, executed, mma_flops, programs_per_sm


def rows_of(path: Path):
    return json.loads(path.read_text().splitlines()[-1])


def test_times_every_kernel_on_a_cpu(tmp_path, capsys):
    arguments = ["bench", "kernels", "--device", "cpu", "--no-compile", "--turns", "2", "--batch", "2", "--tokens", "9"]
    assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    record = rows_of(tmp_path / "rows.jsonl")
    assert {row["workload"] for row in record["rows"]} == {
        "attention", "distill_loss", "batch_prep", "add_norm", "gelu_bias",
    }  # fmt: skip
    assert all(row["correct"] and row["ms_p20"] <= row["ms"] <= row["ms_p80"] for row in record["rows"])
    assert record["fastest"]["add_norm"] in ("reference", "native")
    assert "the Triton kernels are timed on a GPU only" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_times_what_torch_compiles(tmp_path):
    arguments = ["bench", "kernels", "--device", "cpu", "--turns", "2", "--kernels", "gelu_bias", "--dtype", "fp32"]
    assert main([*arguments, "--json", str(tmp_path / "rows.jsonl")]) == 0
    names = {row["name"] for row in rows_of(tmp_path / "rows.jsonl")["rows"]}
    assert {"reference", "torch.compile"} <= names <= {"reference", "native", "torch.compile"}


def test_a_wrong_kernel_is_not_timed():
    contest = next(c for c in contests(Sizes(batch=2, tokens=5), torch.float32, "cpu") if c.name == "gelu_bias")
    right = contest.run("reference")
    assert is_correct(contest, right)
    assert not is_correct(contest, lambda x, bias: torch.nn.functional.gelu(x + bias, approximate="tanh") * 1.01)
    assert not is_correct(contest, lambda x, bias: right(x, bias) * float("nan"))


def test_a_contender_that_does_not_run_is_told(monkeypatch):
    def no_kernel(_qkv, _backend="sdpa"):
        raise RuntimeError("No available kernel. Aborting execution.\nmore")

    monkeypatch.setattr("deit_fast.benchmarks.kernel_contenders.attention", no_kernel)
    rows = measure_kernels(Sizes(batch=2, tokens=5), torch.float32, "cpu", turns=1, compiled=False)
    fails = {row["workload"]: row.get("fails") for row in rows}
    assert fails.pop("attention") == "RuntimeError: No available kernel. Aborting execution."
    assert set(fails.values()) == {None}
    show_kernels(rows, "title")


def test_a_wrong_gradient_is_found_however_small_gradients_are():
    """Those of the loss are divided by the batch: 5 % of them are less than 0.02."""
    contest = next(c for c in contests(Sizes(batch=4), torch.bfloat16, "cpu") if c.name == "distill_loss")
    right = contest.run("reference")

    def wrong(**inputs):
        value = right(**inputs)
        return value + 0.05 * (value - value.detach())

    assert is_correct(contest, right)
    assert not is_correct(contest, wrong)


def test_a_gpu_is_kept_busy_until_the_host_has_launched_what_is_timed(monkeypatch):
    seen = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            seen.append("event")

        def elapsed_time(self, _end):
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _cycles: seen.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("wait"))
    assert _seconds(lambda: seen.append("call"), "cuda") == 0.003
    assert seen == ["sleep", "event", "call", "event", "wait"]


def test_the_fastest_correct_one_is_chosen():
    rows = [
        {"workload": "attention", "name": "sdpa", "correct": True, "ms": 2.0},
        {"workload": "attention", "name": "triton", "correct": False},
        {"workload": "add_norm", "name": "triton", "correct": True, "ms": 2.0},
        {"workload": "add_norm", "name": "torch.compile", "correct": True, "ms": 1.0},
    ]
    assert fastest(rows) == {"attention": "sdpa", "add_norm": "reference"}


def test_wrong_use_is_named(capsys):
    for arguments, message in (
        (["--kernels", "rope", "--device", "cpu"], "unknown kernel rope; kernels: attention"),
        (["--speed-of-light", "tpu"], "--speed-of-light takes a100, h100, b200, got tpu"),
        (["--resources", "70"], "--resources takes all, or some of 80, 90, 100, 120"),
        (
            ["--write", "--resources", "80"],
            "--write belongs to --resources all: the budget file holds every architecture",
        ),
    ):
        assert main(["bench", "kernels", *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_bounds_of_a_kernel_that_is_only_memory():
    """add_norm forward on an A100: 6u of bytes over 2.039 TB/s, and nothing to multiply."""
    case = next(case for case in all_cases() if case.name == "add_norm_forward")
    limits = bounds(case, CHIPS["a100"])
    assert limits["HBM"] == pytest.approx(6 * 2 * 256 * 198 * 768 / 2.039e12 * 1e6)
    assert limits["MMA"] == 0
    assert max(limits, key=limits.get) == "HBM"


@pytest.mark.slow
@pytest.mark.parametrize("gpu", CHIPS)
def test_speed_of_light_table(gpu, tmp_path, capsys):
    assert main(["bench", "kernels", "--speed-of-light", gpu, "--json", str(tmp_path / "rows.jsonl")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a model, not measured" in text
    assert len(rows_of(tmp_path / "rows.jsonl")["bounds"]) == len(all_cases())


@pytest.mark.slow
def test_resources_are_those_of_the_budget(tmp_path, capsys):
    from deit_fast.kernels.budget import read_budget

    assert main(["bench", "kernels", "--resources", "sm_80", "--json", str(tmp_path / "rows.jsonl")]) == 0
    assert "no GPU was used" in " ".join(capsys.readouterr().out.split())
    assert rows_of(tmp_path / "rows.jsonl")["resources"] == {"sm_80": read_budget()["rows"]["sm_80"]}


MACHINE_CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
{body}
        /*0200*/              @P0 BRA `(.L_x_0) ;
        /*0210*/                   LDG.E.128 R4, [R2.64] ;
        /*0220*/                   EXIT ;
"""


def test_instructions_in_a_loop_count_as_often_as_it_runs():
    body = "\n".join(
        f"        /*{16 * i:04x}*/                   HMMA.16816.F32.BF16 R0, R4, R8, R0 ;" for i in range(24)
    )
    counts = executed(MACHINE_CODE.format(body=body), trips=(7,))
    assert (counts["HMMA.16816.F32.BF16"], counts["LDG.E.128"]) == (7 * 24, 1)
    assert mma_flops(counts, warps=4) == 4 * 7 * 24 * 2 * 16 * 8 * 16
    with pytest.raises(ValueError, match="1 loops in the machine code, 2 expected"):
        executed(MACHINE_CODE.format(body=body), trips=(7, 7))


TENSOR_MEMORY_CODE = """
        /*0000*/                   UMOV UR9, 0x8200490 ;
        /*0010*/                   UTCHMMA gdesc[UR6], gdesc[UR18], tmem[UR33], tmem[UR8], idesc[UR9], !UPT ;
.L_x_0:
{body}
        /*0200*/                   UMOV UR9, 0x4040490 ;
        /*0210*/                   UTCHMMA tmem[UR6], gdesc[UR18], tmem[UR33], tmem[UR8], idesc[UR9], UPT ;
        /*0220*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0230*/                   BRA.U !UP0, `(.L_x_0) ;
        /*0240*/                   UTCHMMA tmem[UR6], gdesc[UR18], tmem[UR33], tmem[UR8], idesc[UR9], UPT ;
        /*0250*/                   EXIT ;
{body}
.L_x_1:
        /*0400*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR9], R2 ;
        /*0410*/              @!P0 BRA `(.L_x_1) ;
        /*0420*/                   BRA `(.L_x_2) ;
"""


def test_products_in_tensor_memory_are_counted_by_their_descriptors():
    """M 128 x N 128, then M 64 x N 16, 16 deep, once for a program whatever its warps. What stands before the loop was
    brought forward out of it; the jump back from behind EXIT, over 20 instructions, is a wait and no loop."""
    body = "\n".join(f"        /*{16 * i:04x}*/                   FADD R0, R4, R8 ;" for i in range(24))
    counts = executed(TENSOR_MEMORY_CODE.format(body=body), trips=(9,))
    assert counts["UTCHMMA.M128N128"] == 0
    assert counts["UTCHMMA.M64N16"] == 9 + 1
    assert counts["FADD"] == 9 * 24 + 24
    assert mma_flops(counts, warps=4) == mma_flops(counts, warps=8) == 10 * 2 * 64 * 16 * 16
    once = executed(TENSOR_MEMORY_CODE.format(body=body))
    assert mma_flops(once, warps=4) == 2 * 16 * (128 * 128 + 2 * 64 * 16)


def test_widths_and_occupancy():
    assert [access_bytes(opcode) for opcode in ("LDG.E.U8", "STG.E.U16", "LDG.E", "LDG.E.64", "LDGSTS.E.128")] == [
        1,
        2,
        4,
        8,
        16,
    ]
    assert programs_per_sm(255, 0, 8, 80) == 1  # 256 x 32 x 8 registers are all there are
    assert programs_per_sm(32, 100 << 10, 4, 80) == 1  # shared memory: 164 KiB on an A100
    assert programs_per_sm(16, 0, 8, 120) == 6  # warps: 48 on sm_120


def test_triton_is_the_one_of_the_budget():
    """constraints.txt pins torch, and torch its Triton; the skips of test_kernel_budget.py are for other set-ups."""
    from deit_fast.kernels.budget import read_budget

    assert read_budget()["triton"] == triton.__version__
