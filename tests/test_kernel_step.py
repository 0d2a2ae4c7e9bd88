"""The whole step with `runtime.kernels triton`, by the operators' CPU kernels: it trains what plain torch trains."""

from dataclasses import replace

import pytest
import torch
from small_runs import ALONE, config
from test_step import WaitsForTheDevice
from tiny_step import build_tiny_step, tiny_batch

from deit_fast.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentConfig,
    Config,
    DistillConfig,
    LossConfig,
    MixConfig,
)
from deit_fast.dali_pipelines.loader import Batch
from deit_fast.data import kernel_normalizes
from deit_fast.kernels import registration
from deit_fast.kernels.batch_prep import op as batch_prep_op
from deit_fast.losses import build_loss
from deit_fast.mixing import MixedLabels, mix_batch
from deit_fast.prepare_batch import build_prepare, draw_plans
from deit_fast.student import build_student
from deit_fast.trainer import Trainer


def first_step(run):
    """Loss and gradients of a run's first step, and the batch it was given."""
    trainer = Trainer(run, ALONE)
    trainer.student.train()
    batch = next(trainer.train_loader.batches(0, 1))
    loss = trainer.train_step(batch, 0, trainer.sampler.groups(0))
    return loss, {name: parameter.grad for name, parameter in trainer.student.named_parameters()}, batch


VARIANTS = {
    "distilled": ("--runtime.accumulate_steps", "2", "--runtime.batch_size_per_device", "16"),
    "bytes": ("--augment.erase_probability", "0", "--distill.kind", "soft", "--distill.temperature", "3"),
}


