"""The add + norm kernels in the interpreter: outputs and all gradients against the reference in fp64."""

import pytest
import torch

from deit_fast.kernels.add_norm import add_norm, branch_slots
from deit_fast.kernels.add_norm.op import example_inputs

FLOOR = {torch.float32: 2e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4}
LEAVES = ("x", "branch", "weight", "shift", "bias", "layer_scale")


def results(inputs, grads, backend, use_total=True):
    """x', y, and the gradients of all that has one."""
    inputs = {name: value.clone() for name, value in inputs.items()}
    leaves = {name: inputs[name].requires_grad_() for name in LEAVES if name in inputs}
    total, y = add_norm(**inputs, backend=backend)
    objective = (y * grads[1].to(y.dtype)).sum()
    if use_total:
        objective = objective + (total * grads[0].to(total.dtype)).sum()
    found = {"total": total.detach(), "y": y.detach()}
    found |= dict(zip(leaves, torch.autograd.grad(objective, list(leaves.values())), strict=True))
    return {name: value.double() for name, value in found.items()}


def in_fp64(inputs):
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def check(inputs, use_total=True):
    generator = torch.Generator().manual_seed(2)
    grads = torch.randn((2, *inputs["x"].shape), generator=generator)
    dtype = inputs["branch"].dtype
    truth = results(in_fp64(inputs), grads, "reference", use_total)
    eager, ours = (results(inputs, grads, backend, use_total) for backend in ("reference", "triton"))
    for name, true in truth.items():
        scale = max(1.0, true.abs().max().item())
        allowed = 2 * (eager[name] - true).abs().max() + FLOOR[dtype] * scale
        assert (ours[name] - true).abs().max() <= allowed, name


@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize(("batch", "tokens", "embed_dim"), [(3, 7, 96), (1, 1, 192), (2, 5, 768)])
def test_outputs_and_gradients(batch, tokens, embed_dim, dtype):
    check(example_inputs(batch, tokens, embed_dim, dtype, "cpu"))


@pytest.mark.parametrize("leave_out", [("bias",), ("layer_scale",), ("drop_path_scale",), ("bias", "layer_scale")])
def test_parts_may_be_missing(leave_out):
    inputs = example_inputs(3, 5, 48, torch.bfloat16, "cpu")
    check({name: value for name, value in inputs.items() if name not in leave_out})


@pytest.mark.parametrize("kept", [[2, 0], [1]])
def test_a_subset_of_the_batch(kept):
    inputs = example_inputs(3, 5, 48, torch.float32, "cpu")
    kept = torch.tensor(kept, dtype=torch.int64)
    inputs |= {
        "branch": inputs["branch"][kept],
        "branch_slot": branch_slots(kept, 3),
        "drop_path_scale": torch.full((3,), 1.5),
    }
    check(inputs)


def test_a_residual_in_bf16():
    check(example_inputs(2, 5, 48, torch.bfloat16, "cpu", residual_dtype=torch.bfloat16))


def test_without_a_gradient_of_the_residual():
    """The last norm of a network: nobody reads x' but the norm."""
    check(example_inputs(2, 5, 48, torch.float32, "cpu"), use_total=False)


def test_gradcheck():
    inputs = example_inputs(2, 3, 16, torch.float64, "cpu")
    leaves = [inputs.pop(name).requires_grad_() for name in LEAVES]

    def function(*values):
        return add_norm(**dict(zip(LEAVES, values, strict=True)), **inputs, backend="triton")

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_rows_of_one_value(value):
    """No variance but eps: y is the shift."""
    inputs = example_inputs(1, 2, 48, torch.float32, "cpu")
    inputs = {name: inputs[name] for name in ("x", "branch", "weight", "shift")}
    inputs |= {"x": torch.full_like(inputs["x"], value), "branch": torch.zeros_like(inputs["branch"])}
    _, y = add_norm(**inputs, backend="triton")
    assert torch.allclose(y, inputs["shift"].expand_as(y), atol=1e-5)


def test_any_strides_and_the_same_bits():
    inputs = example_inputs(2, 6, 48, torch.float32, "cpu")
    grads = torch.ones(2, 1, 1, 1).expand(2, 2, 6, 48)
    plain = results(inputs, grads, "triton")
    moved = dict(inputs)
    for name in ("x", "branch"):
        moved[name] = torch.cat([inputs[name]] * 2, dim=1)[:, :6]
    again = results(moved, grads.contiguous(), "triton")
    assert all(torch.equal(plain[name], again[name]) for name in plain)
