"""Model FLOPs utilisation: the arithmetic that the mathematics asks for, against what the device could do."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PEAK_TFLOPS = {
    "V100": 125.0,
    "A100": 312.0,
    "A800": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "L40S": 362.0,
    "B200": 2250.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.0,
}
"""Dense bf16 (V100: fp16) matrix products with fp32 sums, by NVIDIA's data sheets; the longest fitting name counts."""


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of one device by its data sheet; None for a CPU or a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """FLOP/s by the name that the driver gives the device."""
    known = [key for key in PEAK_TFLOPS if all(word in name for word in key.split())]
    return PEAK_TFLOPS[max(known, key=len)] * 1e12 if known else None


def forward_flops(model: nn.Module, image_size_px: int) -> int:
    """FLOPs (2 a multiply-add) of the forward of one image, counted on the meta device; nothing is computed."""
    model = copy.deepcopy(model).to("meta").float().eval()
    images = torch.empty(1, 3, image_size_px, image_size_px, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()
