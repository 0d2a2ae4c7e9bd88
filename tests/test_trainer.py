"""Whole runs on real images: learning, resuming bit for bit, stopping, saving."""

import math
from itertools import product

import pytest
import torch
import yaml
from small_runs import ALONE, STEPS_PER_EPOCH, assert_same, config, rows, saved, stop_at

from deit_fast.trainer import Trainer, next_border


@pytest.fixture
def distilled(few_digits, tmp_path, teacher_checkpoint):
    return lambda *arguments, folder="run": config(
        few_digits, tmp_path / folder, *arguments, teacher=teacher_checkpoint
    )


@pytest.mark.parametrize("stop", [1, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH + 1])
def test_an_interrupted_run_ends_bit_identical(distilled, tmp_path, stop):
    """In the middle of the first epoch, at the end of an epoch, and in the second."""
    whole = Trainer(distilled("--runtime.log_every_steps", "1"), ALONE).fit()
    first = Trainer(distilled("--runtime.log_every_steps", "1", folder="broken"), ALONE)
    stop_at(first, stop)
    stopped = first.fit()
    assert (stopped.finished, stopped.step) == (False, stop + 1)
    resumed = distilled("--runtime.log_every_steps", "1", "--checkpoint.resume", "auto", folder="broken")
    ended = Trainer(resumed, ALONE).fit()
    assert ended.finished
    assert_same(saved(whole), saved(ended))
    one, other = rows(tmp_path / "run"), rows(tmp_path / "broken")
    assert [row["epoch"] for row in other] == [1, 2]
    for mine, theirs in zip(one, other, strict=True):
        assert (mine["loss"], mine["lr"]) == (theirs["loss"], theirs["lr"])
        assert mine["val"]["top1"] == theirs["val"]["top1"]


def test_a_timm_student_resumes_bit_identical_too(few_digits, tmp_path):
    """Its drop-path draws inside the forward, and batch norm has buffers."""
    arguments = ("--model.name", "resnet10t", "--optim.clip_grad_norm", "1.0")
    whole = Trainer(config(few_digits, tmp_path / "run", *arguments, recipe="demo_teacher"), ALONE).fit()
    first = Trainer(config(few_digits, tmp_path / "broken", *arguments, recipe="demo_teacher"), ALONE)
    stop_at(first, 4)
    assert not first.fit().finished
    arguments += ("--checkpoint.resume", "auto")
    ended = Trainer(config(few_digits, tmp_path / "broken", *arguments, recipe="demo_teacher"), ALONE).fit()
    assert_same(saved(whole), saved(ended))


def test_how_a_batch_is_split_into_log_and_save_stretches_changes_nothing(distilled):
    one = Trainer(distilled("--runtime.log_every_steps", "1", "--checkpoint.every_steps", "2"), ALONE).fit()
    other = Trainer(distilled("--runtime.log_every_steps", "50", folder="other"), ALONE).fit()
    mine, theirs = saved(one), saved(other)
    for key in ("model", "model_ema", "optimizer"):
        assert_same(mine[key], theirs[key])


def test_resuming_a_finished_run_trains_no_further(distilled):
    done = Trainer(distilled(), ALONE).fit()
    again = Trainer(distilled("--checkpoint.resume", "auto"), ALONE).fit()
    assert again.finished
    assert again.step == done.step
    assert_same(saved(done), saved(again))
    assert again.scores.top1 == done.scores.top1


def test_a_run_writes_what_it_was(distilled, tmp_path):
    outcome = Trainer(distilled("--checkpoint.keep_last", "2"), ALONE).fit()
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.pt", "config.yaml", "log.txt", "metrics.jsonl", "step_000000003.pt", "step_000000006.pt", "steps.jsonl",
    ]  # fmt: skip
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["mix"]["group_size"] == 16
    last = rows(folder)[-1]
    assert last["val"]["top1"].keys() == {"cls", "dist", "average"}
    assert last["val"]["images"] == 40
    assert 0 <= last["data_wait_fraction"] <= 1
    assert last["images_per_second"] > 0
    assert outcome.scores.as_dict() == last["val"]


@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        *product(["fp32", "bf16"], ["none", "soft", "hard"]),
        ("fp16", "none"),
        *(pytest.param("fp16", kind, marks=pytest.mark.slow) for kind in ("soft", "hard")),  # convolutions, on a CPU
    ],
)
def test_every_precision_and_distillation_trains(few_digits, tmp_path, teacher_checkpoint, precision, kind):
    arguments = ["--runtime.precision", precision, "--distill.kind", kind, "--schedule.epochs", "1"]
    recipe = "demo_student" if kind == "none" else "demo_student_distilled"
    teacher = None if kind == "none" else teacher_checkpoint
    trainer = Trainer(config(few_digits, tmp_path / "run", *arguments, recipe=recipe, teacher=teacher), ALONE)
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    outcome = trainer.fit()
    assert outcome.finished
    changed = [name for name, value in trainer.student.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) == len(before)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.student.parameters())
    assert math.isfinite(rows(tmp_path / "run")[0]["loss"])


