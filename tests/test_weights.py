"""Weights from files: every known wrapping, positions at another resolution, and files that do not fit."""

import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed

from deit_fast.model import create_student
from deit_fast.variants import DEIT_VARIANTS
from deit_fast.weights import infer_name, interpolate_pos_embed, load_weights, num_classes, read_weights

MINI = "deit_mini_distilled_patch8_32"


def mini(classes=10, name=MINI, size=32):
    return create_student(name, num_classes=classes, image_size_px=size, drop_path_rate=0.0, attention="auto")


@pytest.mark.parametrize("wrapping", ["bare", "official", "timm", "ddp", "safetensors"])
def test_every_wrapping_is_read(tmp_path, wrapping):
    state = {name: value.clone() for name, value in mini().state_dict().items()}
    content = {
        "bare": state,
        "official": {"model": state, "epoch": 3},
        "timm": {"state_dict": state, "arch": "deit"},
        "ddp": {"model": {f"module.{name}": value for name, value in state.items()}},
        "safetensors": None,
    }[wrapping]
    path = tmp_path / ("weights.safetensors" if wrapping == "safetensors" else "weights.pth")
    if wrapping == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(content, path)
    model = mini()
    load_weights(model, read_weights(path))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert num_classes(read_weights(path).state_dict) == 10


def test_the_moving_average_is_read_when_asked_for(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"model": {"w": torch.zeros(1)}, "model_ema": {"w": torch.ones(1)}}, path)
    assert read_weights(path).state_dict["w"].item() == 0
    assert read_weights(path, ema=True).state_dict["w"].item() == 1
    torch.save({"model": {"w": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match="holds no moving average"):
        read_weights(path, ema=True)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "weights.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read as weights") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_named(tmp_path, content):
    for name in ("weights.pth", "weights.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights") as error:
            read_weights(path)
        assert "\n" not in str(error.value)


def test_a_missing_file_or_one_without_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match="do not exist"):
        read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_weights(tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not weights"):
        read_weights(tmp_path / "list.pth")


@pytest.mark.parametrize(("old", "new"), [(14, 24), (4, 7)])
def test_positions_are_interpolated_as_timm_without_antialiasing(old, new):
    pos_embed = torch.randn(1, 2 + old * old, 48)
    ours = interpolate_pos_embed(pos_embed, 2 + new * new, 2)
    theirs = resample_abs_pos_embed(pos_embed, [new, new], num_prefix_tokens=2, antialias=False)
    assert (ours - theirs).abs().max() < 1e-6
    assert torch.equal(ours[:, :2], pos_embed[:, :2])


def test_weights_load_at_another_resolution():
    torch.manual_seed(0)
    small, large = mini(), mini(size=48)
    load_weights(large, small.state_dict())
    expected = interpolate_pos_embed(small.state_dict()["pos_embed"], 2 + 36, 2)
    assert torch.equal(large.state_dict()["pos_embed"], expected)
    assert large(torch.randn(1, 3, 48, 48))[0].shape == (1, 10)


def test_weights_of_another_model_are_refused_and_change_nothing():
    model = mini()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"cls_token is \(1, 1, 192\), here \(1, 1, 96\)"):
        load_weights(model, timm.create_model("deit_tiny_distilled_patch16_224").state_dict())
    with pytest.raises(ValueError, match="dist_token is missing"):
        load_weights(model, mini(name="deit_mini_patch8_32").state_dict())
    with pytest.raises(ValueError, match=r"head.weight is \(7, 96\), here \(10, 96\)"):
        load_weights(model, mini(classes=7).state_dict())
    with pytest.raises(ValueError, match="odd has no place here"):
        load_weights(model, {**model.state_dict(), "odd": torch.zeros(1)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fine_tuning_keeps_new_heads():
    torch.manual_seed(0)
    trained, model = mini(classes=7), mini(classes=10)
    head = model.head.weight.clone()
    load_weights(model, trained.state_dict(), finetune=True)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.blocks[5].mlp.fc2.weight, trained.blocks[5].mlp.fc2.weight)


@pytest.mark.parametrize("name", DEIT_VARIANTS)
def test_the_name_is_found_by_shapes(name):
    with torch.device("meta"):
        model = mini(name=name, size=DEIT_VARIANTS[name].image_size_px)
    assert infer_name(model.state_dict()) == name
    assert infer_name({"conv1.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_pretrained_backbone_of_timm_is_fine_tuned_at_another_resolution(name, caplog):
    """As MAE, BEiT and DINO leave them: no head for our classes, a decoder, and positions of 224 px."""
    torch.manual_seed(0)
    pretrained = timm.create_model(name, num_classes=0)
    state_dict = pretrained.state_dict() | {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.bias": torch.zeros(8)}
    patch = pretrained.patch_embed.patch_size[0]
    model = create_student(name, num_classes=5, image_size_px=6 * patch, drop_path_rate=0.1, attention="auto")
    head = model.head.weight.clone()
    load_weights(model, state_dict, finetune=True)
    assert "decoder" in caplog.text or "mask_token" in caplog.text
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.blocks[3].mlp.fc2.weight, pretrained.blocks[3].mlp.fc2.weight)
    assert model(torch.randn(1, 3, 6 * patch, 6 * patch)).shape == (1, 5)
