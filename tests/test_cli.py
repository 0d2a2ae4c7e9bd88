"""The command line: what it answers to wrong use (one line, exit code 2, nothing written), and what the verbs print."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import timm
import torch

from deit_fast.benchmarks.command import VERBS
from deit_fast.cli import USAGE, main

MINI = "deit_mini_distilled_patch8_32"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def wrong_use(capsys, *arguments, code=2):
    """The one line on stderr of a refused command, which wrote nothing in its folder."""
    from pathlib import Path

    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert main([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("deit-fast: ")
    assert sorted(Path().rglob("*")) == before
    return printed.err


def train(data, *arguments):
    return ("train", "--config", "demo_student", "--data.path", data, *arguments)


def small(*arguments):
    return ("--runtime.batch_size_per_device", "32", "--mix.group_size", "16", "--schedule.epochs", "1", *arguments)


def test_no_verb_and_an_unknown_one(capsys):
    assert main([]) == 2
    assert "deit-fast VERB" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "deit-fast VERB" in capsys.readouterr().out
    (bench,) = re.findall(r"^  bench .*?(?=^  \w)", USAGE, re.DOTALL | re.MULTILINE)
    assert not [verb for verb in VERBS if not re.search(rf"\b{verb}\b(?!/s)", bench)]
    line = wrong_use(capsys, "fly")
    verbs = "demo, train, eval, bench, profile, tune, doctor, plan, data, teacher-cache, export"
    assert f"unknown verb fly; the verbs are {verbs}" in line


@pytest.mark.parametrize("verb", ["demo", "train", "eval", "teacher-cache", "plan"])
def test_help_shows_types_units_and_defaults(capsys, verb):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for piece in ("--data.path", "--runtime.device", "{auto,cpu,cuda}", "default:"):
        assert piece in text
    if verb == "train":
        assert "in pixels" in text
        assert "--model.image_size_px" in text


@pytest.mark.parametrize("verb", [("tune",), ("bench", "images"), ("bench", "accuracy")])
def test_what_takes_one_device_is_refused_under_torchrun(capsys, monkeypatch, verb):
    """Before anything is written: each rank would write it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert f"deit-fast {' '.join(verb)} takes one device; start it without torchrun" in wrong_use(capsys, *verb)


def test_data_that_is_not_there(capsys, tmp_path, few_digits):
    assert "data.path is not set" in wrong_use(capsys, "train", "--config", "deit_tiny")
    assert f"data.path {tmp_path}/none does not exist" in wrong_use(capsys, *train(tmp_path / "none"))
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "empty/train holds no class folders" in wrong_use(capsys, *train(tmp_path / "empty"))
    shutil.copytree(few_digits / "train", tmp_path / "half" / "train")
    assert "half/val does not exist" in wrong_use(capsys, *train(tmp_path / "half"))
    shutil.copytree(few_digits / "val", tmp_path / "half" / "val")
    shutil.rmtree(tmp_path / "half" / "val" / "7")
    assert "7" in wrong_use(capsys, *train(tmp_path / "half"))


def test_recipes_keys_and_types(capsys, few_digits):
    assert "deit_tiny" in wrong_use(capsys, "train", "--config", "deit_tinny", "--data.path", few_digits)
    assert "unknown key optim.lrr; did you mean optim.lr?" in wrong_use(capsys, *train(few_digits, "--optim.lrr", "1"))
    line = wrong_use(capsys, *train(few_digits, "--schedule.epochs", "many"))
    assert "schedule.epochs: expected a whole number, got many" in line
    assert "distill.kind" in wrong_use(capsys, *train(few_digits, "--distill.kind", "medium"))
    assert "mix.group_size 48" in wrong_use(capsys, *train(few_digits, "--mix.group_size", "48"))
    assert "unknown model.name vit_giantic" in wrong_use(
        capsys, *train(few_digits, *small("--model.name", "vit_giantic"))
    )
    assert "augment.rand_augment" in wrong_use(capsys, *train(few_digits, *small("--augment.rand_augment", "rand-x1")))


def test_a_batch_larger_than_the_data_set(capsys, few_digits):
    line = wrong_use(capsys, *train(few_digits, "--runtime.batch_size_per_device", "128"))
    assert "larger than the training set of 100 images" in line


def test_rules_across_keys(capsys, few_digits):
    line = wrong_use(capsys, *train(few_digits, *small("--distill.kind", "hard")))
    assert "distill.kind is hard, but model.name deit_mini_patch8_32 has no distillation token" in line
    line = wrong_use(capsys, *train(few_digits, *small("--model.name", MINI)))
    assert "nothing would train" in line
    assert "data.prefetch must be at least 1, got 0" in wrong_use(
        capsys, *train(few_digits, *small("--data.prefetch", 0))
    )


def test_teachers_that_do_not_fit_are_refused_before_training(capsys, tmp_path, few_digits):
    torch.save(timm.create_model("resnet10t", num_classes=12).state_dict(), tmp_path / "teacher.pth")
    distilled = ("train", "--config", "demo_student_distilled", "--data.path", few_digits, *small())
    teacher = ("--distill.teacher", "resnet10t", "--distill.teacher_checkpoint")
    line = wrong_use(capsys, *distilled, *teacher, tmp_path / "teacher.pth")
    assert "teacher.pth knows 12 classes, data.path has 10" in line
    assert "none.pth do not exist" in wrong_use(capsys, *distilled, *teacher, tmp_path / "none.pth")


