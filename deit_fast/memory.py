"""Memory of a device: how much is used by whom, and whether an error is for want of it."""

from __future__ import annotations

import torch

USABLE = 0.9
"""Share of the device that activations and weights may take: the rest is DALI's, the context's, and lost to gaps."""


OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "out of memory",  # CUDA and NCCL besides torch's allocator, cuDNN, DALI
    "ALLOC_FAILED",  # CUBLAS_STATUS_ALLOC_FAILED: cuBLAS found no room for its handle
    "Can't allocate",  # DALI
)
"""What errors say that are no torch.OutOfMemoryError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed for want of memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


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
