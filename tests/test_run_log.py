"""What a run tells at every log step, and where."""

import errno
import json
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_runs import ALONE, config, rows, spoil, stop_at

from deit_fast.memory import DeviceMemory
from deit_fast.metrics import EpochSums, JsonLines
from deit_fast.run_log import Figures, build_row, row_text
from deit_fast.trainer import Trainer


def test_utilisation_and_days_by_hand():
    """1,000 images/s on 2 devices of 100 TFLOP/s at 60 GFLOP an image: 30 %."""
    stretch = EpochSums(20.0, steps=11, images=11_000, seconds=11.0, data_wait_seconds=1.1)
    stretch.replaced_views, stretch.skipped_steps = 3, 1
    stretch.distillation_loss = 12.5
    on_cpu = DeviceMemory(torch.device("cpu"))
    figures = Figures(devices=2, flops_per_image=60e9, peak_flops=100e12, distilled=True)
    row = build_row(30, 2, 1e-3, stretch, 0.5, figures, on_cpu, 1)
    assert row.mfu == pytest.approx(0.3)
    assert (row.images_per_second, row.images_per_second_per_device) == (1000, 500)
    assert row.loss == 2.0  # the mean of the ten steps that were not skipped
    assert (row.label_loss, row.distillation_loss) == (0.75, 1.25)
    assert row.data_wait_fraction == pytest.approx(0.1)
    assert row.projected_days == pytest.approx(1_281_167 * 300 / 1000 / 86_400)
    text = row_text(row, 10, 2)
    for piece in (
        "epoch 3/10",
        "loss 2.000 (labels 0.750 + teacher 1.250)",
        "1,000 images/s (500 per device)",
        "MFU 30.0%",
        "replaced 3 views of bad images",
        "skipped steps 1",
        "4.4 days",
    ):
        assert piece in text
    unknown = build_row(1, 0, 1e-3, stretch, 0.5, Figures(1, 0.0, None), on_cpu, 0)
    assert unknown.mfu is None
    assert unknown.distillation_loss is None
    assert "teacher" not in row_text(unknown, 10, 1)
    assert unknown.torch_memory_gib is None


def test_a_run_has_a_row_for_every_log_step(few_digits, tmp_path):
    run = config(few_digits, tmp_path, "--runtime.log_every_steps", "2", recipe="demo_student")
    Trainer(run, ALONE).fit()
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [2, 3, 4, 6]
    assert all(math.isfinite(row["loss"]) and row["gradient_norm"] > 0 and row["host_memory_gib"] > 0 for row in steps)
    first = (steps[0]["loss"] * 2 + steps[1]["loss"]) / 3
    assert rows(tmp_path)[0]["loss"] == pytest.approx(first)


def test_the_log_file_has_every_line_plainly(few_digits, tmp_path):
    """What is said at the start, figures at every log step, scores, and warnings; a resumed run goes on in it."""
    run = config(few_digits, tmp_path, "--runtime.log_every_steps", "1", recipe="demo_student")
    trainer = Trainer(run, ALONE)
    stop_at(trainer, 0)
    trainer.fit()
    Trainer(replace(run, checkpoint=replace(run.checkpoint, resume="auto")), ALONE).fit()
    text = (tmp_path / "log.txt").read_text()
    assert [text.count(f"  train  step {step}/6  epoch ") for step in range(1, 7)] == [1] * 6
    assert text.count("global batch 32 = 32 per device x 1 device") == 2
    assert text.count("CPU cores for each device") == 2
    assert text.count("top-1 ") == 2
    assert "\x1b" not in text
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in text.splitlines())


