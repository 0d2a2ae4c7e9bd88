"""Fake tensors have the shapes and strides that the Triton launchers give: here the launchers run on CPU tensors."""

import pytest
import torch

from deit_fast.kernels.add_norm import op as add_norm_op
from deit_fast.kernels.attention import op as attention_op
from deit_fast.kernels.batch_prep import op as batch_prep_op
from deit_fast.kernels.distill_loss import op as distill_loss_op
from deit_fast.kernels.gelu_bias import op as gelu_bias_op


def attention_calls(dtype):
    qkv = attention_op.example_inputs(5, dtype, "cpu", batch=1, heads=1, head_dim=16)
    out, lse = attention_op.attention_forward(qkv)
    yield attention_op.attention_forward, (qkv.transpose(0, 1).contiguous().transpose(0, 1),)
    yield attention_op.attention_backward, (qkv, out, lse, torch.ones(1, 1, 1, dtype=dtype).expand_as(out))


def loss_calls(dtype):
    inputs = distill_loss_op.example_inputs(2, 9, dtype, "cpu")
    labels = (inputs["label_a"], inputs["label_b"], inputs["lam"])
    plain_terms = ("ce", 0.1, 0.5, 1.0, "official")
    hard = (inputs["cls"], inputs["dist"], inputs["teacher"], *labels, "hard", *plain_terms)
    value, _, *grads = distill_loss_op.distill_loss_forward(*hard)
    yield distill_loss_op.distill_loss_forward, hard
    cached = (inputs["cls"], inputs["dist"], inputs["teacher"].argmax(dim=1))
    yield distill_loss_op.distill_loss_forward, (*cached, *labels, "hard", *plain_terms)
    yield distill_loss_op.distill_loss_forward, (inputs["cls"], None, None, *labels, "none", *plain_terms)
    yield distill_loss_op.distill_loss_backward, (*grads, torch.ones_like(value), dtype)


def prep_calls(dtype):
    inputs = tuple(batch_prep_op.example_inputs(2, 16, dtype, "cpu").values())
    for channels_last, patch_size_px in ((True, 8), (False, 16), (True, 0)):
        yield batch_prep_op.batch_prep_op, (*inputs, None, None, torch.bfloat16, channels_last, patch_size_px)


def norm_calls(dtype):
    inputs = add_norm_op.example_inputs(2, 3, 24, dtype, "cpu")
    forward = (*inputs.values(), None, 1e-6)
    total, y, mean, rstd = add_norm_op.add_norm_forward(*forward)
    rest = [inputs[name] for name in ("branch", "weight", "bias", "layer_scale", "drop_path_scale")]
    yield add_norm_op.add_norm_forward, forward
    yield add_norm_op.add_norm_backward, (None, y, total, mean, rstd, *rest, None, 2)
    without_layer_scale = (None, inputs["weight"], inputs["bias"], None, inputs["drop_path_scale"])
    slot = torch.tensor([0, -1], dtype=torch.int32)
    yield add_norm_op.add_norm_backward, (total, y, total, mean, rstd, *without_layer_scale, slot, 1)


def gelu_calls(dtype):
    x, bias = gelu_bias_op.example_inputs(6, 20, dtype, "cpu")
    yield gelu_bias_op.gelu_bias_forward, (x.t().contiguous().t(), bias)
    yield gelu_bias_op.gelu_bias_backward, (torch.ones(1, 1, dtype=dtype).expand_as(x), x, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("calls", [attention_calls, loss_calls, prep_calls, norm_calls, gelu_calls])
def test_fake_outputs_are_those_of_the_launcher(calls, dtype):
    for op, arguments in calls(dtype):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
