"""Labels computed beforehand: the same run as with the teacher, refused for any other, damage named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import ALONE, assert_same, config, saved

from deit_fast.cli import main
from deit_fast.config import Config, DataConfig
from deit_fast.fingerprint import fingerprint
from deit_fast.label_cache import EpochLabels, shard_path, spread
from deit_fast.open_images import open_images
from deit_fast.teacher_cache import compare_caches, parse_epochs, write_label_cache
from deit_fast.trainer import Trainer


@pytest.fixture(scope="module")
def cache(few_digits, teacher_checkpoint, tmp_path_factory):
    """Two epochs of hard labels, by the command line, in two calls as on two machines."""
    folder = tmp_path_factory.mktemp("cache") / "labels"
    run = config(few_digits, "unused", teacher=teacher_checkpoint)
    assert write_label_cache(run, ALONE, folder, range(1, 2), 0, str) == 1
    assert write_label_cache(run, ALONE, folder, range(2), 0, str) == 1  # the other one is there
    return folder


@pytest.fixture
def run(few_digits, tmp_path, teacher_checkpoint):
    return lambda folder, *arguments: config(few_digits, tmp_path / folder, *arguments, teacher=teacher_checkpoint)


def test_a_run_with_cached_labels_is_the_run_with_the_teacher(run, cache):
    live = Trainer(run("live"), ALONE).fit()
    trainer = Trainer(run("cached", "--distill.label_cache", str(cache)), ALONE)
    assert_same(saved(live), saved(trainer.fit()))


def test_two_bytes_a_view(cache):
    assert shard_path(cache, 0).stat().st_size < 96 * 2 + 4096


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--runtime.seed", "1"), "runtime.seed was 0, here it is 1"),
        (("--mix.group_size", "32"), "mix.group_size was 16"),
        (("--mix.mixup_alpha", "0.4"), "mix.mixup_alpha was 0.8"),
        (("--augment.rand_augment", "rand-m9-mstd0.5-inc1"), "augment.rand_augment was rand-m5"),
        (("--runtime.precision", "fp32"), "precision was bf16"),
        (("--runtime.batch_size_per_device", "16"), "global batch was 32, here it is 16"),
        (("--runtime.teacher_fold", "false"), "runtime.teacher_fold was True"),
        (("--runtime.kernels", "batch_prep"), "batch preparation was reference, here it is triton"),
        (("--schedule.epochs", "3"), r"no epoch_0002.safetensors; `deit-fast teacher-cache`"),
    ],
)
def test_labels_of_another_run_are_refused(run, cache, changed, named):
    arguments = changed if "precision" in named else ("--runtime.precision", "bf16", *changed)
    if not torch.cpu.get_capabilities().get("avx512_bf16") and "precision" in named:
        pytest.skip("without bf16 in hardware the cache was made in fp32 too")
    with pytest.raises(ValueError, match=named) as error:
        Trainer(run("other", "--distill.label_cache", str(cache), *arguments), ALONE)
    assert "\n" not in str(error.value)


def test_the_share_of_a_gpus_own_decoder_is_part_of_a_cache(few_digits):
    """Its pixels are others than those of the cores; on a CPU, and where the CPU decodes, the key says nothing."""
    images = open_images(DataConfig(path=str(few_digits)), "train")

    def share(device, **data):
        values = fingerprint(Config(data=DataConfig(**data)), images, 32, "bf16", device).values
        return values["data.hardware_decoder_share"]

    assert (share("cuda"), share("cuda", hardware_decoder_share=0.0)) == (0.9, 0.0)
    assert share("cpu") is share("cuda", decoder="cpu", hardware_decoder_share=0.0) is None


def test_other_teacher_weights_and_other_files_are_refused(few_digits, tmp_path, cache, teacher_checkpoint):
    weights = torch.load(teacher_checkpoint)
    weights["fc.bias"][0] += 1
    torch.save(weights, tmp_path / "other.pth")
    other = config(few_digits, tmp_path / "run", "--distill.label_cache", str(cache), teacher=tmp_path / "other.pth")
    with pytest.raises(ValueError, match="teacher weights was"):
        Trainer(other, ALONE)
    shutil.copytree(few_digits, tmp_path / "digits")
    next((tmp_path / "digits" / "train" / "3").iterdir()).unlink()
    fewer = config(
        tmp_path / "digits", tmp_path / "run", "--distill.label_cache", str(cache), teacher=teacher_checkpoint
    )
    with pytest.raises(ValueError, match="data was"):
        Trainer(fewer, ALONE)


def test_the_start_reads_the_heads_only(run, cache, monkeypatch):
    """Soft labels of 300 epochs of ImageNet are 25 GB, which every rank would read."""
    read = []
    monkeypatch.setattr("deit_fast.label_cache.read_shard", lambda path, _fingerprint: read.append(path))
    Trainer(run("run", "--distill.label_cache", str(cache)), ALONE)
    assert read == []


def test_a_damaged_file_is_named(run, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "damaged")
    path = shard_path(tmp_path / "damaged", 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"epoch_0001.safetensors cannot be read"):
        Trainer(run("run", "--distill.label_cache", str(tmp_path / "damaged")), ALONE)


def test_bad_files_are_those_of_the_cache(few_digits, tmp_path, teacher_checkpoint):
    """A file that was bad when the labels were made is replaced from the start; the runs stay the same."""
    data = tmp_path / "digits"
    shutil.copytree(few_digits, data)
    broken = sorted((data / "train" / "3").iterdir())[2]
    broken.write_bytes(b"not an image")
    arguments = ("--data.max_bad_fraction", "0.05", "--schedule.epochs", "1")
    make = lambda folder, *more: config(data, tmp_path / folder, *arguments, *more, teacher=teacher_checkpoint)  # noqa: E731
    write_label_cache(make("unused"), ALONE, tmp_path / "labels", range(1), 0, str)
    live = Trainer(make("live"), ALONE).fit()
    trainer = Trainer(make("cached", "--distill.label_cache", str(tmp_path / "labels")), ALONE)
    assert len(trainer.train_loader.substitutes.bad) == 1
    assert_same(saved(live)["model"], saved(trainer.fit())["model"])
    shown = trainer.train_loader.images_of(0)
    other = Path(trainer.train_loader.images.path(int(shown[0])))  # goes bad afterwards, with as many bytes
    other.write_bytes(b"x" * other.stat().st_size)
    trainer = Trainer(make("later", "--distill.label_cache", str(tmp_path / "labels")), ALONE)
    with pytest.raises(ValueError, match=f"{other.name} cannot be read"):
        trainer.fit()


def test_soft_labels_give_the_largest_probabilities_back(run, tmp_path):
    soft = run("soft", "--distill.kind", "soft", "--distill.temperature", "3", "--schedule.epochs", "1")
    write_label_cache(soft, ALONE, tmp_path / "all", range(1), 10, str)
    live = Trainer(soft, ALONE).fit()
    cached = run(
        "cached", "--distill.kind", "soft", "--distill.temperature", "3", "--schedule.epochs", "1",
        "--distill.label_cache", str(tmp_path / "all"),
    )  # fmt: skip
    outcome = Trainer(cached, ALONE).fit()
    for name, value in saved(live)["model"].items():  # all ten classes, rounded to float16
        assert torch.allclose(value, saved(outcome)["model"][name], atol=2e-4), name


def test_what_the_largest_leave_is_shared_by_the_others():
    logits = torch.randn(4, 50)
    log_probs = logits.log_softmax(1)
    best = log_probs.topk(8, dim=1)
    whole = spread(best.indices, best.values, 50)
    assert torch.allclose(whole.exp().sum(1), torch.ones(4), atol=1e-5)
    assert torch.equal(whole.gather(1, best.indices), best.values)
    assert len(whole[0].unique()) == 9


def test_the_share_of_labels_that_differ_is_counted(tmp_path, few_digits, teacher_checkpoint, cache):
    """Another geometry is other pixels: what the command reports is what one counts by hand."""
    bilinear = config(few_digits, "unused", "--augment.geometry", "bilinear", teacher=teacher_checkpoint)
    write_label_cache(bilinear, ALONE, tmp_path / "bilinear", range(1), 0, str)
    counted = compare_caches(cache, tmp_path / "bilinear")
    assert counted["views"] == 96
    result = tmp_path / "result.json"
    command = ("teacher-cache", "--out", cache, "--compare", tmp_path / "bilinear", "--json", result)
    assert main([str(part) for part in command]) == 0
    assert json.loads(result.read_text()) == counted
    labels = EpochLabels.empty("hard", 96, 0)
    labels.tensors["labels"][:] = 1 << 15
    assert labels.tensors["labels"].to(torch.uint16)[0].item() == 1 << 15  # ImageNet-21k's classes fit
    assert compare_caches(cache, cache)["differing"] == 0


@pytest.mark.parametrize("text", ["5:3", "x", "0:0", "7", "-1:2"])
def test_epochs_out_of_range_are_refused(text):
    with pytest.raises(ValueError, match="--epochs"):
        parse_epochs(text, 5)
    assert list(parse_epochs("1:3", 5)) == [1, 2]
    assert list(parse_epochs(":", 2)) == [0, 1]
    assert list(parse_epochs("4", 5)) == [4]
