"""A tuned file: taken over where the user left the choice open, refused where it was made for something else."""

import subprocess
from dataclasses import replace

import pytest
import torch
import yaml
from test_distributed import TORCHRUN

from deit_fast.cli import main
from deit_fast.config import Config, DistillConfig, RuntimeConfig
from deit_fast.config_file import add_config_arguments, config_as_dict, config_parser, parse_config
from deit_fast.tuned import (
    TUNABLE_KEYS,
    TunedFileError,
    apply_tuned,
    conditions,
    describe_tuned,
    is_left_to_us,
    tuned_path,
    with_values,
)

CPU = torch.device("cpu")
CHOSEN = {
    "runtime.precision": "fp32",
    "runtime.compile": True,
    "runtime.teacher_layout": "contiguous",
    "data.prefetch": 4,
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Config()


def write(path, config, chosen=CHOSEN, **changed):
    path.parent.mkdir(parents=True, exist_ok=True)
    valid_for = conditions(config, CPU) | changed
    path.write_text(yaml.safe_dump({"valid_for": valid_for, "chosen": chosen}, sort_keys=False))
    return path


def test_every_tunable_key_is_left_to_us_by_default():
    assert [key for key in TUNABLE_KEYS if not is_left_to_us(Config(), key)] == []


def test_the_file_of_the_cache_is_taken_over(config):
    path = write(tuned_path(config, CPU), config)
    tuned = apply_tuned(config, CPU)
    assert tuned == with_values(config, CHOSEN)
    assert (tuned.runtime.precision, tuned.data.prefetch) == ("fp32", 4)
    assert f"runtime.compile true, runtime.teacher_layout contiguous, data.prefetch 4 ({path})" in describe_tuned(
        tuned, CPU
    )
    assert apply_tuned(tuned, CPU) == tuned


def test_what_the_user_set_stays(config):
    write(tuned_path(config, CPU), config)
    mine = with_values(config, {"runtime.precision": "bf16", "runtime.compile": False})
    tuned = apply_tuned(mine, CPU)
    assert (tuned.runtime.precision, tuned.runtime.compile) == ("bf16", False)
    assert tuned.runtime.teacher_layout == "contiguous"
    assert "; set otherwise: runtime.precision, runtime.compile (" in describe_tuned(tuned, CPU)
    none = with_values(config, {"runtime.tuned": "none"})
    assert apply_tuned(none, CPU) == none


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "NVIDIA V100"), ("torch", "1.0"), ("DALI", "1.0"), ("model.name", "deit_huge"), ("cuda", "11.8")],
)
def test_a_file_for_something_else_is_refused(config, tmp_path, name, value):
    """Named: an error. In the cache: one line that says so, and the run goes on without."""
    write(tuned_path(config, CPU), config, **{name: value})
    assert apply_tuned(config, CPU) == config
    line = describe_tuned(config, CPU)
    assert line.startswith("tuned: no: ")
    assert f"was made for {name} {value}, here it is {conditions(config, CPU)[name]}; tune again" in line
    named = replace(config, runtime=RuntimeConfig(tuned=str(write(tmp_path / "mine.yaml", config, **{name: value}))))
    with pytest.raises(TunedFileError, match=f"made for {name} {value}"):
        apply_tuned(named, CPU)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist"),
        ("[1, 2", "cannot be read"),
        ("chosen: 3", "is not a tuned file"),
        ("[3]", "is not a tuned file"),
        ("{valid_for: {}, chosen: {optim.lr: 1}}", "chooses optim.lr, which cannot be tuned"),
        ("{valid_for: {}, chosen: {runtime.precision: fp8}}", "chooses fp8 for runtime.precision, which it cannot be"),
        ("{valid_for: {}, chosen: {data.prefetch: true}}", "chooses true for data.prefetch, which it cannot be"),
    ],
)
def test_a_file_that_is_none_is_named(config, tmp_path, content, told):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    named = replace(config, runtime=RuntimeConfig(tuned=str(path)))
    with pytest.raises(TunedFileError, match=rf"runtime.tuned {path} {told}.*deit-fast tune"):
        apply_tuned(named, CPU)


