"""Memory of a training step: what an image needs, and which batch would have fitted when there was too little."""

from __future__ import annotations

import torch
from torch import nn

from .activations import count_activations
from .config import Config

BYTES_PER_WEIGHT = 4 * 5
"""fp32: weight, gradient, two moments of the optimizer, moving average."""
USABLE = 0.9
"""Share of the device that activations and weights may take: the rest is DALI's, the context's, and lost to gaps."""


def fitting_batch_size(total_bytes: int, num_weights: int, bytes_per_image: int, multiple: int = 2) -> int:
    """The largest batch that is predicted to fit: USABLE x total - 20 B x weights, over the bytes of an image."""
    free = USABLE * total_bytes - BYTES_PER_WEIGHT * num_weights
    return max(0, int(free // bytes_per_image) // multiple * multiple)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed for want of memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def advice(batch_size: int, accumulate_steps: int, fits: int, group_size: int, multiple_of: int = 1) -> str:
    """One line: which batch would fit, and how to keep the global batch all the same.

    multiple_of: of this many images only; drop-path by subset takes a share of each whole mixing group.
    """
    total = batch_size * accumulate_steps
    candidates = [
        size for size in range(2, min(fits, batch_size - 1) + 1, 2) if not total % size and not size % multiple_of
    ]
    head = f"out of memory with runtime.batch_size_per_device {batch_size}"
    if not candidates:
        return f"{head}; no smaller batch is predicted to fit: use a smaller model or image size"
    best = max(candidates)
    return (
        f"{head}; {best} is predicted to fit, and the global batch stays as it is with --runtime.batch_size_per_device "
        f"{best} --runtime.accumulate_steps {total // best} --mix.group_size {group_size}"
    )


def bytes_besides_torch(device: torch.device) -> int:
    """What is used of a CUDA device, and not by torch's allocator."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


class DeviceMemory:
    """GiB on a device, torch's and DALI's apart; None on a CPU. Make it before a loader's first batch.

    DALI has no count of its own pools. What is used besides torch, and was not when this was made, is theirs, and that
    of kernels which the driver loads at their first use; what was there already is the CUDA context's, NCCL's and that
    of other processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before_loader = bytes_besides_torch(device) if device.type == "cuda" else 0

    @property
    def torch_gib(self) -> float | None:
        """Most that torch's allocator held so far."""
        return torch.cuda.max_memory_reserved(self.device) / 2**30 if self.device.type == "cuda" else None

    @property
    def dali_gib(self) -> float | None:
        """DALI's pools now; they grow and do not shrink."""
        if self.device.type != "cuda":
            return None
        return max(0, bytes_besides_torch(self.device) - self.before_loader) / 2**30

    @property
    def other_gib(self) -> float | None:
        """What neither of the two uses."""
        return self.before_loader / 2**30 if self.device.type == "cuda" else None


def advise_on(config: Config, model: nn.Module, precision: str, device: torch.device) -> str:
    """The line for a run that ran out of memory. On a CPU, whose memory is shared with others, without a prediction."""
    runtime = config.runtime
    fits = runtime.batch_size_per_device // 2
    if device.type == "cuda":
        per_image = count_activations(model.cpu(), config.model.image_size_px, precision).peak_bytes_per_image
        total = torch.cuda.get_device_properties(device).total_memory
        fits = fitting_batch_size(total, sum(p.numel() for p in model.parameters()), per_image)
    whole_groups = config.mix.group_size if config.model.drop_path_mode == "subset" else 1
    return advice(runtime.batch_size_per_device, runtime.accumulate_steps, fits, config.mix.group_size, whole_groups)
