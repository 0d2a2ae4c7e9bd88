"""Weights from files: own checkpoints, timm's, the official ones; never executing what a file holds."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from .model import DeiT
from .variants import DEIT_VARIANTS

logger = logging.getLogger("deit_fast")

StateDict = dict[str, Tensor]
GAMMA = re.compile(r"gamma_([12])$")
"""LayerScale in the official DeiT III checkpoints, `blocks.i.gamma_1`; timm and we say `blocks.i.ls1.gamma`."""


@dataclass(frozen=True)
class Weights:
    """A state dict, and what a checkpoint of this trainer tells beside it (None for other files)."""

    path: Path
    state_dict: StateDict
    config: dict[str, Any] | None = None
    classes: list[str] | None = None


def read_weights(path: str | Path, *, ema: bool = False) -> Weights:
    """Reads .safetensors, or .pt/.pth/.bin with `weights_only`; `ema` asks for the moving average.

    Unwraps {"model": ...} (own and official files), {"state_dict": ...} and the prefix "module.". ValueError, naming
    the file, when it is missing, cannot be read, holds no weights, or has no moving average to give.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights {path} do not exist")
    content = _read_file(path)
    config, classes = content.get("config"), content.get("classes")
    names = ("model_ema", "state_dict_ema") if ema else ("model", "state_dict")
    found = next((content[name] for name in names if isinstance(content.get(name), Mapping)), None)
    if ema and found is None:
        raise ValueError(f"{path} holds no moving average of the weights; leave --ema out")
    state_dict = {
        GAMMA.sub(r"ls\1.gamma", name.removeprefix("module.")): value
        for name, value in (content if found is None else found).items()
        if isinstance(value, Tensor)
    }
    if not state_dict:
        raise ValueError(f"{path} holds no weights under the names that timm, the official code or this trainer use")
    return Weights(path, state_dict, config if isinstance(config, dict) else None, classes)


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as weights ({reason}); it may be damaged, or hold more than tensors"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not weights")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors, and what `deit-fast export` wrote beside them."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    if "config" not in metadata:
        return tensors
    return {"model": tensors, "config": json.loads(metadata["config"]), "classes": json.loads(metadata["classes"])}


def num_classes(state_dict: Mapping[str, Tensor]) -> int | None:
    """Classes of the weights, by the names that timm gives its classifiers; None when there is no such."""
    for name in ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight"):
        if name in state_dict:
            return state_dict[name].shape[0]
    return None


def infer_name(state_dict: Mapping[str, Tensor]) -> str | None:
    """The DeiT variant that has these shapes; None for other models."""
    if "pos_embed" not in state_dict or "patch_embed.proj.weight" not in state_dict:
        return None
    depth = len({name.split(".")[1] for name in state_dict if name.startswith("blocks.")})
    embed_dim, _, patch, _ = state_dict["patch_embed.proj.weight"].shape
    positions = state_dict["pos_embed"].shape[1]
    for name, shape in DEIT_VARIANTS.items():
        prefix = 1 + shape.distilled if shape.positions_on_prefix else 0
        if (
            (shape.embed_dim, shape.depth, shape.patch_size_px) == (embed_dim, depth, patch)
            and shape.distilled == ("dist_token" in state_dict)
            and (shape.layer_scale_init is not None) == ("blocks.0.ls1.gamma" in state_dict)
            and positions == (shape.image_size_px // patch) ** 2 + prefix
        ):
            return name
    return None


def interpolate_pos_embed(pos_embed: Tensor, num_tokens: int, num_prefix_tokens: int) -> Tensor:
    """[1, prefix + g*g, C] -> [1, num_tokens, C]: the prefix kept, the square grid resized bicubically.

    As the official code does it: align_corners False, no antialiasing (timm's default antialiases, which differs only
    when the grid shrinks).
    """
    prefix, grid = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    old, new = (round(math.sqrt(n)) for n in (grid.shape[1], num_tokens - num_prefix_tokens))
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([prefix, grid.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(prefix.dtype)], dim=1)


def load_weights(model: nn.Module, weights: Weights | Mapping[str, Tensor], *, finetune: bool = False) -> None:
    """Puts weights into a model; positions are interpolated when the resolution differs.

    finetune: classifiers of another shape, and heads that the file lacks, keep their first values; what a model of timm
    has no place for is left out. ValueError, naming
    the first name or shape that does not fit, for anything else that differs; the model is then unchanged.
    """
    source = f"{weights.path}: " if isinstance(weights, Weights) else ""
    state_dict = dict(weights.state_dict if isinstance(weights, Weights) else weights)
    own = model.state_dict()
    pos_embed = state_dict.get("pos_embed")
    if isinstance(model, DeiT) and pos_embed is not None and pos_embed.shape != own["pos_embed"].shape:
        prefix = 2 if "dist_token" in state_dict else 1
        if pos_embed.shape[-1] == own["pos_embed"].shape[-1] and prefix == model.num_prefix_tokens:
            with_position = prefix if model.shape.positions_on_prefix else 0
            state_dict["pos_embed"] = interpolate_pos_embed(pos_embed, own["pos_embed"].shape[1], with_position)
    if finetune and not isinstance(model, DeiT):
        state_dict = _as_timm_reads(model, state_dict, source)
    if finetune:
        for name in [name for name in own if name.split(".")[0] in ("head", "head_dist", "fc", "classifier")]:
            if name not in state_dict or state_dict[name].shape != own[name].shape:
                state_dict[name] = own[name]
    _check_fit(source, own, state_dict)
    model.load_state_dict(state_dict)


def _as_timm_reads(model: nn.Module, state_dict: StateDict, source: str) -> StateDict:
    """Weights of a pretraining (MAE, BEiT, DINO) as timm reads them: names, positions at another resolution.

    What has no place in the model, such as a decoder, is left out and said.
    """
    read = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if read is not None:
        state_dict = dict(read(state_dict, model))
    left_out = [name for name in state_dict if name not in model.state_dict()]
    if left_out:
        logger.warning(
            "%s%d weights have no place in the model and are left out: %s, ...", source, len(left_out), left_out[0]
        )
    return {name: value for name, value in state_dict.items() if name not in left_out}


def _check_fit(source: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name in own:
        if name not in given:
            raise ValueError(f"{source}weights of another model: {name} is missing")
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            raise ValueError(
                f"{source}weights of another model: {name} is {tuple(given[name].shape)}, here {tuple(tensor.shape)}"
            )
    for name in given:
        if name not in own:
            raise ValueError(f"{source}weights of another model: {name} has no place here")
