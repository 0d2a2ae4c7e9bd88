"""The native operators against timm, torchvision and Pillow, pixel by pixel, on every SIMD level of this machine."""

import io

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import Grayscale
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_saturation

from deit_fast.benchmarks import native_parity
from deit_fast.benchmarks.native_parity import BLUR_RADII
from deit_fast.benchmarks.parity import TIMM_NAMES, square_photographs, timm_rand_augment
from deit_fast.benchmarks.photographs import photographs
from deit_fast.dali_pipelines.native import direct, plugin
from deit_fast.dali_pipelines.operation import GEOMETRIC_OPERATIONS, RAND_AUGMENT_OPERATIONS, Operation
from deit_fast.dali_pipelines.rand_augment import level_to_argument
from deit_fast.dali_pipelines.train_augment import IMAGENET_MEAN, IMAGENET_STD

pytestmark = pytest.mark.skipif(not plugin.is_available(), reason=plugin.describe())

LEVELS = plugin.simd_levels() if plugin.is_available() else []
EXACT = [operation for operation in TIMM_NAMES if operation != Operation.ROTATE]
SCALE = tuple(1 / (255 * std) for std in IMAGENET_STD)
SHIFT = tuple(-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))


@pytest.fixture(scope="module")
def images():
    return square_photographs(160)


def test_this_machine_has_more_than_the_portable_level():
    """Else the comparisons below show less than they say."""
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("only x86-64 has levels above portable")
    assert LEVELS[0] == "portable"
    assert "avx2" in LEVELS


@pytest.mark.parametrize("magnitude", [3.3, 9.0])
@pytest.mark.parametrize("operation", EXACT, ids=TIMM_NAMES.get)
def test_fourteen_operations_are_exact(images, operation, magnitude):
    assert native_parity.operation_parity(images, operation, magnitude).max_difference == 0


@pytest.mark.parametrize("magnitude", [0.7, 3.3, 8.5, 9.0])
def test_rotation_is_exact_for_all_but_one_in_ten_thousand(images, magnitude):
    found = native_parity.operation_parity(images, Operation.ROTATE, magnitude)
    assert found.max_difference <= 1
    assert found.exact >= 0.9999


@pytest.mark.parametrize("radius", BLUR_RADII)
def test_blur_is_exact(images, radius):
    assert native_parity.blur_parity(images, radius).max_difference == 0


def test_grayscale_solarize_and_posterize_to_nothing(images):
    for image in images:
        picture = Image.fromarray(image)
        gray = direct.augment(image, [Operation.GRAYSCALE], [0.0])
        assert np.array_equal(gray, np.asarray(Grayscale(3)(picture)))
        solarized = direct.augment(image, [Operation.SOLARIZE], [128.0])
        assert np.array_equal(solarized, np.asarray(ImageOps.solarize(picture)))
        assert direct.augment(image, [Operation.POSTERIZE], [0.0]).max() == 0


@pytest.mark.parametrize("factor", [0.7, 0.93, 1.3])
def test_color_jitter_is_torchvisions_on_pillow(images, factor):
    jitter = {
        Operation.BRIGHTNESS: adjust_brightness,
        Operation.CONTRAST: adjust_contrast,
        Operation.COLOR: adjust_saturation,
    }
    for operation, apply in jitter.items():
        for image in images:
            expected = np.asarray(apply(Image.fromarray(image), factor))
            assert np.array_equal(direct.augment(image, [operation], [factor]), expected)


def test_operations_one_after_another_are_timms_one_after_another(images):
    """Tables are kept pending from one operation to the next: every pair that starts or ends with one."""
    pending = [Operation.INVERT, Operation.AUTO_CONTRAST, Operation.SOLARIZE_ADD]
    for first in RAND_AUGMENT_OPERATIONS:
        for second in pending:
            for pair in ((first, second), (second, first)):
                if Operation.ROTATE in pair:
                    continue
                expected = images[0]
                arguments = []
                for operation in pair:
                    (expected,) = timm_rand_augment([expected], operation, 9.0, np.ones(1))
                    arguments.append(float(level_to_argument(*map(np.array, ([operation], [9.0], [1.0])))[0]))
                assert np.array_equal(direct.augment(images[0], list(pair), arguments), expected), pair


def test_bilinear_geometry_is_pillows(images):
    shifted = direct.augment(images[0], [Operation.SHEAR_X], [0.2], bilinear=True)
    expected = Image.fromarray(images[0]).transform(
        (160, 160), Image.Transform.AFFINE, (1, 0.2, 0, 0, 1, 0), Image.Resampling.BILINEAR, fillcolor=(124, 116, 104)
    )
    assert np.array_equal(shifted, np.asarray(expected))


