"""The native parts without DALI in between, on numpy arrays: for tests, the parity table and fuzzing.

`simd` everywhere: auto, portable, avx2 or avx512, as `plugin.simd_levels` lists them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .plugin import load_plugin

OUTPUTS = {"uint8": (0, np.uint8), "float16": (1, np.float16), "bfloat16": (2, np.uint16), "float32": (3, np.float32)}
"""The number that the C interface knows it by, and numpy's type; bfloat16 as its bits."""


class DecodeError(ValueError):
    """libjpeg's word on a file."""


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


def resize(
    image: np.ndarray,
    size_px: int,
    *,
    box: tuple[int, int, int, int] | None = None,
    resized: tuple[int, int] | None = None,
    corner: tuple[int, int] = (0, 0),
    flip: bool = False,
    simd: str = "auto",
) -> np.ndarray:
    """Pillow's bicubic resize of a crop; uint8 [size_px, size_px, 3].

    box: top, left, height, width of the crop (default: all of image [H, W, 3]); resized: height and width it becomes
    (default: size_px twice), of which the square from `corner` on is taken, mirrored beyond the edges.
    """
    image = np.ascontiguousarray(image, np.uint8)
    box = box or (0, 0, image.shape[0], image.shape[1])
    height, width = resized or (size_px, size_px)
    out = np.empty((size_px, size_px, 3), np.uint8)
    numbers = np.array(box, np.int32)
    load_plugin().deit_fast_resize(
        simd.encode(), _pointer(image), image.shape[1], _pointer(numbers), height, width, *corner, size_px, int(flip),
        0, _pointer(out),
    )  # fmt: skip
    return out


def augment(
    image: np.ndarray,
    operations: list[int],
    arguments: list[float],
    *,
    output: str = "uint8",
    scale: tuple[float, ...] = (1.0, 1.0, 1.0),
    shift: tuple[float, ...] = (0.0, 0.0, 0.0),
    planar: bool = False,
    bilinear: bool = False,
    simd: str = "auto",
) -> np.ndarray:
    """A square uint8 image through operations in turn, then out = byte * scale + shift; [S, S, 3] or [3, S, S]."""
    image = np.ascontiguousarray(image, np.uint8)
    size = image.shape[0]
    number, dtype = OUTPUTS[output]
    out = np.empty((3, size, size) if planar else (size, size, 3), dtype)
    chosen, numbers = np.array(operations, np.int32), np.array(arguments, np.float64)
    scales, shifts = np.array(scale, np.float32), np.array(shift, np.float32)
    load_plugin().deit_fast_augment(
        simd.encode(), _pointer(image), size, _pointer(chosen), _pointer(numbers), len(chosen), int(bilinear), number,
        int(planar), _pointer(scales), _pointer(shifts), _pointer(out),
    )  # fmt: skip
    return out


def is_plain_jpeg(encoded: bytes) -> bool:
    """Whether the crop operator decodes these bytes itself."""
    return bool(load_plugin().deit_fast_is_plain_jpeg(encoded, ctypes.c_size_t(len(encoded))))


def decode(encoded: bytes, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """A JPEG, or its part `box` (top, left, height, width); uint8 [H, W, 3]. DecodeError with libjpeg's message."""
    library, error, shape = load_plugin(), ctypes.create_string_buffer(512), np.zeros(2, np.int32)
    size = ctypes.c_size_t(len(encoded))
    library.deit_fast_decode(encoded, size, None, _pointer(shape), None, error, len(error))
    if not error.value:
        numbers = np.array(box or (0, 0, *shape), np.int32)
        out = np.empty((numbers[2], numbers[3], 3), np.uint8)
        library.deit_fast_decode(encoded, size, _pointer(numbers), _pointer(shape), _pointer(out), error, len(error))
    if error.value:
        raise DecodeError(error.value.decode(errors="replace"))
    return out
