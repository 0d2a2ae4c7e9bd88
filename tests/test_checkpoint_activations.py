"""Blocks that are computed again in the backward: the same gradients from less memory."""

from dataclasses import replace

import pytest
import torch

from deit_fast.config import Config, DataConfig, ModelConfig, RuntimeConfig
from deit_fast.config_rules import check_config
from deit_fast.drop_path import draw_drop_path_scale, draw_kept_samples
from deit_fast.model import create_student
from deit_fast.student import build_student, compile_blocks

VIEWS = torch.arange(4)
DROPS = {
    "none": None,
    "independent": draw_drop_path_scale(0, 1, VIEWS, rate=0.3, depth=6),
    "subset": draw_kept_samples(0, 1, VIEWS, group_size=4, rate=0.3, depth=6),
}


def mini(name):
    torch.manual_seed(0)
    return create_student(name, num_classes=10, image_size_px=32, drop_path_rate=0, attention="auto").train()


def gradients_and_saved_bytes(model, drop_path):
    """In bf16, as training computes; the bytes are those that the forward keeps for the backward."""
    torch.manual_seed(1)
    images, saved = torch.randn(4, 3, 32, 32), {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(images, drop_path)
        loss = sum(head.float().square().sum() for head in (output if isinstance(output, tuple) else (output,)))
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, sum(saved.values())


@pytest.mark.parametrize("drop_path", DROPS)
@pytest.mark.parametrize("name", ["deit_mini_distilled_patch8_32", "deit3_mini_patch8_32"])
def test_the_gradients_are_the_same_bits_from_less_memory(name, drop_path):
    model = mini(name)
    kept, bytes_kept = gradients_and_saved_bytes(model, DROPS[drop_path])
    model.set_grad_checkpointing()
    again, bytes_again = gradients_and_saved_bytes(model, DROPS[drop_path])
    assert all(torch.equal(again[key], value) for key, value in kept.items())
    assert bytes_again < bytes_kept / 2


@pytest.mark.slow
def test_compiled_blocks_too():
    model = mini("deit_mini_distilled_patch8_32")
    kept, _ = gradients_and_saved_bytes(model, DROPS["independent"])
    model.set_grad_checkpointing()
    torch.compiler.reset()
    compile_blocks(model, backend="aot_eager")
    again, _ = gradients_and_saved_bytes(model, DROPS["independent"])
    for key, value in kept.items():
        assert (again[key] - value).norm() <= 0.01 * value.norm() + 1e-6, key


def config(name, **runtime):
    model = ModelConfig(name=name, image_size_px=32)
    return replace(
        Config(),
        model=model,
        data=DataConfig(),
        runtime=RuntimeConfig(checkpoint_activations=True, **runtime),
    )


def test_the_option_reaches_own_and_timms_models():
    assert build_student(config("deit_mini_patch8_32"), 10).checkpoint_blocks
    assert build_student(config("vit_tiny_patch16_224"), 10).grad_checkpointing
    with pytest.raises(ValueError, match=r"checkpoint_activations is true, but model.name cs3darknet_s of timm cannot"):
        build_student(config("cs3darknet_s"), 10)


def test_cuda_graphs_are_refused_beside_it():
    with pytest.raises(ValueError, match=r"runtime.cuda_graphs replays .* runtime.checkpoint_activations"):
        check_config(config("deit_mini_patch8_32", compile=True, cuda_graphs=True))