@pytest.mark.parametrize("size", [224, 33, 1])
def test_resize_is_exact(size):
    assert native_parity.resize_parity(30, size).max_difference == 0


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 13 chose the order of passes anew")
def test_the_order_of_passes_is_pillow_13s():
    generator = np.random.default_rng(1)
    picture = photographs()[0]
    for _ in range(40):
        height, width, new_height, new_width = (int(side) for side in generator.integers(5, 300, 4))
        image = picture[:height, :width]
        expected = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
        assert np.array_equal(native_parity.pillow_resize(image, new_height, new_width), expected)


def test_a_window_of_a_resize_is_that_part_of_it():
    picture = photographs()[2]
    whole = native_parity.pillow_resize(picture, 250, 375)
    assert np.array_equal(direct.resize(picture, 96, resized=(250, 375), corner=(31, 200)), whole[31:127, 200:296])
    mirrored = np.pad(whole, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    assert np.array_equal(direct.resize(picture, 96, resized=(250, 375), corner=(-4, -3)), mirrored[:96, 1:97])
    assert np.array_equal(direct.resize(picture, 96, resized=(250, 375), corner=(158, 283)), mirrored[162:258, 287:383])


@pytest.mark.parametrize("level", LEVELS)
def test_levels_give_the_same_bits(images, level):
    rotated = [*(op for op in GEOMETRIC_OPERATIONS), Operation.GAUSSIAN_BLUR, Operation.COLOR, Operation.SHARPNESS]
    for image in images:
        for operation in (*rotated, *RAND_AUGMENT_OPERATIONS, Operation.GRAYSCALE):
            argument = 1.3 if operation > Operation.SOLARIZE_ADD else 3.0
            given = ([operation], [argument])
            assert np.array_equal(
                direct.augment(image, *given, simd=level), direct.augment(image, *given, simd="portable")
            )
    for size in (160, 47):
        for picture, box in native_parity.random_boxes(12, seed=size):
            ours = direct.resize(picture, size, box=box, simd=level)
            assert np.array_equal(ours, direct.resize(picture, size, box=box, simd="portable"))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_outputs_are_rounded_as_torch_and_numpy_round(images, level, planar):
    for size in (160, 61):
        image = np.ascontiguousarray(images[0][:size, :size])
        scale, shift = np.float32(SCALE), np.float32(SHIFT)
        expected = torch.from_numpy(image.astype(np.float32) * scale + shift)
        if planar:
            expected = expected.permute(2, 0, 1)
        for output, dtype in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
            options = {"output": output, "scale": SCALE, "shift": SHIFT, "planar": planar, "simd": level}
            ours = torch.from_numpy(direct.augment(image, [], [], **options))
            ours = ours.view(torch.bfloat16) if output == "bfloat16" else ours
            assert torch.equal(ours, expected.to(dtype)), output
        ours = direct.augment(image, [], [], output="uint8", planar=planar, simd=level)
        assert np.array_equal(ours, image.transpose(2, 0, 1) if planar else image)


def encoded(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.skipif(plugin.is_available() and not plugin.decodes_jpeg(), reason=plugin.describe())
@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"optimize": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_decoded_region_is_that_part_of_pillows_image(options, mode):
    """Smooth chroma reaches over the region's borders: any region, touching the edges or not."""
    generator = np.random.default_rng(5)
    picture = Image.fromarray(photographs()[1]).resize((301, 227)).convert(mode)
    data = encoded(picture, quality=90, **options)
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(direct.decode(data), whole)
    for _ in range(25):
        height, width = int(generator.integers(1, 228)), int(generator.integers(1, 302))
        top, left = int(generator.integers(0, 228 - height)), int(generator.integers(0, 302 - width))
        part = direct.decode(data, (top, left, height, width))
        assert np.array_equal(part, whole[top : top + height, left : left + width])


def test_what_is_left_to_dalis_decoder():
    picture = Image.fromarray(photographs()[1]).resize((60, 40))
    plain = encoded(picture)
    assert direct.is_plain_jpeg(plain)
    assert direct.is_plain_jpeg(encoded(picture, progressive=True))
    assert direct.is_plain_jpeg(encoded(picture.convert("L")))
    others = [encoded(picture.convert("CMYK")), plain[:-40], plain[:100], b"", b"\xff\xd8", b"\xff" * 64]
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    assert not any(direct.is_plain_jpeg(data) for data in (*others, buffer.getvalue()))
