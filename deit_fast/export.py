"""`deit-fast export`: a checkpoint's weights as safetensors under timm's names, without optimizer and the rest."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from .weights import read_weights


def export_weights(checkpoint: str, out: str, *, ema: bool = False) -> Path:
    """Writes the weights, or their moving average, to `out`; returns its path.

    timm's `create_model(name, checkpoint_path=out)` and `deit-fast eval --checkpoint out` read it. The file's metadata
    hold the run's configuration and the names of its classes. ValueError for an `out` that is not .safetensors.
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ValueError(f"--out {out} has to end in .safetensors")
    weights = read_weights(checkpoint, ema=ema)
    metadata = {"format": "pt"}
    if weights.config is not None:
        metadata["config"] = json.dumps(weights.config)
    if weights.classes is not None:
        metadata["classes"] = json.dumps(list(weights.classes))
    partial = path.with_suffix(".partial")
    state_dict = {name: tensor.contiguous().clone() for name, tensor in weights.state_dict.items()}
    safetensors.torch.save_file(state_dict, partial, metadata=metadata)
    partial.replace(path)
    return path
