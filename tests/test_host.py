"""What a run does about its host, and what it says before the first step and when memory is short."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deit_fast import apex
from deit_fast.bench_records import read_records
from deit_fast.config import Config, DistillConfig
from deit_fast.config_rules import check_config
from deit_fast.distributed import Ranks
from deit_fast.host import (
    LOADER_CPU_MS_PER_IMAGE,
    cores_wanted,
    host_warnings,
    numa_nodes,
    parse_cpu_list,
    share_of_cores,
)
from deit_fast.memory import is_out_of_memory
from deit_fast.model import create_student
from deit_fast.planning.command import FULL_RECIPE, OURS
from deit_fast.planning.costs import count_student
from deit_fast.planning.memory_plan import plan_memory
from deit_fast.planning.out_of_memory import advise_on, smaller_batches
from deit_fast.start_report import batch_warning, describe_batch, describe_loader
from deit_fast.utilisation import forward_flops, peak_of

EIGHT = Ranks(0, 8, 0, 8, torch.device("cpu"))


def test_cpu_lists_as_the_kernel_writes_them(tmp_path):
    assert parse_cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cpu_list("\n") == set()
    for node, cores in ((0, "0-1"), (1, "2-3")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cores)
    assert numa_nodes(tmp_path) == {0: {0, 1}, 1: {2, 3}}


def test_ranks_share_the_cores_of_their_devices_node():
    nodes = {0: set(range(8)), 1: set(range(8, 16))}
    of_ranks = [0, 0, 1, 1]
    shares = [share_of_cores(range(16), nodes, of_ranks, rank) for rank in range(4)]
    assert shares == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}]
    assert share_of_cores(range(4, 16), nodes, of_ranks, 1) == {6, 7}  # a container that may use some of them
    assert share_of_cores(range(4), {}, [None, None], 1) == {2, 3}  # a virtual machine that does not tell
    assert share_of_cores(range(2), {}, [None] * 4, 3) == {0, 1}  # fewer cores than ranks


def test_a_rank_that_is_bound_to_its_share_does_not_divide_it_again():
    """Bound for real, in a process of its own."""
    code = """
