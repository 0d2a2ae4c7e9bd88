"""Compiles the native operators: `python -m deit_fast.dali_pipelines.native.build`; setup.py calls it too.

It needs g++ (or $CXX) with C++20, DALI, which brings its headers, and the CUDA runtime's headers, which DALI's include:
three small packages of the index (CUDA_HEADERS). No nvcc, no CUDA, no GPU. With jpeglib.h (Debian: libjpeg62-turbo-dev)
it decodes JPEGs itself.
Files that fit one instruction set get its flags; which one runs is chosen at run time.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
PLUGIN = "libdeit_fast_dali.so"
SOURCES = (
    "filters",
    "kernels",
    "kernels_portable",
    "resize",
    "augment",
    "augment_geometry",
    "jpeg",
    "c_api",
    "twins_host",
    "operator_crop",
    "operator_augment",
)
LEVEL_FLAGS = {
    "kernels_avx2": ["-mavx2", "-mf16c"],
    "kernels_avx512": [
        *("-mavx2", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni"),
        "-mprefer-vector-width=512",
    ],
}
"""x86-64 only."""
FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-ffp-contract=off",  # a fused multiply-add rounds once where Pillow rounds twice
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # DALI's headers
    "-Wno-maybe-uninitialized",  # GCC 12's own AVX-512 header
    "-Wno-uninitialized",
]


class NotBuildableError(RuntimeError):
    """What the build lacks, in one line."""


def dali_version() -> str:
    """The installed DALI's version; NotBuildableError without one."""
    for name in ("nvidia-dali-cuda120", "nvidia-dali-cuda130"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise NotBuildableError("DALI is not installed: pip install nvidia-dali-cuda120 or nvidia-dali-cuda130")


def dali_folder() -> Path:
    """Where DALI is, found without importing it."""
    spec = importlib.util.find_spec("nvidia.dali")
    if spec is None or spec.origin is None:
        raise NotBuildableError("DALI is not installed: pip install nvidia-dali-cuda120 or nvidia-dali-cuda130")
    return Path(spec.origin).parent


CUDA_HEADERS = {
    "nvidia-cuda-runtime": "cuda_runtime.h",
    "nvidia-cuda-crt": "crt/host_config.h",
    "nvidia-cuda-cccl": "nv/target",
}
"""Packages, and what DALI's headers include of them."""


def cuda_includes() -> list[str]:
    """Folders of the CUDA runtime's headers; NotBuildableError names the packages that are missing."""
    folders, missing = [], []
    for package, header in CUDA_HEADERS.items():
        try:
            found = [file for file in metadata.files(package) or () if str(file).endswith(f"/{header}")]
        except metadata.PackageNotFoundError:
            found = []
        if found:
            folders.append(str(Path(str(found[0].locate())).resolve().parents[header.count("/")]))
        else:
            missing.append(package)
    if missing:
        raise NotBuildableError(f"headers are missing: pip install {' '.join(missing)}")
    return folders


def compile_commands(objects: Path, extra: tuple[str, ...] = (), sources: tuple[str, ...] = SOURCES) -> list[list[str]]:
    """One command a source; `extra` flags (sanitizers) go last."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise NotBuildableError(f"there is no C++ compiler {compiler}: install g++ 11 or later, or set CXX")
    include = [f"-I{dali_folder() / 'include'}", *(f"-isystem{folder}" for folder in cuda_includes())]
    define = [f'-DDEIT_FAST_DALI_VERSION="{dali_version()}"']
    levels = LEVEL_FLAGS if platform.machine() == "x86_64" else {}
    commands = []
    for name in (*sources, *levels):
        flags = [*FLAGS, *levels.get(name, ()), *include, *define, *extra]
        commands.append([compiler, *flags, "-c", str(HERE / f"{name}.cc"), "-o", str(objects / f"{name}.o")])
    return commands


def run_all(commands: list[list[str]]) -> None:
    """Two at a time; NotBuildableError with the compiler's first error."""

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise NotBuildableError(f"{command[0]} failed: {lines[0] if lines else command}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, commands))


def build(target: Path, objects: Path, extra: tuple[str, ...] = ()) -> Path:
    """Compiles and links the plugin into the folder `target`; objects go to another. NotBuildableError: what lacks."""
    objects.mkdir(parents=True, exist_ok=True)
    commands = compile_commands(objects, extra)
    run_all(commands)
    target.mkdir(parents=True, exist_ok=True)
    built = target / PLUGIN
    partial = built.with_suffix(".partial")
    link = ["-shared", *(command[-1] for command in commands), f"-L{dali_folder()}", "-ldali", "-ldl", *extra]
    run_all([[commands[0][0], *link, "-o", str(partial)]])
    partial.replace(built)  # whole or not there, for processes that load it meanwhile
    return built


def main() -> int:
    """Builds beside the sources."""
    try:
        built = build(HERE, Path("build") / "native")
    except NotBuildableError as error:
        sys.stderr.write(f"native operators: not built: {error}\n")
        return 1
    sys.stdout.write(f"native operators: {built}, for DALI {dali_version()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
