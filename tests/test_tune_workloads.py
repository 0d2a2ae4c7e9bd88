"""What `deit-fast tune` measures is right: wrong gradients, logits and images are found before they are timed."""

import math
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_runs import ALONE, MINI

from deit_fast.benchmarks.tune.journal import Journal
from deit_fast.benchmarks.tune.loader_workload import BATCHES_IN_A_TURN, LoaderWorkload
from deit_fast.benchmarks.tune.question import CandidateError
from deit_fast.benchmarks.tune.questions import BATCH_FACTORS, QUESTIONS
from deit_fast.benchmarks.tune.search import Search
from deit_fast.benchmarks.tune.step_workload import StepWorkload, with_batch_size
from deit_fast.benchmarks.tune.teacher_workload import TeacherWorkload
from deit_fast.config import AugmentConfig, DataConfig
from deit_fast.kernels.attention import op as attention_op
from deit_fast.kernels.attention.reference import attention_reference
from deit_fast.model import create_student
from deit_fast.open_images import open_images
from deit_fast.student import compile_blocks
from deit_fast.tuned import with_values
from deit_fast.utilisation import forward_flops


def broken_attention(qkv, factor):
    return factor * attention_reference(qkv)


@pytest.mark.parametrize(("factor", "told"), [(1.5, "gradients are off by"), (math.inf, "not finite")])
def test_a_wrong_attention_is_found_by_its_gradients(monkeypatch, factor, told):
    workload = StepWorkload(ALONE, 1000)
    fp32 = with_values(MINI, {"runtime.precision": "fp32"})
    right = with_values(fp32, {"runtime.attention": "sdpa"})
    assert workload.check(right) < 1e-4
    monkeypatch.setitem(attention_op.BACKENDS, "sdpa_flash", partial(broken_attention, factor=factor))
    with pytest.raises(CandidateError, match=told):
        workload.check(with_values(fp32, {"runtime.attention": "sdpa_flash"}))
    assert 1e-4 < workload.check(with_values(MINI, {"runtime.precision": "bf16"})) < 0.1


@pytest.mark.parametrize(("erase_probability", "dtype"), [(0.0, torch.uint8), (0.25, torch.float32)])
def test_the_step_takes_what_the_loader_gives_it(erase_probability, dtype):
    """Bytes where a kernel normalises them; the plain step that it is checked against sees the same images."""
    config = with_values(with_batch_size(MINI, 8), {"runtime.precision": "fp32", "runtime.kernels": "batch_prep"})
    config = replace(config, augment=AugmentConfig(erase_probability=erase_probability))
    workload = StepWorkload(ALONE, 1000)
    assert workload.build(config)[1].images.dtype == dtype
    assert workload.check(config) < 1e-4


@pytest.mark.slow
def test_all_batch_sizes_of_a_gpu_are_compiled_beside_each_other(monkeypatch, tmp_path):
    """Each needs two graphs of the same code, and torch by itself stops at eight."""

    def compile_cheaply(_config, student):
        compile_blocks(student, backend="eager")

    monkeypatch.setattr("deit_fast.benchmarks.tune.step_workload.compile_student", compile_cheaply)
    monkeypatch.setattr("deit_fast.benchmarks.tune.step_workload.IMAGES_ON_CPU", 1024)
    monkeypatch.setattr("deit_fast.benchmarks.tune.questions.BATCH_FACTORS_ON_CPU", BATCH_FACTORS)
    monkeypatch.setattr("deit_fast.benchmarks.tune.search.SECONDS_OF_A_TURN", 0.0)
    monkeypatch.setattr("deit_fast.benchmarks.tune.search.TURNS", (1, 1))
    config = with_values(with_batch_size(MINI, 8), {"runtime.compile": True, "runtime.precision": "fp32"})
    question = next(question for question in QUESTIONS if question.name == "batch size")
    journal = Journal(tmp_path / "tuned.yaml", {}, {}, [])
    search = Search(config, ALONE, {"step": StepWorkload(ALONE, 1000)}, journal, time.monotonic() + 600, print)
    torch.compiler.reset()
    answer = search.ask(question, question.candidates(config, ALONE), {})
    assert [one.fails for one in answer.candidates] == [None] * len(BATCH_FACTORS)


@pytest.mark.parametrize("backend", ["sdpa_flash", "sdpa_cudnn", "triton"])
def test_what_may_be_chosen_can_be_counted(backend):
    """A run whose attention was tuned counts its arithmetic on the meta device, as any other does."""
    counted = [
        forward_flops(create_student("deit_mini_patch8_32", num_classes=10, image_size_px=32, drop_path_rate=0.0,
                                     attention=name), 32)
        for name in ("sdpa", backend)
    ]  # fmt: skip
    assert counted[0] == counted[1] > 0


def test_a_wrong_teacher_is_found_by_its_logits(monkeypatch):
    workload = TeacherWorkload(ALONE, 1000)
    fp32 = with_values(MINI, {"runtime.precision": "fp32"})
    for layout in ("channels_last", "contiguous"):
        assert workload.check(with_values(fp32, {"runtime.teacher_layout": layout})) < 1e-3
    assert 1e-4 < workload.check(with_values(fp32, {"runtime.teacher_precision": "bf16"})) < 0.1
    mixed = {"runtime.precision": "bf16", "runtime.teacher_precision": "fp32"}
    assert workload.check(with_values(MINI, mixed)) < 1e-3

    def spoil(model, _size):
        next(model.parameters()).data.mul_(1.1)

    monkeypatch.setattr("deit_fast.teacher.fold_batch_norms", spoil)
    with pytest.raises(CandidateError, match="logits are off by"):
        workload.check(fp32)


def test_a_loader_that_shows_others_is_found(few_digits):
    config = replace(with_values(MINI, {"runtime.precision": "fp32"}), data=DataConfig(path=str(few_digits)))
    workload = LoaderWorkload(ALONE, open_images(config.data, "train"), StepWorkload(ALONE, 1000))
    assert workload.check(with_values(config, {"data.num_threads": 2, "data.prefetch": 4})) < 0.05
    with pytest.raises(CandidateError, match="other images"):
        workload.check(with_values(config, {"runtime.seed": 1}))
    with pytest.raises(CandidateError, match="pixels differ"):
        workload.check(replace(config, augment=replace(config.augment, flip_probability=1.0)))


def test_turns_of_a_loader_take_whole_batches(few_digits):
    config = replace(with_batch_size(MINI, 8), data=DataConfig(path=str(few_digits), num_threads=1))
    workload = LoaderWorkload(ALONE, open_images(config.data, "train"), StepWorkload(ALONE, 1000))
    repeat = workload.ready(config)
    assert [repeat(count)()() for count in (1, 2)] == [8 * BATCHES_IN_A_TURN, 2 * 8 * BATCHES_IN_A_TURN]
