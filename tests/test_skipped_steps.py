"""Steps that are not finite: skipped, counted, named, and not one too many; with apex's optimizers too."""

import json
import math

import pytest
import torch
from small_runs import ALONE, assert_same, config, rows, saved, spoil, stop_at

from deit_fast.optim import parameter_groups, scaled_lr
from deit_fast.trainer import Trainer


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_a_step_that_is_not_finite_is_skipped_counted_and_named(few_digits, tmp_path, precision, optimizer):
    run = config(
        few_digits, tmp_path / "run", "--runtime.precision", precision, "--optim.name", optimizer,
        "--schedule.epochs", "1", recipe="demo_student",
    )  # fmt: skip
    trainer = Trainer(run, ALONE)
    spoil(trainer, 1)
    outcome = trainer.fit()
    state = saved(outcome)
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "skipped_steps_rank0.jsonl").read_text().splitlines()]
    assert (line["step"], line["loss"]) == (1, "nan")
    assert line["views"] == trainer.sampler.views(1).tolist()
    assert line["images"][0].endswith(".jpg")
    (row,) = rows(tmp_path / "run")
    assert row["skipped_steps"] == 1
    assert math.isfinite(row["loss"])
    steps = {int(entry["step"]) for entry in state["optimizer"]["state"].values()}
    assert steps == {2}  # of three steps one left the optimizer's state as it was


def test_an_infinite_loss_with_finite_gradients_is_skipped_too(few_digits, tmp_path):
    run = config(few_digits, tmp_path / "run", "--schedule.epochs", "1", recipe="demo_student")
    trainer, calls = Trainer(run, ALONE), []
    loss = trainer.train_step.loss

    def infinite_once(*arguments):
        parts = loss(*arguments)
        calls.append(parts)
        return parts._replace(total=parts.total + float("inf")) if len(calls) == 2 else parts

    trainer.train_step.loss = infinite_once
    state = saved(trainer.fit())
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "skipped_steps_rank0.jsonl").read_text().splitlines()]
    assert (line["step"], line["loss"]) == (1, "inf")
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {2}


class AsApex(torch.optim.AdamW):
    """With what the trainer meets in NVIDIA's FusedAdam and FusedLAMB (apex at 6424da3): `zero_grad` and `step` take
    nothing, the number of steps stands in the group, and a step cannot be skipped on the device."""

    def __init__(self, groups, lr, eps):
        super().__init__(groups, lr=lr, eps=eps, fused=False, foreach=True)
        assert not getattr(self, "_step_supports_amp_scaling", False)

    def zero_grad(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        super().step()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_optimizer_of_apex_trains_skips_and_resumes(few_digits, tmp_path, monkeypatch, precision):
    def build(model, optim, *, global_batch_size):
        return AsApex(parameter_groups(model, optim), lr=scaled_lr(optim, global_batch_size), eps=1e-8)

    monkeypatch.setattr("deit_fast.run_state.build_optimizer", build)
    arguments = ("--runtime.precision", precision)
    whole = Trainer(config(few_digits, tmp_path / "run", *arguments, recipe="demo_student"), ALONE)
    first = Trainer(config(few_digits, tmp_path / "broken", *arguments, recipe="demo_student"), ALONE)
    resumed = ("--checkpoint.resume", "auto")
    for trainer in (whole, first):
        spoil(trainer, 1)
    stop_at(first, 3)
    assert first.fit().step == 4
    ended = Trainer(config(few_digits, tmp_path / "broken", *arguments, *resumed, recipe="demo_student"), ALONE).fit()
    state = saved(whole.fit())
    assert_same(state, saved(ended))
    assert [group["step"] for group in state["optimizer"]["param_groups"]] == [5, 5]  # of six


def test_too_many_such_steps_stop_the_run_and_keep_the_last_save(few_digits, tmp_path):
    arguments = ("--optim.max_skipped_steps", "1", "--runtime.log_every_steps", "1")
    trainer = Trainer(config(few_digits, tmp_path / "run", *arguments, recipe="demo_student"), ALONE)
    spoil(trainer, 3, 4, 5)
    with pytest.raises(RuntimeError, match=r"2 steps of epoch 2 .*optim.max_skipped_steps 1.*runtime.precision fp32"):
        trainer.fit()
    assert [path.name for path in (tmp_path / "run").glob("step*.pt")] == ["step_000000003.pt"]
