"""The CUDA twins of the operators: compiled ahead with nvcc, launched through the driver, optional in every respect.

`python -m deit_fast.dali_pipelines.native.twins` compiles twins.cu to a cubin for each of ARCHITECTURES and to PTX for
those to come, beside the sources, and reports registers, stack and spills. torch is built for CUDA 13 and DALI's wheel
for CUDA 12: cubins and the driver interface fit both. Not in the loaders: GPU pipelines run on the graph backend.
Speed: not measured.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .build import NotBuildableError
from .plugin import load_plugin

HERE = Path(__file__).parent
ARCHITECTURES = (80, 90, 100, 120)
PTX_ARCHITECTURE = 80
THREADS = 512
OPERATIONS, RECTANGLES = 8, 4
OUTPUTS = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}


class Crop(ctypes.Structure):
    """TwinCrop of twins.h."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("flip", ctypes.c_int32),
        ("filters", ctypes.c_void_p),
        ("between", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class BlurBox(ctypes.Structure):
    """BlurBox of pixels.h."""

    _fields_ = (("radius", ctypes.c_int32), ("inner", ctypes.c_uint32), ("edge", ctypes.c_uint32))


class View(ctypes.Structure):
    """TwinView of twins.h."""

    _fields_ = (
        ("image", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("operation_count", ctypes.c_int32),
        ("rectangle_count", ctypes.c_int32),
        ("operations", ctypes.c_int32 * OPERATIONS),
        ("arguments", ctypes.c_double * OPERATIONS),
        ("maps", (ctypes.c_double * 6) * OPERATIONS),
        ("boxes", BlurBox * OPERATIONS),
        ("rectangles", (ctypes.c_int32 * 4) * RECTANGLES),
        ("content", ctypes.c_void_p * RECTANGLES),
    )


class Spec(ctypes.Structure):
    """TwinSpec of twins.h."""

    _fields_ = (
        ("size", ctypes.c_int32),
        ("planar", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("scale", ctypes.c_float * 3),
        ("shift", ctypes.c_float * 3),
    )


class Resources(NamedTuple):
    """What ptxas says of a kernel, in registers and bytes a thread."""

    kernel: str
    architecture: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def compile_cubin(architecture: int, folder: Path) -> list[Resources]:
    """Compiles for sm_`architecture` into `folder`; NotBuildableError without nvcc, or with its first error."""
    report = _nvcc(
        "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v", "-o", str(folder / f"twins_sm_{architecture}.cubin")
    )
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    return [
        Resources(name, architecture, int(registers), int(stack), int(stores), int(loads))
        for name, stack, stores, loads, registers in found
    ]


def compile_ptx(folder: Path) -> None:
    """PTX that the driver compiles for GPUs without a cubin of their own."""
    _nvcc("-ptx", f"-arch=compute_{PTX_ARCHITECTURE}", "-o", str(folder / "twins.ptx"))


def _nvcc(*arguments: str) -> str:
    if shutil.which("nvcc") is None:
        raise NotBuildableError("there is no nvcc on PATH: install the CUDA toolkit to build the CUDA twins")
    # a fused multiply-add rounds once where the CPU, and Pillow, round twice
    command = ["nvcc", "-std=c++17", "-O3", "--fmad=false", *arguments, str(HERE / "twins.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotBuildableError(f"nvcc failed: {(done.stderr or done.stdout).strip().splitlines()[0]}")
    return done.stdout + done.stderr


def make_crop(
    pixels: torch.Tensor, box: tuple[int, int, int, int], flip: bool, out: torch.Tensor
) -> tuple[Crop, list[Any]]:
    """A crop (top, left, height, width) of pixels uint8 [H, W, 3] to out uint8 [S, S, 3]; and what it keeps alive."""
    top, left, height, width = box
    size, numbers = out.shape[0], np.zeros(2, np.int64)
    load_plugin().deit_fast_twin_scratch(height, width, size, numbers.ctypes.data_as(ctypes.c_void_p))
    filters = torch.empty(int(numbers[0]), dtype=torch.int32, device=pixels.device)
    between = torch.empty(int(numbers[1]), dtype=torch.uint8, device=pixels.device)
    corner, stride = pixels.data_ptr() + (top * pixels.shape[1] + left) * 3, pixels.shape[1] * 3
    crop = Crop(corner, stride, height, width, size, int(flip), filters.data_ptr(), between.data_ptr(), out.data_ptr())
    return crop, [pixels, filters, between, out]


def make_view(
    image: torch.Tensor,
    operations: list[int],
    arguments: list[float],
    rectangles: list[tuple[int, int, torch.Tensor]],
    out: torch.Tensor,
) -> tuple[View, list[Any]]:
    """A view of image uint8 [S, S, 3]: operations, then rectangles (top, left, content float32 [h, w, 3]) into out.

    ValueError for more of them than twins.h holds.
    """
    if len(operations) > OPERATIONS or len(rectangles) > RECTANGLES:
        raise ValueError(f"the CUDA twins take at most {OPERATIONS} operations and {RECTANGLES} rectangles a view")
    size = image.shape[0]
    scratch = torch.empty(2 * size * size * 3, dtype=torch.uint8, device=image.device)
    view = View(image.data_ptr(), scratch.data_ptr(), out.data_ptr(), len(operations), len(rectangles))
    view.operations[: len(operations)] = operations
    view.arguments[: len(arguments)] = arguments
    for k, (top, left, content) in enumerate(rectangles):
        view.rectangles[k][:] = (top, left, content.shape[0], content.shape[1])
        view.content[k] = content.data_ptr()
    load_plugin().deit_fast_twin_prepare(ctypes.byref(view), size)
    return view, [image, scratch, out, rectangles]


def make_spec(
    size_px: int, dtype: torch.dtype, scale: tuple[float, ...], shift: tuple[float, ...], planar: bool = False
) -> Spec:
    """out = byte * scale + shift in `dtype` (uint8: the byte), HWC or CHW."""
    return Spec(size_px, int(planar), OUTPUTS[dtype], (ctypes.c_float * 3)(*scale), (ctypes.c_float * 3)(*shift))


@cache
def load_kernels(device: int) -> tuple[Any, dict[str, ctypes.c_void_p]]:
    """The driver, and the functions on this device: from its own cubin where there is one, else from PTX.

    NotBuildableError where neither was compiled.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    major, minor = torch.cuda.get_device_capability(device)
    cubin = HERE / f"twins_sm_{10 * major + minor}.cubin"
    image = cubin if cubin.is_file() else HERE / "twins.ptx"
    if not image.is_file():
        raise NotBuildableError(f"{image} is not there; python -m deit_fast.dali_pipelines.native.twins")
    module, functions = ctypes.c_void_p(), {}
    torch.cuda.init()
    _check(driver, driver.cuModuleLoadData(ctypes.byref(module), image.read_bytes() + b"\0"))
    for name in ("deit_fast_crop", "deit_fast_augment"):
        functions[name] = ctypes.c_void_p()
        _check(driver, driver.cuModuleGetFunction(ctypes.byref(functions[name]), module, name.encode()))
    return driver, functions


def _check(driver: Any, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver: {(text.value or b'unknown error').decode()}")


def _launch(name: str, jobs: list[Any], spec: Spec | None, device: torch.device) -> torch.Tensor:
    """One thread block a job, on torch's current stream; returns the jobs on the device, to be kept till the end."""
    index = device.index or 0
    driver, functions = load_kernels(index)
    table = np.frombuffer(b"".join(bytes(job) for job in jobs), np.uint8).copy()
    on_device = torch.from_numpy(table).to(device)
    values = [*([spec] if spec is not None else []), ctypes.c_void_p(on_device.data_ptr())]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values))
    stream = ctypes.c_void_p(torch.cuda.current_stream(index).cuda_stream)
    status = driver.cuLaunchKernel(functions[name], len(jobs), 1, 1, THREADS, 1, 1, 0, stream, pointers, None)
    _check(driver, status)
    return on_device


def launch_crops(crops: list[Crop], device: torch.device) -> torch.Tensor:
    """All crops of a batch in one launch."""
    return _launch("deit_fast_crop", crops, None, device)


def launch_views(views: list[View], spec: Spec, device: torch.device) -> torch.Tensor:
    """All views of a batch in one launch."""
    return _launch("deit_fast_augment", views, spec, device)


def main() -> int:
    """Compiles everything and prints the report."""
    try:
        rows = [row for architecture in ARCHITECTURES for row in compile_cubin(architecture, HERE)]
        compile_ptx(HERE)
    except NotBuildableError as error:
        sys.stderr.write(f"CUDA twins: not built: {error}\n")
        return 1
    for row in rows:
        sys.stdout.write(f"{row}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