def test_an_evaluation_begins_each_batch_as_a_step_does(few_digits, tmp_path):
    """With CUDA graphs, else what is recorded grows by all batches of an evaluation; no gradient is kept meanwhile."""
    trainer = Trainer(config(few_digits, tmp_path / "run", "--schedule.epochs", "1", recipe="demo_student"), ALONE)
    kept = []
    trainer.train_step.begin = lambda: kept.append(sum(p.grad is not None for p in trainer.student.parameters()))
    trainer.fit()
    assert len(kept) == STEPS_PER_EPOCH + 2 * len(list(trainer.val_loader))  # the student's, and its moving average's
    assert all(count > 0 for count in kept[1:STEPS_PER_EPOCH])
    assert set(kept[STEPS_PER_EPOCH:]) == {0}


def test_precisions_agree_in_the_first_loss(few_digits, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        run = config(
            few_digits, tmp_path / precision, "--runtime.precision", precision, "--schedule.epochs", "1",
            recipe="demo_student",
        )  # fmt: skip
        trainer = Trainer(run, ALONE)
        batch = next(trainer.train_loader.batches(0, 1))
        trainer.student.train()
        losses[precision] = trainer.train_step(batch, 0, trainer.sampler.groups(0)).item()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.002)


def test_a_compiled_student_trains_as_a_plain_one(few_digits, tmp_path):
    losses = []
    for compiled in ("false", "true"):
        run = config(
            few_digits, tmp_path / compiled, "--runtime.compile", compiled, "--runtime.precision", "fp32",
            recipe="demo_student",
        )  # fmt: skip
        trainer = Trainer(run, ALONE)
        batch = next(trainer.train_loader.batches(0, 1))
        trainer.student.train()
        losses.append([trainer.train_step(batch, step, trainer.sampler.groups(step)).item() for step in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_learns(digits, tmp_path):
    """Two epochs over all digits by a ConvNet: chance is 10 %."""
    run = config(
        digits, tmp_path / "run", "--schedule.epochs", "3", "--optim.lr", "1.6e-2", "--schedule.warmup_epochs", "0",
        recipe="demo_teacher",
    )  # fmt: skip
    outcome = Trainer(run, ALONE).fit()
    assert outcome.scores.top1["average"] > 40
    assert outcome.scores.top1["dist"] is None


def test_out_of_memory_is_one_line(few_digits, tmp_path):
    """An allocation that fails for real, in the second step."""
    trainer = Trainer(config(few_digits, tmp_path / "run", recipe="demo_student"), ALONE)
    mix = trainer.train_step.mix
    trainer.train_step.mix = lambda *arguments: mix(*arguments) if arguments[1] != 1 else torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match=r"batch_size_per_device 32; 16 may fit .*accumulate_steps 2 ") as error:
        trainer.fit()
    assert "\n" not in str(error.value)


def test_changed_settings_refuse_to_resume(distilled):
    first = Trainer(distilled(), ALONE)
    stop_at(first, 1)
    first.fit()
    for changed, named in (
        (("--optim.lr", "9e-3"), r"optim.lr \(0.012, now 0.009\)"),
        (("--runtime.batch_size_per_device", "16"), "global batch of 32, now it would be 16"),
    ):
        with pytest.raises(ValueError, match=named) as error:
            Trainer(distilled("--checkpoint.resume", "auto", *changed), ALONE)
        assert "\n" not in str(error.value)


def test_a_new_run_never_writes_over_an_old_one(distilled, tmp_path):
    Trainer(distilled("--schedule.epochs", "1"), ALONE).fit()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match="already holds a run"):
        Trainer(distilled("--schedule.epochs", "1"), ALONE)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_fine_tuning_starts_from_a_checkpoint_at_another_resolution(distilled, few_digits, tmp_path):
    trained = Trainer(distilled("--schedule.epochs", "1"), ALONE).fit()
    run = config(
        few_digits, tmp_path / "large", "--model.image_size_px", "48", "--distill.kind", "none",
        "--model.name", "deit_mini_patch8_32", recipe="demo_student",
    )  # fmt: skip
    plain = Trainer(run, ALONE)
    assert plain.student.pos_embed.shape[1] == 37
    tuned = distilled("--model.image_size_px", "48", "--model.init_checkpoint", str(trained.checkpoint), folder="t")
    trainer = Trainer(tuned, ALONE)
    assert trainer.student.pos_embed.shape[1] == 38
    assert torch.equal(trainer.student.head.weight, saved(trained)["model"]["head.weight"])


def test_borders():
    assert next_border(0, 10, None) == 10
    assert next_border(10, 10, None) == 20
    assert next_border(3, 10, 4) == 4
    assert next_border(8, 10, 4) == 10
    assert next_border(10, 10, 4) == 12
