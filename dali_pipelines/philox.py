"""Counter-based random numbers: the draw is a pure function of its coordinates, so no worker holds hidden state.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised over the first
coordinate, so that one call draws for a whole batch.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Stream(IntEnum):
    """What a draw is for: streams with the same coordinates are independent of each other."""

    CROP = 1
    FLIP = 2
    AUGMENT = 3
    ERASE = 4
    ERASE_NOISE = 5
    MIX = 6
    DROP_PATH = 7
    DROPOUT = 8
    COLOR_JITTER = 9
    SUBSTITUTE = 10


def philox4x32(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> npt.NDArray[np.uint64]:
    """Ten rounds of Philox. counter: [..., 4] of 32-bit values held in uint64; returns the same shape."""
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def uniforms(
    seed: int, stream: Stream, major: int, minor: npt.ArrayLike, count: int, *, block: int = 0
) -> npt.NDArray[np.float64]:
    """Independent draws in [0, 1) for each entry of `minor`.

    Coordinates: seed (64 bit), stream (8 bit), major (32 bit: the epoch, or the step), minor (32 bit: the views, or the
    group), block (16 bit: where one position needs several independent sets, such as the blocks of a model).
    Returns [len(minor), count]; the value at [i, j] depends on minor[i] and j alone, not on the rest of the batch.
    """
    minor = np.atleast_1d(np.asarray(minor, dtype=np.uint64))
    assert 0 <= major < 2**32
    assert 0 <= block < 2**16
    words = -(-count // 4)
    assert words < 2**8
    counter = np.empty((len(minor), words, 4), dtype=np.uint64)
    counter[..., 0] = minor[:, None]
    counter[..., 1] = np.uint64(major)
    counter[..., 2] = np.arange(words, dtype=np.uint64) | np.uint64(int(stream) << 8) | np.uint64(block << 16)
    counter[..., 3] = 0
    bits = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return bits.reshape(len(minor), words * 4)[:, :count].astype(np.float64) * 2.0**-32


def generator(seed: int, stream: Stream, major: int, minor: int) -> np.random.Generator:
    """A numpy generator for draws of unknown number (normal, beta) at these coordinates; as stateless as `uniforms`."""
    return np.random.Generator(
        np.random.Philox(key=[seed & (2**64 - 1), (int(stream) << 56) | 1], counter=[0, 0, major, minor])
    )
