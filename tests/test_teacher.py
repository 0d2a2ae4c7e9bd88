"""The teacher: frozen, channels-last, at its own normalisation and resolution; refused when its classes differ."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

from deit_fast.config import IMAGENET_MEAN, IMAGENET_STD, DistillConfig
from deit_fast.model import create_student
from deit_fast.teacher import build_teacher, full_name, random_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small ConvNet with 10 classes and batch norm that has seen something."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=10).train()
    for _ in range(3):
        model(torch.randn(8, 3, 32, 32))
    folder = tmp_path_factory.mktemp("teacher")
    torch.save({"model": model.state_dict()}, folder / "teacher.pth")
    safetensors.torch.save_file(model.state_dict(), folder / "teacher.safetensors")
    return folder / "teacher.pth"


def teacher(checkpoint, name="resnet10t", classes=10, mean=IMAGENET_MEAN, std=IMAGENET_STD, dtype=None, **distill):
    config = DistillConfig(kind="hard", teacher=name, teacher_checkpoint=str(checkpoint), **distill)
    return build_teacher(
        config, num_classes=classes, student_mean=mean, student_std=std, device=CPU, autocast_dtype=dtype
    )


def plain(checkpoint):
    model = timm.create_model("resnet10t", num_classes=10)
    model.load_state_dict(torch.load(checkpoint)["model"])
    return model.eval()


def test_logits_are_the_models_own(checkpoint):
    images = torch.randn(4, 3, 176, 176)
    with torch.no_grad():
        expected = plain(checkpoint)(images)
    built = teacher(checkpoint)
    assert built.image_size_px == 176  # timm's pretrained_cfg of resnet10t
    logits = built(images)
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert not logits.requires_grad
    assert not logits.is_inference()  # a tensor of inference mode could not enter the soft loss
    other = teacher(checkpoint.with_suffix(".safetensors"))
    assert torch.equal(other(images), logits)


def test_it_is_frozen_and_never_trains(checkpoint):
    built = teacher(checkpoint)
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    built(torch.randn(4, 3, 32, 32))
    assert not built.model.training
    assert not any(parameter.requires_grad for parameter in built.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in built.model.state_dict().items())
    assert built.model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_its_own_normalisation_is_honoured(checkpoint):
    """The same pixels, normalised for a student with other statistics, give the same logits."""
    pixels = torch.rand(4, 3, 176, 176)
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    expected = teacher(checkpoint)(normalised(IMAGENET_MEAN, IMAGENET_STD))
    logits = teacher(checkpoint, mean=mean, std=std)(normalised(mean, std))
    assert (logits - expected).abs().max() < 1e-3 * expected.abs().max()


def test_its_own_resolution_is_honoured(checkpoint):
    images = torch.randn(2, 3, 96, 96)
    resized = F.interpolate(images, (176, 176), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = plain(checkpoint)(resized)
    assert (teacher(checkpoint)(images) - expected).abs().max() < 1e-4 * expected.abs().max()
    as_student = teacher(checkpoint, teacher_image_size_px=96)
    with torch.no_grad():
        expected = plain(checkpoint)(images)
    assert (as_student(images) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_autocast(checkpoint):
    images = torch.randn(4, 3, 176, 176)
    full, half = teacher(checkpoint)(images), teacher(checkpoint, dtype=torch.bfloat16)(images.half())
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.05 * full.abs().max()


def test_the_default_name_means_the_official_weights():
    assert full_name("regnety_160") == "regnety_160.deit_in1k"
    cfg = timm.create_model(full_name("regnety_160"), num_classes=2).pretrained_cfg
    assert (cfg["input_size"], cfg["mean"]) == ((3, 224, 224), IMAGENET_MEAN)
    assert "dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth" in cfg["url"]
    assert full_name("regnety_032") == "regnety_032"


def test_wrong_teachers_are_refused_in_one_line(checkpoint):
    for arguments, message in (
        ({"name": "regnety_9"}, "unknown distill.teacher regnety_9"),
        ({"classes": 12}, "knows 10 classes, data.path has 12"),
        ({"name": "resnet18"}, "distill.teacher resnet18 does not fit distill.teacher_checkpoint"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            teacher(checkpoint, **arguments)
        assert "\n" not in str(error.value)


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError, match=r"regnety_160\.deit_in1k could not be downloaded .*teacher_checkpoint"):
        build_teacher(
            DistillConfig(kind="hard"),
            num_classes=1000,
            student_mean=IMAGENET_MEAN,
            student_std=IMAGENET_STD,
            device=CPU,
            autocast_dtype=None,
        )


def test_a_deit_teaches_from_its_checkpoint(tmp_path):
    """Not a model of timm by this name: it needs its checkpoint."""
    torch.manual_seed(0)
    name = "deit_mini_distilled_patch8_32"
    model = create_student(name, num_classes=10, image_size_px=32, drop_path_rate=0.0, attention="auto").eval()
    torch.save({"model": model.state_dict(), "config": {"model": {"image_size_px": 32}}}, tmp_path / "deit.pt")
    distill = DistillConfig(kind="hard", teacher=name, teacher_checkpoint=str(tmp_path / "deit.pt"))
    options = {"num_classes": 10, "student_mean": IMAGENET_MEAN, "student_std": IMAGENET_STD}
    teacher = build_teacher(distill, **options, device=torch.device("cpu"), autocast_dtype=None)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        cls, dist = model.forward_heads(images)
    torch.testing.assert_close(teacher(images), (cls + dist) / 2)
    with pytest.raises(ValueError, match="not a model of timm"):
        build_teacher(replace(distill, teacher_checkpoint=None), **options, device="cpu", autocast_dtype=None)


def test_a_random_teacher_is_read_like_any_other_and_leaves_nothing():
    """Of any number of classes; a checkpoint that is given stays."""
    with random_teacher(DistillConfig(kind="hard", teacher="test_resnet"), 7) as distill:
        built = teacher(distill.teacher_checkpoint, name="test_resnet", classes=7)
    assert built(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert not Path(distill.teacher_checkpoint).exists()
    for given in (DistillConfig(kind="none"), DistillConfig(kind="hard", teacher_checkpoint="mine.pth")):
        with random_teacher(given, 7) as distill:
            assert distill == given