import os, torch
from deit_fast.distributed import Ranks
os.sched_setaffinity(0, SHARE)
print(Ranks(0, 2, 0, 2, torch.device("cpu")).cores)
"""
    cores = sorted(os.sched_getaffinity(0))
    share = set(cores[: max(1, len(cores) // 2)])
    done = subprocess.run([sys.executable, "-c", code.replace("SHARE", repr(share))], capture_output=True, text=True)
    assert done.stdout.split() == [str(len(share))], done.stderr


def test_limits_that_are_too_small_are_said():
    assert host_warnings(65536, Path("/")) == []
    (line,) = host_warnings(1024, Path("/"))
    assert "only 1024 files" in line
    assert "nofile" in line


def test_the_cores_wanted_are_those_of_the_kept_rows():
    (record,) = read_records(Path(__file__).parents[1] / "benchmarks/results/loader.jsonl")
    measured = {row["name"]: row["cpu_ms_per_image"] for row in record["rows"] if row["workload"] == FULL_RECIPE}
    assert pytest.approx(measured[f"{OURS} native"], rel=0.05) == LOADER_CPU_MS_PER_IMAGE
    assert cores_wanted(4700) * 8 == pytest.approx(37.6, abs=0.1)


def config(batch=128, accumulate=1, **optim):
    config = Config()
    runtime = replace(config.runtime, batch_size_per_device=batch, accumulate_steps=accumulate)
    return replace(config, runtime=runtime, optim=replace(config.optim, **optim))


def test_the_loaders_backend_is_said():
    native = describe_loader("native", Ranks(0, 1, 0, 2, torch.device("cpu")))
    assert native.startswith("loader: native backend; native operators: ")
    assert describe_loader("graph", Ranks(0, 1, 0, 2, torch.device("cuda", 0))) == "loader: graph backend, on the GPU"


def test_both_batches_and_the_rate_are_said():
    text = describe_batch(config(64, 2), EIGHT, 1024)
    assert "global batch 1,024 = 64 per device x 8 devices x 2 accumulated; peak learning rate 0.001" in text


def test_another_global_batch_than_the_recipes_is_warned_about():
    assert batch_warning(config(recipe_batch_size=1024), 1024) is None
    assert batch_warning(config(), 512) is None
    scaled = batch_warning(config(recipe_batch_size=1024), 512)
    assert "global batch is 512, the recipe's 1,024: the peak learning rate becomes 0.0005 instead of 0.001" in scaled
    unscaled = batch_warning(config(recipe_batch_size=2048, scale_lr=False, lr=3e-3), 512)
    assert "stays 0.003, which was tuned for 2,048" in unscaled


def of_gib(gib, monkeypatch):
    """A CUDA device with that much memory."""
    properties = SimpleNamespace(total_memory=gib << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    return torch.device("cuda", 0)


def test_out_of_memory_names_a_batch_that_would_fit(monkeypatch):
    """That of `deit-fast plan`, whose parts are tested there: the next larger one is predicted not to fit."""
    given = config(192, 1)  # DeiT-B distilled
    line = advise_on(given, 1000, "bf16", of_gib(8, monkeypatch))
    size, parts = (int(re.search(rf"{key} (\d+)", line)[1]) for key in ("--runtime.batch_size_per_device", "steps"))
    assert f"out of memory with runtime.batch_size_per_device 192; {size} is predicted to fit" in line
    assert size * parts == 192
    assert "\n" not in line
    student = count_student(given, 1000, "bf16")
    fits = [
        c.runtime.batch_size_per_device
        for c in smaller_batches(given)
        if plan_memory(c, student, None, 8 << 30, recompute=False).fits
    ]
    assert size == max(fits) < 96  # not simply half
    taught = replace(given, distill=DistillConfig(kind="hard", teacher="regnety_160", teacher_checkpoint="any"))
    with_teacher = advise_on(taught, 1000, "bf16", of_gib(8, monkeypatch))
    assert int(re.search(r"; (\d+) is predicted", with_teacher)[1]) < size
    assert "no smaller batch is predicted to fit: use --runtime.checkpoint_activations true, a smaller model" in (
        advise_on(given, 1000, "bf16", of_gib(1, monkeypatch))
    )


def test_batches_to_fall_back_on_keep_the_global_batch():
    sizes = [(c.runtime.batch_size_per_device, c.runtime.accumulate_steps) for c in smaller_batches(config(24, 2))]
    assert sizes == [(16, 3), (12, 4), (8, 6), (6, 8), (4, 12), (2, 24)]
    subset = replace(config(192), model=replace(Config().model, drop_path_mode="subset"))
    subset = replace(subset, mix=replace(subset.mix, group_size=32))
    assert [c.runtime.batch_size_per_device for c in smaller_batches(subset)] == [96, 64, 32]
    assert smaller_batches(config(2)) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Critical error in pipeline: Can't allocate 268435456 bytes on device 0."),
    ],
)
def test_want_of_memory_is_known_by_whoever_says_it(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_flops_are_those_counted_before():
    """RECIPE: 2.52 GFLOP for DeiT-Ti distilled at 224 px; the last block on two tokens takes away its share."""
    student = create_student(
        "deit_tiny_distilled_patch16_224", num_classes=1000, image_size_px=224, drop_path_rate=0, attention="sdpa"
    )
    assert 2.25e9 < forward_flops(student, 224) < 2.52e9


def test_the_longest_name_gives_the_peak():
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("Quadro T400") is None


def test_the_unrelated_apex_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert apex.find_apex() == "missing"
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise ImportError('pyramid')")  # as the package index's does
    assert apex.find_apex() == "unrelated"
    assert "not NVIDIA's" in apex.explain("unrelated")
    (tmp_path / "apex" / "optimizers").mkdir()
    (tmp_path / "apex" / "optimizers" / "fused_lamb.py").write_text("")
    assert apex.find_apex() == "without_kernels"
    (tmp_path / "amp_C.py").write_text("")
    assert apex.find_apex() == "nvidia"


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        ("loss", {"label": "bce"}, "mix.label_smoothing is 0.1"),
        ("runtime", {"accumulate_steps": 0}, "runtime.accumulate_steps"),
        ("runtime", {"cuda_graphs": True}, "runtime.compile is false"),
        ("distill", {"label_cache": "here"}, "distill.kind is none"),
        ("model", {"drop_path_mode": "subset", "name": "deit_base_patch16_224"}, "mix.group_size 128"),
    ],
)
def test_rules_name_both_keys(section, changes, named):
    base = replace(Config(), model=replace(Config().model, name="deit_base_patch16_224"))
    base = replace(base, runtime=replace(base.runtime, batch_size_per_device=192))
    changed = replace(base, **{section: replace(getattr(base, section), **changes)})
    check_config(base)
    with pytest.raises(ValueError, match=named):
        check_config(changed)
