"""The small reproduction: its data, its statistics, what it keeps, and the whole of it on few images."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from deit_fast.benchmarks.accuracy import experiment
from deit_fast.benchmarks.accuracy.experiment import Run, finished_run, nearest_epoch, train_on_cores
from deit_fast.benchmarks.accuracy.fashion_mnist import DEBIAN, balanced, read_idx, write_fashion_mnist
from deit_fast.benchmarks.accuracy.intervals import T_975, Interval, difference, interval, verdict
from deit_fast.benchmarks.accuracy.show import accuracy_plot, accuracy_table
from deit_fast.benchmarks.accuracy.variants import (
    CONVNET,
    HARD_VIT,
    NONE,
    SOFT,
    VARIANTS,
    VIT,
    Plan,
    student_config,
    teacher_config,
)
from deit_fast.cli import main
from deit_fast.config_rules import check_config
from deit_fast.distributed import Ranks
from deit_fast.page.plots import write_svg

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
SMALL = Plan(images=100, val_images=40, epochs=1, teacher_epochs=1, vit_teacher_epochs=1, seeds=2)
ROW = {"name": "hard, ConvNet", "teacher_top1": 90.0, "seed_top1": [86.0, 87.0, 88.0]}
CLAIM = {"claim": "hard is better", "difference": 1.0, "low": 0.25, "high": 1.75, "holds": "yes"}
RECORD = {"title": "small", "rows": [ROW, {**ROW, "name": "none", "teacher_top1": None}], "claims": [CLAIM]}


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def clothes(tmp_path):
    """4 + 2 images of each of 10 classes, in the files of Fashion-MNIST."""
    generator = np.random.default_rng(0)
    for stem, each in (("train", 4), ("t10k", 2)):
        labels = generator.permutation(np.repeat(np.arange(10, dtype=np.uint8), each))
        images = np.broadcast_to(20 * labels[:, None, None], (10 * each, 28, 28)).astype(np.uint8)
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def test_idx_files_become_a_folder_of_jpegs(clothes):
    root = write_fashion_mnist(clothes / "jpegs", {"train": 30, "val": 20}, clothes)
    for split, each in (("train", 3), ("val", 2)):
        folders = sorted((root / split).iterdir())
        assert [len(list(folder.iterdir())) for folder in folders] == [each] * 10
        for label, folder in enumerate(folders):
            pixels = np.asarray(Image.open(next(folder.iterdir())))
            assert pixels.shape == (32, 32, 3)
            assert abs(int(pixels[16, 16, 0]) - 20 * label) <= 3
            assert pixels[0, 0].max() <= 3  # the margin
    assert not (clothes / "jpegs.partial").exists()


def test_broken_idx_files_are_named(clothes):
    path = clothes / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="train-labels-idx1"):
        read_idx(path)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(ValueError, match="no whole IDX file"):
        read_idx(path)
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        read_idx(clothes / "missing.gz")
    with pytest.raises(ValueError, match="not to be had evenly"):
        balanced(np.array([0, 0, 1]), 4)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Fashion-MNIST: apt-get install dataset-fashion-mnist")
def test_debians_files_are_those_of_the_authors():
    """60,000 + 10,000 images of 10 classes of the same size, as the paper says; the first is an ankle boot."""
    labels = read_idx(DEBIAN / "train-labels-idx1-ubyte.gz")
    assert np.bincount(labels).tolist() == [6000] * 10
    assert labels[0] == 9
    assert read_idx(DEBIAN / "t10k-images-idx3-ubyte.gz").shape == (10000, 28, 28)


def test_intervals_are_students():
    assert pytest.approx(stats.t.ppf(0.975, np.arange(1, len(T_975) + 1)), abs=6e-4) == T_975
    values = [86.1, 86.9, 85.7, 86.4]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((np.mean(values), theirs.low, theirs.high), abs=1e-3)
    paired = stats.ttest_rel([88, 87, 89], [86, 86, 86]).confidence_interval(0.95)
    assert difference([88, 87, 89], [86, 86, 86])[1:] == pytest.approx((paired.low, paired.high), abs=1e-3)
    assert interval([86.0]) == (86.0, None, None)
    assert [verdict(Interval(0, *ends)) for ends in ((0.1, 2), (-2, -0.1), (-1, 1), (None, None))] == [
        "yes", "no, the reverse", "not told apart", "not known from one seed",
    ]  # fmt: skip


def test_variants_differ_in_what_they_claim_to(tmp_path):
    plan = Plan()
    configs = {v: student_config(v, plan, tmp_path, tmp_path / v.folder, 3, tmp_path / "t.pt") for v in VARIANTS}
    for config in configs.values():
        check_config(config)
        assert config.runtime.seed == 3
        assert config.augment == configs[NONE].augment
        assert config.optim == configs[NONE].optim
        assert config.schedule == configs[NONE].schedule
    assert configs[NONE].distill.kind == "none"
    assert configs[SOFT].distill.temperature == 3
    assert configs[HARD_VIT].distill.teacher == VIT
    assert len({config.checkpoint.dir for config in configs.values()}) == len(VARIANTS)
    assert teacher_config(CONVNET, plan, tmp_path, tmp_path).checkpoint.keep_last == plan.teacher_epochs


def test_a_finished_run_is_not_done_again_and_other_settings_are_refused(few_digits, tmp_path, monkeypatch):
    config = student_config(NONE, SMALL, few_digits, tmp_path / "run", 0, None)
    first = finished_run(Run(config, "first"), ALONE)
    assert first["step"] == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == first
    monkeypatch.setattr(experiment, "Trainer", None)  # would raise if it were built
    assert finished_run(Run(config, "again"), ALONE) == first
    with pytest.raises(ValueError, match=r"result.json was made with other settings: optim.lr .*--folder"):
        finished_run(Run(replace(config, optim=replace(config.optim, lr=1.0)), "other"), ALONE)
    with pytest.raises(ValueError, match=r"data.path"):
        finished_run(Run(replace(config, data=replace(config.data, path="/elsewhere")), "other"), ALONE)
    monkeypatch.setattr(experiment, "train_on_cores", None)  # would raise if it were called
    missing = Run(replace(config, checkpoint=replace(config.checkpoint, dir=str(tmp_path / "missing"))), "missing")
    with pytest.raises(ValueError, match=r"optim.lr"):
        experiment.finished_runs([missing, Run(replace(config, optim=replace(config.optim, lr=1.0)), "other")], ALONE)


def test_runs_share_the_cores_and_one_that_fails_is_told(few_digits, tmp_path, capfd):
    """Both are trained, each on a core of its own; this process has all its cores again."""
    good = Run(student_config(NONE, SMALL, few_digits, tmp_path / "good", 0, None), "good", keeps_weights=False)
    bad = Run(student_config(NONE, SMALL, tmp_path / "nowhere", tmp_path / "bad", 0, None), "bad")
    cores = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError, match="not all runs finished"):
        train_on_cores([bad, good] if len(cores) > 1 else [good, bad])
    assert os.sched_getaffinity(0) == cores
    assert good.result_file.is_file()
    assert not list(good.result_file.parent.glob("*.pt"))
    assert not bad.result_file.is_file()
    assert f"deit-fast: bad: data.path {tmp_path / 'nowhere'}" in capfd.readouterr().err


def test_the_early_convnet_is_the_nearest():
    rows = [{"epoch": i, "val": {"top1": {"average": top1}}} for i, top1 in enumerate((40.0, 71.0, 80.0, 84.0))]
    assert nearest_epoch(rows, 78.0)["epoch"] == 2


def test_tables_and_plot(tmp_path):
    text = accuracy_table(RECORD)
    assert "| hard, ConvNet | 90.00 % | 87.00 ± 2.48 % | 3 |" in text
    assert "| hard is better | +1.00 ± 0.75 % | yes |" in text
    write_svg(accuracy_plot(RECORD), tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("seed: ") == 6  # a dot for each seed


@pytest.mark.slow
def test_the_whole_experiment_on_few_images(few_digits, tmp_path, capsys):
    """Its smaller twins are the tests above; twice, since the second call has nothing left to train."""
    sizes = [f"--{name.replace('_', '-')}={getattr(SMALL, name)}" for name in SMALL.__dataclass_fields__]
    arguments = ["bench", "accuracy", *sizes, "--data", str(few_digits), "--folder", str(tmp_path / "runs")]
    arguments += ["--json", str(tmp_path / "rows.jsonl")]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert "What the paper claims" in capsys.readouterr().out
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first["rows"] == second["rows"]
    assert first["title"] == f"DeiT-mini at 32 px, {SMALL.epochs} epochs of 100 images of {few_digits.name}"
    assert [len(row["seed_top1"]) for row in first["rows"]] == [2] * 5
    assert first["rows"][4]["teacher_top1"] == first["teachers"]["ViT"]
    assert not list(Path(tmp_path / "runs").glob("*/seed_*/*.pt"))  # 25 students would fill a disk
    assert main(["bench", "report", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "report.html")]) == 0
    assert "What the recipe claims, in small" in (tmp_path / "report.html").read_text()