def test_memory_is_shown_apart(monkeypatch):
    """On a device of 10 GiB: 1 used before the loader, then torch grows to 4 and everything together to 7.5."""
    gib = 2**30
    used, reserved = 1.5 * gib, 0.5 * gib
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10 * gib - used, 10 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: reserved)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _device: 5 * gib)
    memory = DeviceMemory(torch.device("cuda", 0))
    assert (memory.dali_gib, memory.other_gib) == (0, 1)
    used, reserved = 7.5 * gib, 4 * gib
    assert (memory.torch_gib, memory.dali_gib, memory.other_gib) == (5, 2.5, 1)
    row = build_row(1, 0, 1e-3, EpochSums(1.0, steps=1, images=8, seconds=1.0), 0.5, Figures(1, 0.0, None), memory, 0)
    assert "memory torch 5.0 + DALI 2.5 + other 1.0 GiB" in row_text(row, 10, 1)


def test_the_teachers_part_of_the_loss_is_logged(few_digits, tmp_path, teacher_checkpoint):
    """By hand: half the cross-entropy with the teacher's classes, of the first weights on the first mixed batch."""
    run = config(
        few_digits, tmp_path, "--schedule.epochs", "1", "--runtime.accumulate_steps", "2",
        "--runtime.batch_size_per_device", "16", "--runtime.log_every_steps", "1", teacher=teacher_checkpoint,
    )  # fmt: skip
    trainer, answers = Trainer(run, ALONE), []
    loss = trainer.train_step.loss

    def by_hand(output, labels, logits):
        answers.append(0.5 * F.cross_entropy(output[1].detach().float(), logits.argmax(1)).item())
        return loss(output, labels, logits)

    trainer.train_step.loss = by_hand
    trainer.fit()
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    means = [(first + second) / 2 for first, second in zip(answers[::2], answers[1::2], strict=True)]
    assert [row["distillation_loss"] for row in steps] == pytest.approx(means, rel=1e-5)
    assert all(row["label_loss"] + row["distillation_loss"] == pytest.approx(row["loss"]) for row in steps)
    (row,) = rows(tmp_path)
    assert row["distillation_loss"] == pytest.approx(sum(means) / len(means), rel=1e-5)


def test_tensorboard_gets_the_rows_or_is_named(few_digits, tmp_path):
    run = config(few_digits, tmp_path, "--runtime.tensorboard", "true", "--schedule.epochs", "1", recipe="demo_student")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(RuntimeError, match=r"pip install 'deit-fast\[tensorboard\]'"):
            Trainer(run, ALONE).fit()
        return
    Trainer(run, ALONE).fit()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"images_per_second_per_device", b"val/average", b"lr"):
        assert tag in content


class FullBoard:
    """As TensorBoard's writer tells what its thread met."""

    def add_scalar(self, *_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_no_metric(few_digits, tmp_path, caplog):
    """/dev/full takes nothing: rows of the steps, of a skipped step, and TensorBoard's."""
    run = config(few_digits, tmp_path, "--schedule.epochs", "1", recipe="demo_student")
    trainer = Trainer(run, ALONE)
    spoil(trainer, 1)
    step = trainer.train_step

    def fill(*arguments):
        trainer.log.board = FullBoard()
        trainer.train_step = step
        return step(*arguments)

    fill.guard = step.guard
    trainer.train_step = fill
    (tmp_path / "skipped_steps_rank0.jsonl").symlink_to("/dev/full")
    with caplog.at_level("WARNING", logger="deit_fast"):
        assert trainer.fit().finished
    assert "skipped_steps_rank0.jsonl cannot be written (No space left on device); the run goes on" in caplog.text
    assert "TensorBoard's events cannot be written (No space left on device); the run goes on" in caplog.text
    assert trainer.log.board is None


def test_an_unfinished_line_is_no_row(tmp_path, caplog):
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    lines = JsonLines(tmp_path / "rows.jsonl")
    assert [row["step"] for row in lines.rows()] == [1, 2]
    assert "unfinished line" in caplog.text
    lines.keep(lambda row: row["step"] < 2)
    lines.append({"step": 5})
    assert [row["step"] for row in lines.rows()] == [1, 5]
