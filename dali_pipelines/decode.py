"""From what an image set feeds to pixels, as Pillow decodes them."""

from __future__ import annotations

import numpy as np
from nvidia.dali import Pipeline, fn, types

from .image_set import Feeds
from .operations import Node

HARDWARE_DECODER_SHARE = 0.9
"""Of the images, where a GPU has a decoder of its own (A100, H100, B200); not measured, `deit-fast tune` does."""
RESERVED_DEVICE_BYTES, RESERVED_HOST_BYTES = 4 * 211025920, 4 * 140544512
"""Of a GPU's decoder, over all threads, so that memory hardly grows in steps: what NVIDIA's ResNet-50 for DALI reserves
with its four (DeepLearningExamples, PyTorch/Classification/ConvNets). Of the host's, DALI takes two."""


def read(fed: Node, feeds: Feeds) -> Node:
    """The encoded images: read by DALI's threads where paths are fed, or what is fed."""
    return fn.io.file.read(fed) if feeds == "path" else fed


def decode_device(device: str, decoder: str) -> str:
    """DALI's name for where JPEGs are decoded: `mixed` takes bytes from the CPU and leaves pixels on the GPU."""
    if device == "cpu" and decoder == "gpu":
        raise ValueError("data.decoder is gpu, but runtime.device is cpu; use --data.decoder auto")
    return "mixed" if device == "gpu" and decoder in ("auto", "gpu") else "cpu"


def memory_hints(num_threads: int) -> dict[str, int]:
    """Room for ImageNet's largest image in the decoder's hardware, and for each of the pipeline's threads its share."""
    threads = max(4, num_threads)
    return {
        "preallocate_width_hint": 5980,
        "preallocate_height_hint": 6430,
        "device_memory_padding": RESERVED_DEVICE_BYTES // threads,
        "host_memory_padding": RESERVED_HOST_BYTES // threads,
    }


def decode(
    encoded: Node, device: str, hardware_share: float = HARDWARE_DECODER_SHARE, *, reserve: bool = True, **region: Node
) -> Node:
    """RGB HWC uint8 as Pillow decodes it: no rotation by EXIF, smooth chroma; `region`: start and shape of a crop.

    hardware_share: of the batch, for the decoder of a GPU that has one; reserve: memory of a GPU's decoder, once, at
    the start. On the CPU both have no effect.

    A whole image is decoded as a region too: DALI 2.4's `decoders.image` dies (SIGSEGV) of a bad image in a batch
    of dozens; the decoder of regions raises, and costs 1.14 against 1.13 CPU-ms for 500 x 375 px. GPUs: not measured.
    """
    options = {
        "device": device,
        "output_type": types.RGB,
        "adjust_orientation": False,
        "jpeg_fancy_upsampling": True,
    }
    if device == "mixed":
        options["hw_decoder_load"] = hardware_share
        if reserve:
            options |= memory_hints(Pipeline.current().num_threads)
    if not region:
        size = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=False), dtype=types.INT32)
        region = {"start": types.Constant(np.zeros(2, dtype=np.int32)), "shape": size[0:2]}
    return fn.decoders.image_slice(encoded, axes=[0, 1], **region, **options)
