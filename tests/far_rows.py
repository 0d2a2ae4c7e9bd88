"""The last rows of very large tensors, whose places 32 bits do not count, against the same rows alone."""

import torch

from deit_fast.kernels.add_norm.op import add_norm_backward, add_norm_forward
from deit_fast.kernels.attention.op import attention_backward, attention_forward
from deit_fast.kernels.batch_prep import batch_prep
from deit_fast.kernels.gelu_bias.op import gelu_bias_backward, gelu_bias_forward

N, H, D, SIDE = 198, 12, 64, 224
C = H * D


def attention(values):
    """[B, N, 3, H, D]: output and gradient."""
    out, lse = attention_forward(values)
    return out, attention_backward(values, out, lse, out)


def add_norm(values):
    """[B, N, C]: sum, norm and both gradients."""
    column = torch.linspace(-1, 1, C, device=values.device)
    total, y, mean, rstd = add_norm_forward(values, values, column, column, column, None, None, None, 1e-6)
    rest = (column, column, None, None, None, len(values))
    return total, y, *add_norm_backward(None, y, total, mean, rstd, None, *rest)[:2]


def gelu_bias(values):
    """[B, 4 C]: output and gradient."""
    bias = torch.linspace(-1, 1, 4 * C, device=values.device)
    y = gelu_bias_forward(values, bias)
    return y, gelu_bias_backward(y, values, bias)[0]


def prep(values):
    """[B, side, side, 3], each image mixed with its neighbour: images and patches."""
    images = values.permute(0, 3, 1, 2)
    partner = torch.arange(len(values), device=values.device) ^ 1
    lam = torch.full((len(values),), 0.3, device=values.device)
    box = torch.zeros(len(values), 4, dtype=torch.int32, device=values.device)
    return batch_prep(images, partner, lam, box, dtype=torch.bfloat16, patch_size_px=16, backend="triton")


FAR_ROWS = {
    "attention": (attention, (N, 3, H, D)),
    "add_norm": (add_norm, (N, C)),
    "gelu_bias": (gelu_bias, (4 * C,)),
    "batch_prep": (prep, (SIDE, SIDE, 3)),
}


def check_far_row(name, count, device):
    """Of more than `count` values all are 0 but those of the last two rows."""
    function, shape = FAR_ROWS[name]
    row = torch.Size(shape).numel()
    batch = 2 * (count // (2 * row) + 2)
    last = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    values = torch.zeros(batch, *shape, dtype=torch.bfloat16, device=device)
    values[-2:] = last
    for far, alone in zip(function(values), function(last), strict=True):
        assert alone.abs().max() > 0
        assert torch.equal(far[-2:], alone)