def test_a_gpu_that_is_not_there(capsys, few_digits):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "torch finds no CUDA device here" in wrong_use(capsys, *train(few_digits, "--runtime.device", "cuda"))


def test_checkpoints_that_do_not_fit(capsys, tmp_path, few_digits):
    assert main([str(part) for part in train(few_digits, *small("--checkpoint.dir", tmp_path / "run"))]) == 0
    printed = capsys.readouterr()
    assert "images/s, data wait" in printed.out
    checkpoint = next((tmp_path / "run").glob("step_*.pt"))
    assert str(checkpoint) in printed.out
    again = train(few_digits, *small("--checkpoint.dir", tmp_path / "run"))
    assert "already holds a run" in wrong_use(capsys, *again)
    other = (*again, "--checkpoint.resume", "auto", "--model.name", "resnet10t")
    assert "was made with another model.name (deit_mini_patch8_32, now resnet10t)" in wrong_use(capsys, *other)
    evaluate = ("eval", "--data.path", few_digits, "--checkpoint")
    line = wrong_use(capsys, *evaluate, checkpoint, "--model.name", "deit_tiny_patch16_224")
    assert "weights of another model" in line
    assert "none.pt do not exist" in wrong_use(capsys, *evaluate, "none.pt")

    fewer = tmp_path / "fewer"
    for split in ("train", "val"):
        for name in "012":
            shutil.copytree(few_digits / split / name, fewer / split / name)
    line = wrong_use(capsys, "eval", "--data.path", fewer, "--checkpoint", checkpoint)
    assert "was trained on 10 classes, data.path has 3" in line
    resume = ("--checkpoint.dir", tmp_path / "run", "--checkpoint.resume", checkpoint)
    line = wrong_use(capsys, *train(fewer, *small(*resume), "--runtime.batch_size_per_device", "16"))
    assert "other classes" in line or "global batch" in line
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    line = wrong_use(capsys, *again, "--checkpoint.resume", "auto")
    assert f"no checkpoint in {tmp_path / 'run'} can be read" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--data.bad_sample", "raise"], "cannot be read or decoded"),
        (["--data.max_bad_fraction", "0.005"], "1 of 100 images cannot be read or decoded"),
    ],
)
def test_a_bad_image_stops_with_its_name(capsys, tmp_path, few_digits, options, named):
    shutil.copytree(few_digits, tmp_path / "data")
    bad = sorted((tmp_path / "data" / "train").rglob("*.jpg"))[0]
    bad.write_bytes(b"garbage")
    repeats = ("--data.repeats", "1", "--checkpoint.dir", str(tmp_path / "run"), "--schedule.epochs", "3")
    code = main([str(part) for part in train(tmp_path / "data", *small(*repeats, *options))])
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert str(bad) in line
    assert named in line


def test_debug_adds_the_traceback(capsys, tmp_path):
    assert main(["train", "--config", "deit_tiny", "--data.path", str(tmp_path / "none"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_bench_knows_debug_and_says_wrong_use_in_one_line(capsys, verb):
    given = ["a", "b"] if verb == "compare" else []
    assert "nonsense" in wrong_use(capsys, "bench", verb, *given, "--nonsense", "1")
    assert main(["bench", verb, *given, "--debug", "--nonsense", "1"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_demo_has_its_own_recipes(capsys):
    assert "the demo has its own recipes" in wrong_use(capsys, "demo", "--config", "deit_tiny")


def test_eval_scores_every_kind_of_checkpoint(capsys, tmp_path, few_digits):
    """Own (with its moving average), official and timm's forms, of a DeiT and of another model."""
    folder = tmp_path / "run"
    trained = train(few_digits, *small("--checkpoint.dir", folder))
    assert main([str(part) for part in trained]) == 0
    own = next(folder.glob("*.pt"))
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    evaluate = ["eval", "--data.path", str(few_digits), "--json", "result.json", "--checkpoint"]

    def scores(*arguments):
        assert main([*evaluate, *map(str, arguments)]) == 0
        with open("result.json") as file:
            return json.load(file)

    result = scores(own)
    assert result["top1"] == last["val"]["top1"]
    assert result["top5"] == last["val"]["top5"]
    assert result["images"] == 40
    assert scores(own, "--ema")["top1"] == last["val_ema"]["top1"]
    assert "top-1" in capsys.readouterr().out

    state = torch.load(own, weights_only=True)["model"]
    torch.save({"model": state}, "official.pth")
    official = scores("official.pth", "--eval.crop_ratio", "1.0")
    assert official["model"]["name"] == "deit_mini_patch8_32"  # found from the shapes
    assert official["top1"] == last["val"]["top1"]

    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10).state_dict()
    torch.save({"state_dict": distilled}, "timm.pth")
    heads = scores("timm.pth")
    assert heads["model"] == {"name": "deit_tiny_distilled_patch16_224", "image_size_px": 224, "ema": False}
    assert None not in heads["top1"].values()

    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), "convnet.pth")
    assert scores("convnet.pth", "--model.name", "resnet10t")["top1"]["dist"] is None
    assert "--model.name" in wrong_use(capsys, "eval", "--data.path", few_digits, "--checkpoint", "convnet.pth")


def test_the_installed_command_and_module_are_the_same():
    for command in (["deit-fast"], [sys.executable, "-m", "deit_fast"]):
        if command == ["deit-fast"]:
            command = [str(shutil.which("deit-fast", path=str(sys.prefix) + "/bin") or "deit-fast")]
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        assert done.stdout.startswith("deit-fast 0."), done.stderr
