"""Exported weights: plain timm loads them, and `deit-fast eval` scores them as the checkpoint."""

import json

import pytest
import timm
import torch

from deit_fast.cli import main
from deit_fast.export import export_weights
from deit_fast.model import create_student
from deit_fast.weights import load_weights, read_weights


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_plain_timm_loads_an_export(tmp_path, name):
    torch.manual_seed(0)
    model = create_student(name, num_classes=10, image_size_px=224, drop_path_rate=0.0, attention="auto").eval()
    torch.save({"model": model.state_dict(), "config": {"model": {"name": name}}, "classes": list("abcdefghij")},
               tmp_path / "step.pt")  # fmt: skip
    path = export_weights(str(tmp_path / "step.pt"), str(tmp_path / "weights.safetensors"))
    theirs = timm.create_model(name, num_classes=10, checkpoint_path=str(path)).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert (theirs(images) - model(images)).abs().max() < 1e-5
    assert read_weights(path).classes == list("abcdefghij")


def test_official_names_of_layer_scale_are_read(tmp_path):
    model = create_student("deit3_mini_patch8_32", num_classes=4, image_size_px=32, drop_path_rate=0, attention="auto")
    official = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value + 1
        for name, value in model.state_dict().items()
    }
    assert "blocks.0.gamma_1" in official
    torch.save({"model": official}, tmp_path / "official.pth")
    load_weights(model, read_weights(tmp_path / "official.pth"))
    assert torch.equal(model.blocks[0].ls1.gamma, official["blocks.0.gamma_1"])


def test_an_export_scores_as_its_checkpoint(few_digits, tmp_path, capsys):
    run = ["train", "--config", "demo_student", "--data.path", few_digits, "--checkpoint.dir", tmp_path / "run",
           "--schedule.epochs", 1, "--runtime.batch_size_per_device", 32, "--mix.group_size", 16]  # fmt: skip
    assert main([str(part) for part in run]) == 0
    out = tmp_path / "weights.safetensors"
    assert main(["export", "--checkpoint", str(tmp_path / "run" / "best.pt"), "--ema", "--out", str(out)]) == 0
    scores = []
    for arguments in ((out,), (tmp_path / "run" / "best.pt", "--ema")):
        command = ["eval", "--data.path", few_digits, "--json", tmp_path / "scores.json", "--checkpoint", *arguments]
        assert main([str(part) for part in command]) == 0
        scores.append(json.loads((tmp_path / "scores.json").read_text()))
    assert scores[0]["top1"] == scores[1]["top1"]
    assert scores[0]["model"]["name"] == "deit_mini_patch8_32"
    assert main(["export", "--checkpoint", str(out), "--out", str(tmp_path / "weights.pth")]) == 2
    assert "has to end in .safetensors" in capsys.readouterr().err
