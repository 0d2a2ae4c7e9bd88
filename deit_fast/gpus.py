"""GPUs by their data sheets: what one of a kind could do at most. Nothing here was measured by this project."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9
FIRST_ARCHITECTURE = 75
"""What the CUDA 13 wheels of torch hold code for begins at sm_75 (`torch.cuda.get_arch_list()`)."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    driver_words: str
    """Words that are all in the name that the driver gives the device."""
    architecture: int
    """Compute capability: 90 is sm_90."""
    half_flops: float
    """FLOP/s of dense bf16 (V100: fp16) matrix products with fp32 sums."""
    memory_bytes: int
    memory_bytes_per_second: float
    link_bytes_per_second: float
    """To the other GPUs of the machine, one direction: half of NVLink's stated sum, or PCIe x16."""
    jpeg_engines: int = 0
    """Hardware JPEG decoders that nvJPEG can use; 0: none, or none stated."""

    @property
    def is_supported(self) -> bool:
        """Whether the pinned torch holds code for it."""
        return self.architecture >= FIRST_ARCHITECTURE


def _gpu(
    name: str, words: str, architecture: int, tflops: float, memory_gb: int, memory_gb_s: float, link_gb_s: float,
    jpeg_engines: int = 0,
) -> Gpu:  # fmt: skip
    return Gpu(name, words, architecture, tflops * 1e12, memory_gb * GB, memory_gb_s * GB, link_gb_s * GB, jpeg_engines)


GPUS = {
    "v100": _gpu("V100 SXM2 32 GB", "V100", 70, 125, 32, 900, 150),
    "a100": _gpu("A100 SXM 80 GB", "A100", 80, 312, 80, 2039, 300, 5),
    "a100-40gb": _gpu("A100 SXM 40 GB", "A100 40GB", 80, 312, 40, 1555, 300, 5),
    "a800": _gpu("A800 SXM 80 GB", "A800", 80, 312, 80, 2039, 200, 5),
    "h100": _gpu("H100 SXM 80 GB", "H100", 90, 989, 80, 3350, 450, 7),
    "h100-pcie": _gpu("H100 PCIe 80 GB", "H100 PCIe", 90, 756, 80, 2000, 64, 7),
    "h100-nvl": _gpu("H100 NVL 94 GB", "H100 NVL", 90, 835, 94, 3900, 300, 7),
    "h200": _gpu("H200 SXM 141 GB", "H200", 90, 989, 141, 4800, 450, 7),
    "b200": _gpu("B200 SXM 180 GB", "B200", 100, 2250, 180, 8000, 900, 7),
    "l40s": _gpu("L40S 48 GB", "L40S", 89, 362, 48, 864, 32),
    "rtx3090": _gpu("GeForce RTX 3090 24 GB", "RTX 3090", 86, 71, 24, 936, 32),
    "rtx4090": _gpu("GeForce RTX 4090 24 GB", "RTX 4090", 89, 165, 24, 1008, 32),
    "rtx5090": _gpu("GeForce RTX 5090 32 GB", "RTX 5090", 120, 209.5, 32, 1792, 64),
}
"""NVIDIA's data sheets and, for GeForce, the white papers of the architectures."""


def find_gpu(kind: str) -> Gpu:
    """By its short name, however it is written: `RTX 4090`, `rtx-4090`; ValueError with the list for another."""
    wanted = "".join(letter for letter in kind.lower() if letter.isalnum())
    for key, gpu in GPUS.items():
        if key.replace("-", "") == wanted:
            return gpu
    raise ValueError(f"--gpu {kind} is not in the table: {', '.join(GPUS)}; others by --peak-tflops and --memory-gb")


def gpu_of_driver(name: str) -> Gpu | None:
    """By the name that the driver gives the device, the kind with most fitting words; None for one not in the table."""
    known = [gpu for gpu in GPUS.values() if all(word in name for word in gpu.driver_words.split())]
    return max(known, key=lambda gpu: len(gpu.driver_words)) if known else None
