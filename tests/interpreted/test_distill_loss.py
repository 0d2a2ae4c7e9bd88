"""The loss kernel in the interpreter: value and gradient against the reference in fp64."""

import pytest
import torch

from deit_fast.kernels.distill_loss import LossTerms, distill_loss, distill_loss_parts
from deit_fast.kernels.distill_loss.op import example_inputs

TERMS = {
    "none": LossTerms(smoothing=0.1),
    "hard": LossTerms("hard", smoothing=0.1, alpha=0.3),
    "soft": LossTerms("soft", smoothing=0.1, temperature=3.0),
    "batchmean": LossTerms("soft", temperature=2.0, soft_normalization="batchmean"),
    "bce": LossTerms("none", "bce"),
    "bce_hard": LossTerms("hard", "bce", alpha=0.7),
}
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float16: 1e-6}


def value_and_gradients(inputs, terms, backend):
    inputs = {name: value.clone() for name, value in inputs.items()}
    leaves = [inputs[name].requires_grad_() for name in ("cls", "dist")]
    value = distill_loss(**inputs, terms=terms, backend=backend)
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach().double()] + [grad.double() for grad in grads if grad is not None]


def in_fp64(inputs):
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def check(inputs, terms):
    dtype = inputs["cls"].dtype
    truth = value_and_gradients(in_fp64(inputs), terms, "reference")
    eager, ours = value_and_gradients(inputs, terms, "reference"), value_and_gradients(inputs, terms, "triton")
    assert len(truth) == len(ours) == (2 if terms.kind == "none" else 3)
    for true, plain, mine in zip(truth, eager, ours, strict=True):
        scale = max(1.0, true.abs().max().item())
        assert (mine - true).abs().max() <= 2 * (plain - true).abs().max() + FLOOR[dtype] * scale


@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize(("batch", "classes"), [(1, 7), (3, 1000)])
def test_value_and_gradient(batch, classes, terms, dtype):
    check(example_inputs(batch, classes, dtype, "cpu"), terms)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_gradcheck(terms):
    inputs = example_inputs(2, 5, torch.float64, "cpu")
    leaves = [inputs.pop(name).requires_grad_() for name in ("cls", "dist")]
    assert torch.autograd.gradcheck(
        lambda cls, dist: distill_loss(cls=cls, dist=dist, **inputs, terms=terms, backend="triton"), leaves
    )


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_extreme_logits(terms, scale):
    inputs = example_inputs(3, 17, torch.float32, "cpu")
    for name in ("cls", "dist", "teacher"):
        inputs[name] *= scale
    check(inputs, terms)
    assert all(value.isfinite().all() for value in value_and_gradients(inputs, terms, "triton"))


def test_the_gradient_survives_fp16():
    """Soft distillation: 1e-7 after weight and 1/B, of which fp16 keeps multiples of 2^-24; scaled, all of it."""
    inputs = example_inputs(2, 1000, torch.float16, "cpu")
    terms = TERMS["soft"]
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("cls", "dist")}
    (2.0**16 * distill_loss(**(inputs | leaves), terms=terms, backend="triton")).backward()
    truth = value_and_gradients(in_fp64(inputs), terms, "reference")[2]
    assert torch.allclose(leaves["dist"].grad.double() / 2**16, truth, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_the_part_that_is_distillation(terms):
    inputs = example_inputs(3, 17, torch.float32, "cpu")
    truth = distill_loss_parts(**in_fp64(inputs), terms=terms).distillation
    part = distill_loss_parts(**inputs, terms=terms, backend="triton").distillation
    assert part.item() == pytest.approx(float(truth), rel=1e-5)
    assert (part != 0) == (terms.kind != "none")
    assert not part.requires_grad


@pytest.mark.parametrize("dtype", FLOOR)
def test_top_classes_of_a_cache_teach_as_the_logits_do(dtype):
    inputs = example_inputs(3, 21, dtype, "cpu")
    cached = inputs | {"teacher": inputs["teacher"].argmax(dim=1)}
    check(cached, TERMS["hard"])
    ours = (value_and_gradients(given, TERMS["hard"], "triton") for given in (inputs, cached))
    assert all(torch.equal(mine, other) for mine, other in zip(*ours, strict=True))


def test_the_last_program_adds_up_and_leaves_the_count_at_zero(monkeypatch):
    from deit_fast.kernels.distill_loss import triton as kernels

    monkeypatch.setattr(kernels, "SHARES_AT_A_TIME", 4)
    inputs = example_inputs(9, 5, torch.float32, "cpu")
    check(inputs, TERMS["hard"])
    values = {value_and_gradients(inputs, TERMS["hard"], "triton")[0].item() for _ in range(3)}
    assert len(values) == 1
    assert [counter.item() for counter in kernels._counters.values()] == [0]


def test_equal_teacher_logits_teach_the_lowest_class():
    inputs = example_inputs(2, 9, torch.float32, "cpu")
    inputs["teacher"] = torch.tensor([[0.0] * 9, [0, 1, 0, 1, 0, 0, 0, 0, 1]])
    check(inputs, TERMS["hard"])


def test_rows_may_be_anywhere():
    inputs = example_inputs(3, 21, torch.float32, "cpu")
    plain = value_and_gradients(inputs, TERMS["soft"], "triton")
    sliced = dict(inputs)
    for name in ("cls", "dist"):
        sliced[name] = torch.cat([inputs[name], inputs[name]], dim=1)[:, :21]
    sliced["teacher"] = inputs["teacher"].t().contiguous().t()
    leaves = [sliced[name].detach().requires_grad_() for name in ("cls", "dist")]
    value = distill_loss(
        **(sliced | dict(zip(("cls", "dist"), leaves, strict=True))), terms=TERMS["soft"], backend="triton"
    )
    assert torch.equal(value.double(), plain[0])
    for grad, expected in zip(torch.autograd.grad(value, leaves), plain[1:], strict=True):
        assert torch.equal(grad.double(), expected)