def test_without_a_file_the_line_says_where_it_would_lie(config):
    assert apply_tuned(config, CPU) == config
    assert str(tuned_path(config, CPU)) in describe_tuned(config, CPU)


def test_labels_of_a_cache_are_not_read_in_another_arithmetic(config):
    """Precision and teacher are part of the cache's fingerprint: tuning must not make it another run's."""
    config = replace(config, distill=DistillConfig(kind="hard", label_cache="labels"))
    write(tuned_path(config, CPU), config)
    tuned = apply_tuned(config, CPU)
    assert (tuned.runtime.precision, tuned.runtime.teacher_layout) == ("auto", "auto")
    assert (tuned.runtime.compile, tuned.data.prefetch) == (True, 4)
    assert "; not taken over: runtime.precision, runtime.teacher_layout (" in describe_tuned(tuned, CPU)


def test_threads_are_not_more_than_this_process_share(config, monkeypatch):
    write(tuned_path(config, CPU), config, {"data.num_threads": 2})
    monkeypatch.setattr("deit_fast.tuned.CORES_AT_START", 8)
    assert apply_tuned(config, CPU).data.num_threads == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert apply_tuned(config, CPU).data.num_threads is None


def test_graphs_are_not_replayed_when_nothing_is_compiled(config):
    write(tuned_path(config, CPU), config, {"runtime.compile": True, "runtime.cuda_graphs": True})
    assert apply_tuned(config, CPU).runtime.cuda_graphs is True
    mine = with_values(config, {"runtime.compile": False})
    assert apply_tuned(mine, CPU).runtime.cuda_graphs is None


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("verb", ["train", "profile", "bench loader", "bench step", "bench train"])
def test_a_verb_that_runs_takes_it_over(verb, tmp_path, capsys):
    """By its command line: a file that was named and is not valid ends it before anything is built."""
    recipe = ["--config", "demo_student", "--runtime.device", "cpu"]
    stale = str(write(tmp_path / "stale.yaml", Config(), torch="1.0"))
    assert main([*verb.split(), *recipe, "--runtime.tuned", stale]) == 2
    assert "was made for torch 1.0" in capsys.readouterr().err


TWO_NODES = """
import os, sys
from pathlib import Path
from deit_fast.config import Config
from deit_fast.distributed import process_group
from deit_fast.tuned import apply_first_ranks_tuned, with_values
os.environ["XDG_CACHE_HOME"] = f"{sys.argv[1]}/node{os.environ['RANK']}"
with process_group("cpu") as ranks:
    tuned = apply_first_ranks_tuned(Config(), ranks)
    named = with_values(Config(), {"runtime.tuned": f"{sys.argv[1]}/only_there{ranks.rank}.yaml"})
    try:
        apply_first_ranks_tuned(named, ranks)
    except ValueError as error:
        told = error
    Path(sys.argv[1], f"{ranks.rank}.txt").write_text(f"{tuned}{told}")
"""


def test_nodes_that_were_tuned_differently_train_alike(tmp_path, monkeypatch):
    """The first rank's file counts, and so does its error."""
    config = Config()
    for node, precision in enumerate(("fp32", "bf16")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"node{node}"))
        write(tuned_path(config, CPU), config, {"runtime.precision": precision})
    write(tmp_path / "only_there1.yaml", config)
    (tmp_path / "two_nodes.py").write_text(TWO_NODES)
    command = [*TORCHRUN, str(tmp_path / "two_nodes.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, other = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == other
    assert "precision='fp32'" in first
    assert "only_there0.yaml does not exist" in first


def test_the_resolved_configuration_reads_again(config, tmp_path):
    tuned = with_values(config, {**CHOSEN, "runtime.tuned": "none"})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_as_dict(tuned)))
    parser = config_parser("test", "")
    add_config_arguments(parser)
    assert parse_config(parser, ["--config", str(path)])[0] == tuned
    path.write_text(yaml.safe_dump(config_as_dict(config)))
    assert parse_config(parser, ["--config", str(path)])[0] == config
