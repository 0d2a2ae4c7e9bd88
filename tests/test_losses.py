"""The losses against timm's modules and the official formulas."""

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from deit_fast.config import DistillConfig, LossConfig, MixConfig
from deit_fast.losses import (
    binary_label_loss,
    build_loss,
    hard_distillation_loss,
    label_loss,
    soft_distillation_loss,
)
from deit_fast.mixing import MixedLabels

B, C = 8, 11


@pytest.fixture
def logits():
    return torch.randn(3, B, C, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    label = torch.randint(C, (B,), generator=torch.Generator().manual_seed(1))
    return MixedLabels(label, label.flip(0), torch.full((B,), 0.3))


def test_mixed_labels_are_timms_soft_targets(logits, labels):
    target = mixup_target(labels.label_a, C, lam=0.3, smoothing=0.1)
    theirs = SoftTargetCrossEntropy()(logits[0], target)
    assert label_loss(logits[0], labels, 0.1).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_unmixed_labels_are_timms_label_smoothing(logits, labels):
    unmixed = labels._replace(lam=torch.ones(B))
    theirs = LabelSmoothingCrossEntropy(0.1)(logits[0], labels.label_a)
    assert label_loss(logits[0], unmixed, 0.1).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_soft_distillation_divides_as_asked(logits):
    student, teacher, T = logits[0], logits[1], 3.0
    kl = F.kl_div(F.log_softmax(student / T, 1), F.log_softmax(teacher / T, 1), reduction="batchmean", log_target=True)
    assert soft_distillation_loss(student, teacher, T, "batchmean").item() == pytest.approx((kl * T * T).item())
    official = soft_distillation_loss(student, teacher, T, "official").item()
    assert official == pytest.approx((kl * T * T / C).item())


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_whole_loss_is_the_official_formula(logits, labels, kind):
    cls, dist, teacher = logits
    config = DistillConfig(kind=kind, alpha=0.25, temperature=2.0)
    output = (cls, dist.clone().requires_grad_())
    loss, part = build_loss(config, MixConfig(label_smoothing=0.1))(output, labels, teacher)
    assert not part.requires_grad
    base = SoftTargetCrossEntropy()(cls, mixup_target(labels.label_a, C, lam=0.3, smoothing=0.1))
    if kind == "hard":
        distillation = F.cross_entropy(dist, teacher.argmax(dim=1))
    else:
        student, target = F.log_softmax(dist / 2, dim=1), F.log_softmax(teacher / 2, dim=1)
        distillation = F.kl_div(student, target, reduction="sum", log_target=True) * 4 / dist.numel()
    assert part.item() == pytest.approx(distillation.item() * 0.25, rel=1e-6)
    assert loss.item() == pytest.approx((base * 0.75 + distillation * 0.25).item(), rel=1e-6)


def test_without_distillation_the_teacher_is_not_asked(logits, labels):
    loss = build_loss(DistillConfig(kind="none"), MixConfig(label_smoothing=0.1))
    total, part = loss(logits[0], labels, None)
    assert torch.equal(total, label_loss(logits[0], labels, 0.1))
    assert part == 0


def test_equal_teacher_scores_give_the_lowest_class(logits):
    teacher = torch.zeros(B, C)
    zeros = torch.zeros(B, dtype=torch.long)
    assert torch.equal(hard_distillation_loss(logits[0], teacher), F.cross_entropy(logits[0], zeros))


def test_low_precision_logits_are_summed_in_fp32(logits, labels):
    loss = label_loss(logits[0].bfloat16(), labels, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == label_loss(logits[0].bfloat16().float(), labels, 0.1).item()


def test_gradients(logits, labels):
    student, teacher = logits[0].double().requires_grad_(), logits[1].double()
    exact = labels._replace(lam=labels.lam.double())
    assert torch.autograd.gradcheck(lambda x: label_loss(x, exact, 0.1), student)
    assert torch.autograd.gradcheck(lambda x: hard_distillation_loss(x, teacher), student)
    assert torch.autograd.gradcheck(lambda x: soft_distillation_loss(x, teacher, 3.0, "official"), student)


@pytest.mark.parametrize(
    ("config", "named"), [({"alpha": 1.5}, "distill.alpha"), ({"temperature": 0.0}, "distill.temperature")]
)
def test_values_out_of_range_are_named(config, named):
    with pytest.raises(ValueError, match=named):
        build_loss(DistillConfig(kind="soft", **config), MixConfig())


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_binary_loss_is_torchs_on_the_official_targets(logits, lam):
    """engine.py: `targets = targets.gt(0.0).type(targets.dtype)` on timm's mixed targets, smoothing 0."""
    label = torch.tensor([0, 3, 3, 5, 7, 3, 1, 2])
    labels = MixedLabels(label, label.flip(0), torch.full((B,), lam))
    target = mixup_target(label, C, lam=lam, smoothing=0.0).gt(0.0).float()
    theirs = F.binary_cross_entropy_with_logits(logits[0], target)
    assert binary_label_loss(logits[0], labels).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_cosub_is_the_published_sum(logits, labels):
    """0.25 [L(o1, y) + L(o2, y) + L(o1, sigmoid(o2)) + L(o2, sigmoid(o1))], L with logits, targets detached."""
    one, other = logits[0].clone().requires_grad_(), logits[1].clone().requires_grad_()
    target = mixup_target(labels.label_a, C, lam=0.3, smoothing=0.0).gt(0.0).float()
    L = F.binary_cross_entropy_with_logits
    theirs = 0.25 * (
        L(one, target) + L(other, target) + L(one, other.detach().sigmoid()) + L(other, one.detach().sigmoid())
    )
    expected = torch.autograd.grad(theirs, [one, other])
    ours = build_loss(DistillConfig(), MixConfig(label_smoothing=0), LossConfig("bce", True))(
        torch.cat([one, other]), labels, None
    ).total
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for mine, their in zip(torch.autograd.grad(ours, [one, other]), expected, strict=True):
        assert torch.allclose(mine, their, atol=1e-7)
