"""The CUDA twins: their bodies, run on the CPU, give the vectorised operators' bits; their kernels, compiled ahead."""

import ctypes
import json
import shutil

import numpy as np
import pytest
import torch

from deit_fast.benchmarks import native_parity
from deit_fast.benchmarks.parity import square_photographs
from deit_fast.dali_pipelines.native import direct, plugin, twins
from deit_fast.dali_pipelines.operation import Operation

pytestmark = pytest.mark.skipif(not plugin.is_available(), reason=plugin.describe())

SIZE = 48
ALL = range(Operation.AUTO_CONTRAST, Operation.GAUSSIAN_BLUR + 1)
ARGUMENTS = {Operation.POSTERIZE: 3.0, Operation.SOLARIZE: 90.0, Operation.SOLARIZE_ADD: 40.0, Operation.ROTATE: -23.0}
SCALE, SHIFT = (0.0171, 0.0175, 0.0174), (-2.1, -2.0, -1.8)


def argument(operation):
    return ARGUMENTS.get(operation, 0.27)


@pytest.fixture(scope="module")
def images():
    return square_photographs(SIZE)


def serial_view(view, spec):
    plugin.load_plugin().deit_fast_twin_augment(ctypes.byref(spec), ctypes.byref(view))


def test_structures_are_those_of_the_header():
    sizes = (ctypes.c_int * 3)()
    plugin.load_plugin().deit_fast_twin_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(kind) for kind in (twins.Crop, twins.View, twins.Spec)]


@pytest.mark.parametrize("size", [SIZE, 7])
def test_the_crop_is_the_vectorised_one(size):
    for index, (picture, box) in enumerate(native_parity.random_boxes(10)):
        out = torch.empty(size, size, 3, dtype=torch.uint8)
        crop, _kept = twins.make_crop(torch.from_numpy(np.array(picture)), box, index % 2 == 1, out)
        plugin.load_plugin().deit_fast_twin_crop(ctypes.byref(crop))
        assert np.array_equal(out.numpy(), direct.resize(picture, size, box=box, flip=index % 2 == 1))


@pytest.mark.parametrize("operation", ALL)
def test_every_operation_is_the_vectorised_one(images, operation):
    spec = twins.make_spec(SIZE, torch.uint8, SCALE, SHIFT)
    for image in images:
        out = torch.empty(SIZE, SIZE, 3, dtype=torch.uint8)
        chosen = [operation, Operation.NONE, Operation.COLOR]
        arguments = [argument(operation), 0.0, 1.3]
        view, _kept = twins.make_view(torch.from_numpy(image), chosen, arguments, [], out)
        serial_view(view, spec)
        assert np.array_equal(out.numpy(), direct.augment(image, chosen, arguments))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_outputs_and_rectangles(images, dtype, planar):
    spec = twins.make_spec(SIZE, dtype, SCALE, SHIFT, planar)
    content = torch.randn(9, 14, 3, generator=torch.Generator().manual_seed(0))
    out = torch.empty((3, SIZE, SIZE) if planar else (SIZE, SIZE, 3), dtype=dtype)
    view, _kept = twins.make_view(torch.from_numpy(images[0]), [], [], [(5, 30, content)], out)
    serial_view(view, spec)
    expected = torch.from_numpy(direct.augment(images[0], [], [], output="float32", scale=SCALE, shift=SHIFT)).clone()
    expected[5:14, 30:44] = content
    assert torch.equal(out, (expected.permute(2, 0, 1) if planar else expected).to(dtype))


def budget():
    return json.loads((twins.HERE / "twins_budget.json").read_text())


def hold_to_budget(architecture, folder):
    found = twins.compile_cubin(architecture, folder)
    assert {row.kernel for row in found} == {"deit_fast_crop", "deit_fast_augment"}
    for row in found:
        limit = budget()[row.kernel][str(architecture)]
        assert row.registers <= limit["registers"], row
        assert row.stack <= limit["stack"], row
        assert row.spill_stores == row.spill_loads == 0, row


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, to compile the CUDA twins")
def test_registers_stack_and_spills_on_sm_80(tmp_path):
    hold_to_budget(80, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, to compile the CUDA twins")
@pytest.mark.parametrize("architecture", twins.ARCHITECTURES[1:])
def test_registers_stack_and_spills_elsewhere(architecture, tmp_path):
    hold_to_budget(architecture, tmp_path)
    twins.compile_ptx(tmp_path)
    assert ".entry deit_fast_augment" in (tmp_path / "twins.ptx").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_cpus_bits(images):
    device = torch.device("cuda", 0)
    try:
        twins.load_kernels(0)
    except twins.NotBuildableError as error:
        pytest.skip(str(error))
    spec = twins.make_spec(SIZE, torch.float16, SCALE, SHIFT)
    views, kept, outs = [], [], []
    for image in images:
        for operation in ALL:
            out = torch.empty(SIZE, SIZE, 3, dtype=torch.float16, device=device)
            on_device = torch.from_numpy(image).to(device)
            view, alive = twins.make_view(on_device, [operation], [argument(operation)], [], out)
            views.append(view)
            kept.append(alive)
            outs.append((image, operation, out))
    kept.append(twins.launch_views(views, spec, device))
    torch.cuda.synchronize()
    for image, operation, out in outs:
        options = {"output": "float16", "scale": SCALE, "shift": SHIFT}
        expected = direct.augment(image, [operation], [argument(operation)], **options)
        assert np.array_equal(out.cpu().numpy(), expected), operation
    for picture, box in native_parity.random_boxes(10):
        out = torch.empty(SIZE, SIZE, 3, dtype=torch.uint8, device=device)
        crop, alive = twins.make_crop(torch.from_numpy(np.array(picture)).to(device), box, True, out)
        jobs = twins.launch_crops([crop], device)
        torch.cuda.synchronize()
        assert np.array_equal(out.cpu().numpy(), direct.resize(picture, SIZE, box=box, flip=True))
        del alive, jobs
