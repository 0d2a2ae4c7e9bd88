"""`bench compare`: what is noise and what is not, and what else differs between two runs."""

import copy
import json

import numpy as np
import pytest

from deit_fast.benchmarks import compare
from deit_fast.benchmarks.compare import FEWEST_TURNS, differing_facts, ratio_interval
from deit_fast.benchmarks.timing import Timing
from deit_fast.cli import main


def noisy(speed, turns, generator, noise=0.05):
    return (speed * (1 + noise * generator.standard_normal(turns))).tolist()


def record(speed, seed=0, turns=FEWEST_TURNS, **environment):
    generator = np.random.default_rng(seed)
    speeds = noisy(speed, turns, generator, noise=0.01)
    timing = Timing([100] * turns, [100 / s for s in speeds], [200 / s for s in speeds])
    rows = [{"workload": "full recipe", "name": "deit_fast", **timing.row()}]
    config = {"runtime": {"compile": False, "seed": 0}, "data": {"backend": "native"}}
    machine = {"cpu": "Xeon", "packages": {"torch": "2.14.1"}, "load_average_1_min": float(seed), **environment}
    return {
        "schema": 1, "bench": "loader", "time": "2026-11-25T03:00:00+00:00", "title": f"loader {seed}", "rows": rows,
        "verdict": None, "config": config, "environment": machine,
    }  # fmt: skip


def written(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.mark.parametrize("turns", [5, 10])
def test_equal_runs_are_rarely_called_different(turns, monkeypatch):
    """At a true rate of 5 %, 400 pairs give 37 alarms or more once in 1,000 times (binomial)."""
    monkeypatch.setattr(compare, "RESAMPLES", 1000)
    generator = np.random.default_rng(turns)
    alarms = 0
    for pair in range(400):
        interval = ratio_interval(noisy(100, turns, generator), noisy(100, turns, generator), seed=pair)
        alarms += interval.beyond_noise
    assert 0 < alarms < 37


def test_a_real_difference_is_found_and_too_few_turns_say_nothing():
    generator = np.random.default_rng(0)
    slow, fast = noisy(100, 5, generator, 0.01), noisy(110, 5, generator, 0.01)
    interval = ratio_interval(slow, fast)
    assert interval.beyond_noise
    assert interval.low < 1.10 < interval.high
    assert not ratio_interval(slow[:3], fast[:3]).beyond_noise


def test_two_files_side_by_side(tmp_path, capsys):
    before, after = record(100), record(125, seed=1, cpu="EPYC")
    after["config"]["runtime"]["compile"] = True
    after["rows"].append({**copy.deepcopy(after["rows"][0]), "name": "timm"})
    # an older record of the same bench does not count
    a, b = written(tmp_path / "a.jsonl", record(1), before), written(tmp_path / "b.jsonl", after)
    assert main(["bench", "compare", a, b, "--json", str(tmp_path / "out.json")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "faster, less CPU" in text
    assert "config: runtime.compile: False -> True" in text
    assert "environment: cpu: Xeon -> EPYC" in text
    assert "load_average" not in text
    assert "only in B: full recipe, timm" in text
    (result,) = json.loads((tmp_path / "out.json").read_text())
    (row,) = result["rows"]
    assert row["speed"]["ratio"] == pytest.approx(1.25, rel=0.03)
    assert row["speed"]["beyond_noise"]
    assert row["cpu"]["ratio"] == pytest.approx(0.8, rel=0.03)

    assert main(["bench", "compare", a, a]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "faster" not in text
    assert "config:" not in text


def test_records_without_turns_are_passed_over(tmp_path, capsys):
    """`bench parity` times nothing, and its rows have no workload; what was timed before it is compared."""
    parity = record(100) | {"bench": "parity", "rows": [{"backend": "graph", "operation": "Rotate", "exact": 0.9}]}
    resources = record(100) | {"rows": []}
    a = written(tmp_path / "a.jsonl", record(100), parity, resources)
    assert main(["bench", "compare", a, a]) == 0
    assert "full recipe" in capsys.readouterr().out
    only = written(tmp_path / "only.jsonl", parity)
    assert main(["bench", "compare", only, only]) == 2
    assert "no timed record of the same bench" in capsys.readouterr().err


def test_nested_keys_that_one_side_lacks_differ():
    one, other = record(100), record(100, gpu={"driver_version": "610.1"})
    assert differing_facts(one, other, "environment") == [("gpu.driver_version", None, "610.1")]


def test_what_cannot_be_compared_is_named(tmp_path, capsys):
    good = written(tmp_path / "good.jsonl", record(100))
    other = written(tmp_path / "other.jsonl", record(100) | {"bench": "step"})
    (tmp_path / "broken.jsonl").write_text('{"bench": "loader"}\n')
    for second, message in (
        (other, "no timed record of the same bench"),
        (str(tmp_path / "missing.jsonl"), "missing.jsonl is not there"),
        (str(tmp_path / "broken.jsonl"), "broken.jsonl line 1 is no record"),
    ):
        assert main(["bench", "compare", good, second]) == 2
        assert message in capsys.readouterr().err