@pytest.mark.parametrize("variant", ["distilled", pytest.param("bytes", marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_the_reference(few_digits, tmp_path, teacher_checkpoint, variant):
    """Mixing, drop-path, teacher, accumulation; in fp32, where only the order of sums differs."""
    steps = []
    for kernels, attention in (("reference", "sdpa"), ("triton", "triton")):
        run = config(
            few_digits, tmp_path / kernels, "--runtime.precision", "fp32", "--model.drop_path_rate", "0.3",
            "--runtime.kernels", kernels, "--runtime.attention", attention, *VARIANTS[variant],
            teacher=teacher_checkpoint,
        )  # fmt: skip
        steps.append(first_step(run))
    (loss, gradients, _), (fused_loss, fused_gradients, batch) = steps
    assert batch.images.dtype == (torch.uint8 if variant == "bytes" else torch.float32)
    assert fused_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in gradients.items():
        assert (fused_gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def mini(kernels="triton", **model):
    run = Config()
    return replace(
        run,
        model=replace(run.model, name="deit_mini_distilled_patch8_32", image_size_px=32, **model),
        mix=MixConfig(group_size=4),
        runtime=replace(run.runtime, kernels=kernels, batch_size_per_device=8),
    )


def batch(dtype=torch.float16):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Batch(images.contiguous(memory_format=torch.channels_last), torch.arange(8), torch.arange(8))


def test_reference_mixes_as_before_bit_for_bit():
    run = mini("reference")
    prepare = build_prepare(run, None, teacher_looks=True, precision="bf16")
    for step in range(6):  # Mixup and CutMix both occur
        mixed, labels = prepare(batch(), step, [0, 1])
        images, expected = mix_batch(batch().images, batch().labels, draw_plans(run, step, [0, 1]), 4)
        assert mixed.teacher is mixed.student
        assert torch.equal(mixed.student, images)
        assert all(torch.equal(mine, other) for mine, other in zip(labels, expected, strict=True))


@pytest.mark.parametrize("teacher_looks", [True, False])
def test_one_pass_gives_teacher_and_student_the_mixed_batch(teacher_looks):
    """In the dtype of the matrix products: at most one rounding from the reference in fp64."""
    run = mini()
    student = build_student(run, 10)
    prepare = build_prepare(run, student, teacher_looks=teacher_looks, precision="bf16")
    boxes = 0
    for step in range(6):
        mixed, labels = prepare(batch(), step, [0, 1])
        plans = draw_plans(run, step, [0, 1])
        boxes += sum(plan.box is not None for plan in plans)
        images, expected = mix_batch(batch().images.double(), batch().labels, plans, 4)
        assert all(torch.equal(mine, other) for mine, other in zip(labels, expected, strict=True))
        rows = student.patch_embed(images.float())
        given = student.patch_embed(mixed.student.float())
        assert mixed.student.shape == (8, 16, 192)
        assert mixed.student.dtype == torch.bfloat16
        assert (given - rows).abs().max() < 2**-8 * 8  # 192 values of up to 4, weights up to 0.07
        if teacher_looks:
            assert ((mixed.teacher.double() - images).abs() <= 2**-8 * images.abs() + 1e-6).all()
    assert 0 < boxes < 12


def test_bytes_are_normalised_after_they_are_mixed():
    run = mini()
    pixels = torch.randint(256, (8, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = pixels.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    prepare = build_prepare(run, None, teacher_looks=True, precision="fp32")
    mixed, _ = prepare(batch()._replace(images=pixels), 0, [0, 1])
    expected, _ = mix_batch((pixels / 255 - mean) / std, batch().labels, draw_plans(run, 0, [0, 1]), 4)
    assert (mixed.teacher - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kernels", "erase", "expected"),
    [("triton", 0.0, True), ("batch_prep", 0.0, True), ("triton", 0.25, False), ("auto", 0.0, False)],
)
def test_the_loader_gives_bytes_only_to_the_kernel_and_without_erasing(kernels, erase, expected):
    run = replace(mini(kernels), augment=AugmentConfig(erase_probability=erase))
    assert kernel_normalizes(run) == expected


def test_timms_student_gets_images(monkeypatch):
    monkeypatch.setattr(registration, "_said", set())
    run = replace(mini(), model=replace(mini().model, name="resnet10t"), distill=DistillConfig(kind="none"))
    with pytest.warns(UserWarning, match="not for timm's resnet10t"):
        student = build_student(run, 10)
    prepare = build_prepare(run, student, teacher_looks=False, precision="fp32")
    mixed, _ = prepare(batch(), 0, [0, 1])
    assert mixed.student.shape == (8, 3, 32, 32)


LOSSES = {
    "none": (DistillConfig(kind="none"), LossConfig()),
    "bce": (DistillConfig(kind="none"), LossConfig("bce")),
    "hard": (DistillConfig(kind="hard", alpha=0.3), LossConfig()),
    "cached": (DistillConfig(kind="hard", label_cache="cache"), LossConfig()),
    "soft": (DistillConfig(kind="soft", temperature=3.0), LossConfig()),
    "batchmean": (DistillConfig(kind="soft", soft_normalization="batchmean"), LossConfig()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_fused_loss_is_the_reference(name):
    distill, loss = LOSSES[name]
    mix = MixConfig(label_smoothing=0.0 if loss.label == "bce" else 0.1)
    logits = torch.randn(3, 6, 11, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 3, 3, 5, 10, 3])
    labels = MixedLabels(label, label.flip(0), torch.tensor([0.0, 0.3, 0.3, 1.0, 0.7, 0.5]))
    answer = logits[2].argmax(dim=1) if name == "cached" else logits[2]
    found = []
    for backend in ("reference", "triton"):
        heads = [head.clone().requires_grad_() for head in logits[:2]]
        output = heads[0] if distill.kind == "none" else tuple(heads)
        value, part = build_loss(distill, mix, loss, backend)(output, labels, answer)
        value.backward()
        found.append([value.detach(), torch.zeros(()) + part, *(head.grad for head in heads if head.grad is not None)])
    assert len(found[0]) == len(found[1]) == (3 if distill.kind == "none" else 4)
    assert all(torch.allclose(mine, other, atol=1e-7) for mine, other in zip(*found, strict=True))


def test_cosub_stays_with_the_reference(monkeypatch):
    monkeypatch.setattr(registration, "_said", set())
    with pytest.warns(UserWarning, match="loss.cosub has no distill_loss in Triton: reference"):
        build_loss(DistillConfig(), MixConfig(label_smoothing=0), LossConfig("bce", True), "triton")


def test_a_step_with_every_kernel_asks_the_device_for_nothing(monkeypatch):
    """The twin of test_kernels_gpu.py's; on a CPU alone batch_prep looks at the partners."""
    monkeypatch.setattr(batch_prep_op, "_check", lambda *_arguments: None)
    step, _ = build_tiny_step("triton", "bf16")
    step(tiny_batch(), 0, [0, 1])
    with WaitsForTheDevice() as waits:
        step(tiny_batch(), 1, [0, 1])
    assert waits.seen == []
