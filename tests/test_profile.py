"""Runs made slow on purpose: the profile names the cause first."""

import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch
from small_runs import ALONE, config

from deit_fast.ask_teacher import build_ask
from deit_fast.dali_pipelines.loader import Batch, TrainLoader
from deit_fast.distributed import Ranks
from deit_fast.metrics import WaitClock
from deit_fast.precision import cpu_computes_in_bf16
from deit_fast.profile.record import build_record
from deit_fast.profile.run import Lengths, profiled_trainer, run_profile
from deit_fast.teacher import Teacher

LENGTHS = Lengths(recorded=3, warm_up=1, loader_batches=2)
SMALL = ("--schedule.epochs", "10", "--runtime.batch_size_per_device", "8", "--mix.group_size", "8")


def profiled(run, folder, spoil=lambda _trainer: None):
    """The record of a run that `spoil` has made slow."""
    trainer = profiled_trainer(run, ALONE, folder, LENGTHS)
    spoil(trainer)
    return build_record(trainer, run_profile(trainer, folder, LENGTHS))


def student_alone(data, folder, *arguments):
    """No teacher, so that nothing but the injected fault is worth a word."""
    return config(data, folder, *SMALL, *arguments, recipe="demo_student")


def feed_from_memory(trainer, pause_s=0.0):
    """The loader gives one batch again and again, each after a pause."""
    with closing(trainer.train_loader.batches(0, 1)) as given:
        batch = Batch(*(part.clone() for part in next(given)))  # the images are the loader's

    def batches(first_step, last_step):
        for _ in range(first_step, last_step):
            if pause_s:  # sleep(0) would give the core to whoever wants it
                time.sleep(pause_s)
            yield batch

    trainer.train_loader.batches = batches


def test_a_throttled_loader_is_named_first(few_digits, tmp_path):
    record = profiled(
        student_alone(few_digits, tmp_path), tmp_path, lambda trainer: feed_from_memory(trainer, pause_s=0.3)
    )
    first = record["advice"][0]
    assert first["cause"] == "data"
    assert first["gain_ms"] >= 300
    assert record["loader"]["who_waits"] == "the step waits for the loader"
    assert record["loader"]["batch_ready_share"] == 0
    assert record["loader"]["alone"]["images_per_second"] < 8 / 0.3
    assert "the loader alone gives" in first["line"]


def test_a_number_read_in_every_step_is_named_first_with_its_line(few_digits, tmp_path):
    def spoil(trainer):
        feed_from_memory(trainer)
        loss = trainer.train_step.loss

        def curious(*arguments):
            value = loss(*arguments)
            value.total.item()  # the fault
            return value

        trainer.train_step.loss = curious

    record = profiled(student_alone(few_digits, tmp_path), tmp_path, spoil)
    first = record["advice"][0]
    assert first["cause"] == "host wait"
    assert "value.total.item()  # the fault" in first["evidence"]
    assert f"{Path(__file__).parent.name}/test_profile.py:" in first["evidence"]
    assert first["gain_ms"] is None  # a CPU cannot tell


class SlowInFp32(torch.nn.Module):
    """A teacher that takes 0.2 s longer in fp32, on any CPU and however busy: matrix units are not alike."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3 * 32 * 32, 10)

    def forward(self, images):
        if not torch.is_autocast_enabled("cpu"):
            time.sleep(0.2)
        return self.head(images.flatten(1))


def test_a_teacher_in_fp32_is_named_first(few_digits, tmp_path, teacher_checkpoint):
    if not cpu_computes_in_bf16():
        pytest.skip("this CPU does not compute in bf16, so here a teacher in fp32 is no fault")
    network = SlowInFp32()

    def spoil(trainer):
        feed_from_memory(trainer)
        trainer.teacher = Teacher(
            network, image_size_px=None, scale=None, shift=None, device=ALONE.device, autocast_dtype=None, fold=False
        )
        trainer.train_step.ask_teacher = build_ask(trainer.teacher, ALONE.device)

    run = config(few_digits, tmp_path, *SMALL, "--runtime.precision", "fp32", teacher=teacher_checkpoint)
    record = profiled(run, tmp_path, spoil)
    first = record["advice"][0]
    assert first["cause"] == "teacher precision"
    assert record["teacher"]["faster_ms"] < record["teacher"]["alone_ms"]
    assert {row["module"] for row in record["operators"]["modules"]} > {"teacher", "attention", "MLP", "norm", "head"}


def test_recording_changes_nothing_that_is_trained(few_digits, tmp_path):
    """Through all windows of a profile: marks, trace, hooks, the watched step."""
    run = student_alone(few_digits, tmp_path, "--model.drop_path_rate", "0.1")
    recorded, plain = (profiled_trainer(run, ALONE, tmp_path, LENGTHS) for _ in range(2))
    run_profile(recorded, tmp_path, LENGTHS)
    total = len(LENGTHS.kinds)
    with ExitStack() as stack:
        plain.open(stack)
        plain.train_stretch(WaitClock(plain.train_loader.batches(0, total)))
    assert recorded.state.step == plain.state.step == total
    for name, value in plain.student.state_dict().items():
        assert torch.equal(value, recorded.student.state_dict()[name]), name


def test_the_loader_alone_is_timed_without_marks(few_digits, tmp_path, monkeypatch):
    def measure_alone(loader, _first_step, _batches):
        assert loader.build.__func__ is TrainLoader.build
        raise LookupError("reached")

    monkeypatch.setattr("deit_fast.profile.run.measure_alone", measure_alone)
    trainer = profiled_trainer(student_alone(few_digits, tmp_path), ALONE, tmp_path, LENGTHS)
    with pytest.raises(LookupError, match="reached"):
        run_profile(trainer, tmp_path, LENGTHS)


@pytest.mark.gpu
def test_a_profile_on_a_gpu_has_the_devices_clock_and_its_kernels(few_digits, tmp_path, teacher_checkpoint):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, whose events and kernels are recorded")
    ranks = Ranks(0, 1, 0, 1, torch.device("cuda", 0))
    trainer = profiled_trainer(
        config(few_digits, tmp_path, *SMALL, teacher=teacher_checkpoint), ranks, tmp_path, LENGTHS
    )
    record = build_record(trainer, run_profile(trainer, tmp_path, LENGTHS))
    step = next(step for step in record["ranks"][0]["steps"] if step["kind"] == "recorded")
    assert sum(step["device_ms"].values()) == pytest.approx(step["total_ms"], rel=0.01)
    assert any(name == "teacher stream" for name, _, _ in step["spans"])
    assert record["operators"]["kernels"]
    assert record["memory"]["allocator"]["reserved_peak"] > 0
    assert record["operators"]["waits"] == []
