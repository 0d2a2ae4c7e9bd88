"""Model FLOPs utilisation: the arithmetic that the mathematics asks for, against what the device could do."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .gpus import gpu_of_driver


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of one device by its data sheet; None for a CPU or a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """FLOP/s by the name that the driver gives the device."""
    gpu = gpu_of_driver(name)
    return None if gpu is None else gpu.half_flops


def forward_flops(model: nn.Module, image_size_px: int) -> int:
    """FLOPs (2 a multiply-add) of the forward of one image, counted on the meta device; nothing is computed."""
    model = copy.deepcopy(model).to("meta").float().eval()
    images = torch.empty(1, 3, image_size_px, image_size_px, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()
