"""Bytes that were counted without computing anything, against what real forwards and torch's allocator take."""

import pytest
import timm
import torch
from torch.profiler import ProfilerActivity, profile

from deit_fast.activations import FEW_IMAGES, MANY_IMAGES, count_activations, count_inference
from deit_fast.model import create_student
from deit_fast.precision import autocast

CPU = torch.device("cpu")
MINI = ("deit_mini_distilled_patch8_32", 32)


def student(name, image_size_px):
    return create_student(
        name, num_classes=1000, image_size_px=image_size_px, drop_path_rate=0.0, attention="sdpa"
    ).train()


def measured_saved_bytes(model, image_size_px, precision, count):
    """Of a real forward: each storage that is kept for the backward, but for the weights."""
    saved = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(precision, CPU):
        output = model(torch.randn(count, 3, image_size_px, image_size_px))
    assert output is not None  # held until here, and with it all that was saved
    return sum(size for pointer, size in saved.items() if pointer not in weights)


def check_saved_bytes(name, image_size_px, precision, checkpointed, few=1, many=3):
    model = student(name, image_size_px)
    model.set_grad_checkpointing(checkpointed)
    taken = [measured_saved_bytes(model, image_size_px, precision, count) for count in (few, many)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    counted = count_activations(model, image_size_px, precision).saved_bytes_per_image
    assert counted == pytest.approx((taken[1] - taken[0]) / (many - few), rel=0.05)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # counting left it alone


@pytest.mark.parametrize(("precision", "checkpointed"), [("bf16", False), ("bf16", True)])
def test_saved_bytes_are_those_of_a_real_forward(precision, checkpointed):
    check_saved_bytes(*MINI, precision, checkpointed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_size_px", "precision"),
    [
        ("deit_base_distilled_patch16_224", 224, "bf16"),
        ("deit_small_distilled_patch16_384", 384, "bf16"),
        ("deit_tiny_distilled_patch16_224", 224, "fp32"),
        ("resnet50", 224, "bf16"),
    ],
)
def test_saved_bytes_of_real_sizes(name, image_size_px, precision):
    check_saved_bytes(name, image_size_px, precision, checkpointed=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "C"), [("deit_tiny_distilled_patch16_224", 192), ("deit_base_distilled_patch16_224", 768)]
)
def test_the_documented_formula(name, C):
    """docs/plan.md: 36 N C bytes a block in bf16, and 10 N C of the last, which computes two tokens."""
    N, depth = 198, 12
    counted = count_activations(student(name, 224), 224, "bf16").saved_bytes_per_image
    assert counted == pytest.approx(((depth - 1) * 36 + 10) * N * C, rel=0.05)


def peak_of_allocator(run):
    """Most bytes held at once during `run`, by the record of torch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_peak_is_that_of_torchs_allocator(checkpointed):
    """Within 10 %: the engine adds gradients up in place where nobody looks, the count holds both for a moment."""
    model = student(*MINI)
    model.set_grad_checkpointing(checkpointed)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))

    def peak(count):
        images = torch.randn(count, 3, 32, 32)

        def step():
            with autocast("bf16", CPU):
                logits = torch.cat(model(images))
            logits.float().sum().backward()

        step()  # what is allocated once
        return peak_of_allocator(step)

    measured = (peak(MANY_IMAGES) - peak(FEW_IMAGES)) / (MANY_IMAGES - FEW_IMAGES)
    counted = count_activations(model, 32, "bf16")
    assert counted.peak_bytes_per_image == pytest.approx(measured, rel=0.10)
    assert counted.peak_bytes_per_image > counted.saved_bytes_per_image


def test_inference_holds_little_of_what_training_keeps():
    """A ConvNet's widest moment: input and output of one of its largest operations."""
    with torch.device("meta"):
        model = timm.create_model("resnet10t", num_classes=10)
    widest = 64 * 32 * 32 * 2  # bf16, 64 channels after the stem's stride
    assert widest < count_inference(model, 64, "bf16") <= 3 * widest
