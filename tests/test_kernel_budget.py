"""Compiled ahead for GPUs that are not here: no kernel takes more registers, memory or instructions than its budget."""

from dataclasses import replace
from pathlib import Path

import pytest
import triton

from deit_fast.benchmarks.kernel_resources import budget_markdown
from deit_fast.kernels.attention import triton as attention
from deit_fast.kernels.budget import ARCHITECTURES, measure, read_budget, source_hash, worse
from deit_fast.kernels.cases import all_cases

CASES = {case.name: case for case in all_cases()}
FEW = ("attention_forward/198/bf16", "attention_backward/198/bf16", "distill_loss_forward/hard", "batch_prep/uint8",
       "add_norm_backward", "gelu_bias_backward")  # fmt: skip
BUDGET = read_budget()
this_triton = pytest.mark.skipif(
    triton.__version__ != BUDGET["triton"],
    reason=f"the budget holds for Triton {BUDGET['triton']}; another version compiles to other code",
)


def check(name, architecture):
    row = measure(CASES[name], architecture)
    assert worse(row, BUDGET["rows"][f"sm_{architecture}"][name]) == [], row


@this_triton
@pytest.mark.parametrize("name", FEW)
def test_within_budget_on_an_a100(name):
    check(name, 80)


@this_triton
@pytest.mark.parametrize("name", CASES)
def test_what_changed_is_within_budget(name):
    """A row holds as long as the source is the one it was read from; the others are compiled."""
    for architecture in ARCHITECTURES:
        if source_hash(CASES[name], architecture) != BUDGET["rows"][f"sm_{architecture}"][name]["source"]:
            check(name, architecture)


@this_triton
def test_a_change_of_source_or_launch_is_seen(monkeypatch):
    case = CASES["attention_backward/198/bf16"]
    kept = source_hash(case, 80)
    assert kept != source_hash(case, 90)
    with monkeypatch.context() as changed:
        changed.setattr(attention, "_backward_short_tiles", lambda _qkv: attention.Tiles(64, 8, 1))
        assert source_hash(case, 80) != kept
    with monkeypatch.context() as changed:
        changed.setattr(case.launch(80).kernel, "hash", "another source")
        assert source_hash(case, 80) != kept
    assert source_hash(case, 80) == kept


@pytest.mark.slow
@this_triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_within_budget(name, architecture):
    check(name, architecture)


def test_the_budget_is_what_was_promised():
    """No spills, bulk loads and stores of 8 bytes or more, room on a multiprocessor; all cases on all architectures."""
    assert set(BUDGET["rows"]) == {f"sm_{architecture}" for architecture in ARCHITECTURES}
    for rows in BUDGET["rows"].values():
        assert set(rows) == set(CASES)
        for name, row in rows.items():
            assert row["stack_bytes"] == row["spill_instructions"] == 0, name
            assert row["programs_per_sm"] >= 1, name
            assert min(row["load_bytes"], row["store_bytes"]) >= 8, name


def test_products_are_counted_on_every_architecture():
    """Those of 16-bit attention, within the padding of the tiles; sm_90 and sm_100 have other instructions, whose
    counts agree where the tiles are the same (the short backward's are not)."""
    for name in CASES:
        found = {architecture: rows[name].get("mma_over_ideal") for architecture, rows in BUDGET["rows"].items()}
        if not name.startswith("attention") or name.endswith("fp32"):
            assert set(found.values()) == {None}, name
            continue
        limit = 1.4 * 1.17 if name.startswith("attention_backward") and "/198/" not in name else 1.37
        assert all(1 < ratio < limit for ratio in found.values()), (name, found)
        if not name.startswith("attention_backward/198"):
            assert found["sm_100"] == found["sm_90"], name


def test_padding_at_198_tokens():
    """Rows times keys that are multiplied, over 198^2, from the tiles the launchers choose."""
    keys = sum(attention.chunks_of(198)[0])
    for architecture in ARCHITECTURES:
        forward, backward = (CASES[f"attention_{way}/198/bf16"].launch(architecture) for way in ("forward", "backward"))
        queries = forward.grid[0] // (256 * 12) * forward.constants["M"]
        assert queries * keys / 198**2 <= 1.36
        M = backward.constants["M"]
        assert -(-198 // M) * M * keys / 198**2 <= 1.20


def test_bytes_that_were_promised():
    """By these bandwidths are counted; tests/interpreted/test_traffic.py counts what the kernels move."""
    u = 2 * 256 * 198 * 768
    assert CASES["attention_forward/198/bf16"].bytes == 4 * u
    assert CASES["attention_backward/198/bf16"].bytes == 8 * u
    assert (CASES["add_norm_forward"].bytes, CASES["add_norm_backward"].bytes) == (6 * u, 8 * u)
    assert CASES["batch_prep/bf16"].bytes == 6 * 256 * 224 * 224 * 3


def test_the_documented_table_is_the_budget():
    text = (Path(__file__).parents[1] / "docs" / "kernels.md").read_text()
    assert budget_markdown() in text


@this_triton
def test_a_kernel_that_spills_is_found(monkeypatch):
    """64 rows of queries at once do not fit beside dk and dv: the row has to be called worse."""
    case = CASES["attention_backward/198/bf16"]
    monkeypatch.setattr(attention, "_backward_short_tiles", lambda _qkv: attention.Tiles(64, 8, 1))
    row = measure(replace(case, trips=lambda _launch: ()), 80)
    found = worse(row, BUDGET["rows"]["sm_80"][case.name])
    assert any(what.startswith(("stack_bytes", "spill_instructions")) for what in found), row


def test_worse_in_words():
    budget = dict.fromkeys(("registers", "programs_per_sm", "load_bytes", "store_bytes"), 8)
    assert worse(budget, budget) == []
    assert worse(budget | {"registers": 9, "load_bytes": 2}, budget) == ["registers 9 > 8", "load_bytes 2 < 8"]
