"""Finds, checks and loads the compiled operators."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nvidia.dali
from nvidia.dali import plugin_manager

from .build import PLUGIN

REBUILD = "python -m deit_fast.dali_pipelines.native.build"
SIMD_VARIABLE = "DEIT_FAST_SIMD"
"""Environment: auto, portable, avx2 or avx512; for tests, and to compare them."""


class NativeUnavailableError(RuntimeError):
    """Why the native operators cannot be used, and the command that mends it."""


def plugin_path() -> Path:
    """Where the build puts the plugin."""
    return Path(__file__).with_name(PLUGIN)


@cache
def load_plugin() -> ctypes.CDLL:
    """Registers the operators with DALI, once in a process; returns the C interface.

    NativeUnavailableError when they are not built, or for another DALI, whose C++ interface is not promised stable.
    """
    path = plugin_path()
    if not path.is_file():
        raise NativeUnavailableError(f"the native operators are not built; {REBUILD}")
    if not _built_for(path):
        raise NativeUnavailableError(
            f"the native operators were built for another DALI than the installed {nvidia.dali.__version__}; {REBUILD}"
        )
    plugin_manager.load_library(str(path))
    library = ctypes.CDLL(str(path))
    library.deit_fast_level_name.restype = ctypes.c_char_p
    _load_jpeg(library)
    return library


def _built_for(path: Path) -> bool:
    """Whether the plugin names the installed DALI, read from its bytes: loading it would already run DALI's code."""
    return f"deit_fast built for DALI {nvidia.dali.__version__}\0".encode() in path.read_bytes()


def _load_jpeg(library: ctypes.CDLL) -> None:
    error = ctypes.create_string_buffer(512)
    for path in jpeg_libraries():
        library.deit_fast_load_jpeg(os.fsencode(path), error, len(error))
        if not error.value:
            return


def jpeg_libraries() -> Iterator[Path]:
    """libjpeg-turbos to try: Pillow's own first, so that pixels are Pillow's to the last bit, then the system's."""
    pillow = importlib.util.find_spec("PIL")
    if pillow is not None and pillow.origin:
        yield from sorted((Path(pillow.origin).parents[1] / "pillow.libs").glob("libjpeg-*.so.62*"))
    yield Path("libjpeg.so.62")


def simd_level() -> str:
    """The level that operators are asked to use; ValueError for one that is not here."""
    asked = os.environ.get(SIMD_VARIABLE, "auto")
    if asked not in ("auto", *simd_levels()):
        raise ValueError(
            f"{SIMD_VARIABLE} {asked} is not among this machine's levels: auto, {', '.join(simd_levels())}"
        )
    return asked


def simd_levels() -> list[str]:
    """What this build and CPU have, slowest first; NativeUnavailableError without the plugin."""
    library = load_plugin()
    return [library.deit_fast_level_name(i).decode() for i in range(library.deit_fast_level_count())]


def decodes_jpeg() -> bool:
    """Whether the operators decode JPEGs themselves; NativeUnavailableError without the plugin."""
    return bool(load_plugin().deit_fast_jpeg_loaded())


def is_available() -> bool:
    """Whether data.backend auto uses the native operators."""
    try:
        load_plugin()
    except NativeUnavailableError:
        return False
    return True


def describe() -> str:
    """One line for `doctor` and logs: what is there, or what is lost without it and how to get it."""
    try:
        level = simd_levels()[-1]
    except NativeUnavailableError as error:
        return f"native operators: no: {error}. Everything works on the graph backend, at several times the CPU time"
    decoder = (
        "decoding with libjpeg-turbo"
        if decodes_jpeg()
        else ("decoding left to DALI (no jpeglib.h at build time, or no libjpeg-turbo of ABI 62), which costs more")
    )
    return f"native operators: for DALI {nvidia.dali.__version__}, {level}, {decoder}"
