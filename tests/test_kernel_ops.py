"""The operators as torch sees them: registration, and closed-form gradients on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD
from deit_fast.kernels.add_norm import op as add_norm_op
from deit_fast.kernels.attention import op as attention_op
from deit_fast.kernels.batch_prep import batch_prep, patch_weight
from deit_fast.kernels.batch_prep import op as batch_prep_op
from deit_fast.kernels.distill_loss import LossTerms, distill_loss
from deit_fast.kernels.distill_loss import op as distill_loss_op
from deit_fast.kernels.gelu_bias import op as gelu_bias_op


def leaf(tensor):
    return tensor.detach().requires_grad_()


def attention_arguments(dtype=torch.float32):
    return (leaf(attention_op.example_inputs(5, dtype, "cpu", head_dim=16)),)


def loss_arguments(dtype=torch.float32):
    inputs = distill_loss_op.example_inputs(3, 11, dtype, "cpu")
    logits = (leaf(inputs["cls"]), leaf(inputs["dist"]), inputs["teacher"])
    return (*logits, inputs["label_a"], inputs["label_b"], inputs["lam"], "hard", "ce", 0.1, 0.5, 1.0, "official")


def prep_arguments(dtype=torch.float32):
    inputs = batch_prep_op.example_inputs(2, 16, dtype, "cpu")
    return (*inputs.values(), None, None, torch.bfloat16, True, 8)


def norm_arguments(dtype=torch.float32):
    inputs = add_norm_op.example_inputs(3, 4, 24, dtype, "cpu")
    leaves = [leaf(inputs[name]) for name in ("x", "branch", "weight", "shift", "bias", "layer_scale")]
    return (*leaves, inputs["drop_path_scale"], None, 1e-6)


def gelu_arguments(dtype=torch.float32):
    return tuple(leaf(value) for value in gelu_bias_op.example_inputs(6, 20, dtype, "cpu"))


OPS = {
    "attention": (attention_op.attention_forward, attention_arguments),
    "distill_loss": (distill_loss_op.distill_loss_forward, loss_arguments),
    "batch_prep": (batch_prep_op.batch_prep_op, prep_arguments),
    "add_norm": (add_norm_op.add_norm_forward, norm_arguments),
    "gelu_bias": (gelu_bias_op.gelu_bias_forward, gelu_arguments),
}


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    """Schema, fake tensors (shapes and strides), registration of autograd, and tracing with symbolic shapes."""
    op, arguments = OPS[name]
    torch.library.opcheck(op, arguments())


def backward_arguments(name):
    """Of each backward operator: what its forward saved, and an incoming gradient that is expanded."""
    op, arguments = OPS[name]
    values = [v.detach() if isinstance(v, torch.Tensor) else v for v in arguments()]
    outputs = op(*values)
    if name == "attention":
        return (values[0], *outputs, torch.ones(1, 1, 1).expand_as(outputs[0]))
    if name == "distill_loss":
        return (*outputs[2:], torch.ones_like(outputs[0]), torch.float32)
    if name == "add_norm":
        total, y, mean, rstd = outputs
        _, branch, weight, _, bias, gamma, drop_path, slot, _ = values
        grad_y = torch.ones(1, 1, 1).expand_as(y)
        return (None, grad_y, total, mean, rstd, branch, weight, bias, gamma, drop_path, slot, len(branch))
    return (torch.ones(1, 1).expand_as(outputs), *values)


BACKWARD_OPS = {
    "attention": attention_op.attention_backward,
    "distill_loss": distill_loss_op.distill_loss_backward,
    "add_norm": add_norm_op.add_norm_backward,
    "gelu_bias": gelu_bias_op.gelu_bias_backward,
}


@pytest.mark.parametrize("name", BACKWARD_OPS)
def test_opcheck_of_the_backward(name):
    torch.library.opcheck(BACKWARD_OPS[name], backward_arguments(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPS)
def test_fake_tensors_in_half_precision(name, dtype):
    op, arguments = OPS[name]
    torch.library.opcheck(op, arguments(dtype), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["attention", "distill_loss", "add_norm", "gelu_bias"])
def test_gradients_in_closed_form(name):
    op, arguments = OPS[name]
    values = arguments(torch.float64)
    leaves = [value for value in values if isinstance(value, torch.Tensor) and value.requires_grad]

    def function(*given):
        given = iter(given)
        filled = [next(given) if isinstance(v, torch.Tensor) and v.requires_grad else v for v in values]
        outputs = op(*filled)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(out for out in outputs if out.requires_grad)

    assert torch.autograd.gradcheck(function, leaves)


def test_the_loss_is_torchs():
    """Value and gradient against F.cross_entropy and F.kl_div on dense targets, through the operator."""
    inputs = distill_loss_op.example_inputs(4, 9, torch.float64, "cpu")
    cls, dist = leaf(inputs["cls"]), leaf(inputs["dist"])
    terms = LossTerms("soft", smoothing=0.1, alpha=0.3, temperature=2.0)
    ours = distill_loss(**(inputs | {"cls": cls, "dist": dist}), terms=terms, backend="triton")
    lam = inputs["lam"][:, None]
    one_hot = [F.one_hot(inputs[label], 9) for label in ("label_a", "label_b")]
    base = F.cross_entropy(cls, lam * one_hot[0] + (1 - lam) * one_hot[1], label_smoothing=0.1)
    logs = [F.log_softmax(logits / 2, dim=1) for logits in (dist, inputs["teacher"])]
    theirs = 0.7 * base + 0.3 * F.kl_div(*logs, reduction="sum", log_target=True) * 4 / dist.numel()
    assert torch.allclose(ours, theirs)
    for mine, expected in zip(*(torch.autograd.grad(loss, (cls, dist)) for loss in (ours, theirs)), strict=True):
        assert torch.allclose(mine, expected)


def test_patch_rows_times_the_weight_are_the_convolution():
    inputs = batch_prep_op.example_inputs(2, 32, torch.float32, "cpu")
    prepared = batch_prep(**inputs, dtype=torch.float32, patch_size_px=16)
    conv = nn.Conv2d(3, 10, 16, 16)
    expected = conv(prepared.images).flatten(2).transpose(1, 2)
    assert torch.allclose(F.linear(prepared.patches, patch_weight(conv.weight), conv.bias), expected, atol=1e-4)


@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
def test_compiled_batch_preparation(source):
    inputs = batch_prep_op.example_inputs(2, 16, source, "cpu")
    normal = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if source == torch.uint8 else {}

    def function(**given):
        return batch_prep(**given, **normal, dtype=torch.float32, patch_size_px=8, backend="triton")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(compiled, function(**inputs), strict=True))
