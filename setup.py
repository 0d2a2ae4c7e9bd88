"""Packaging: four folders at the top, one importable package, and what is compiled where it can be.

`package_dir` maps the folders into the `deit_fast` namespace, because top-level packages called `kernels` or
`benchmarks` would collide with others of that name on the user's machine.
"""

import importlib.util
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).parent
MAPPED = ("dali_pipelines", "kernels", "benchmarks")

packages = ["deit_fast"] + [f"deit_fast.{sub}" for sub in find_packages("deit_fast")]
package_dir = {"deit_fast": "deit_fast"}
for folder in MAPPED:
    package_dir[f"deit_fast.{folder}"] = folder
    packages += [f"deit_fast.{folder}"] + [f"deit_fast.{folder}.{sub}" for sub in find_packages(folder)]

CPU_KERNELS = Extension(
    "deit_fast.kernels.cpu.libdeit_fast_cpu",
    sources=["kernels/cpu/elementwise.cc", "kernels/cpu/attention.cc"],
    depends=["kernels/cpu/loops.h", "kernels/cpu/bf16_products.h"],
    extra_compile_args=[
        *("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-Wall", "-Wextra"),
        *("-Wno-maybe-uninitialized", "-Wno-uninitialized"),  # GCC 12's own AVX-512 header
    ],
    extra_link_args=["-fopenmp"],
    optional=True,
)
NATIVE = "deit_fast.dali_pipelines.native"
spec = importlib.util.spec_from_file_location("native_build", ROOT / "dali_pipelines/native/build.py")
native_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native_build)  # by its path: the package is not installed yet


class BuildNative(build_ext):
    """Compiles the native DALI operators and the CPU kernels; where that cannot be, says what is lost and goes on."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))  # loaded by its path, so not named for one Python

    def build_extension(self, ext):
        if ext is CPU_KERNELS:
            self.build_cpu_kernels(ext)
        else:
            self.build_dali_operators(ext)

    def build_cpu_kernels(self, ext):
        try:
            super().build_extension(ext)
        except (CompileError, LinkError) as error:
            self.warn(f"CPU kernels not built: {error}. runtime.kernels does the same in plain torch at more CPU time")

    def build_dali_operators(self, ext):
        try:
            native_build.build(Path(self.get_ext_fullpath(ext.name)).parent, Path(self.build_temp) / "native")
        except native_build.NotBuildableError as error:
            self.warn(f"native DALI operators not built: {error}. data.backend graph does the same at more CPU time")


version = re.search(r'__version__ = "([^"]+)"', (ROOT / "deit_fast/__init__.py").read_text()).group(1)

setup(
    name="deit-fast",
    version=version,
    description="DeiT on ImageNet-1k from JPEG files: the official recipe, as fast as the hardware allows",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "deit_fast": ["py.typed", "recipes/*.yaml"],
        "deit_fast.page": ["*.css", "*.js"],
        "deit_fast.kernels": ["budget.yaml"],
        NATIVE: ["*.h", "*.cc", "*.cu", "*.json", "*.cubin", "*.ptx"],
    },
    ext_modules=[Extension(f"{NATIVE}.{Path(native_build.PLUGIN).stem}", sources=[], optional=True), CPU_KERNELS],
    cmdclass={"build_ext": BuildNative},
    install_requires=[
        "torch>=2.9",
        "torchvision",
        "timm>=1.0.20",
        "numpy",
        "pyyaml",
        "jsonargparse>=4.49",
        "docstring-parser",
        "rich",
        "safetensors",
    ],
    extras_require={
        # The two DALI wheels write the same files: install exactly one of them.
        "cuda12": ["nvidia-dali-cuda120>=2.0"],
        "cuda13": ["nvidia-dali-cuda130>=2.0"],
        # Headers for the native operators; install them, and DALI, before the package itself.
        "native": list(native_build.CUDA_HEADERS),
        "demo": ["scikit-learn", "pillow"],
        "report": ["vl-convert-python>=1.9"],
        "object-store": ["fsspec", "s3fs"],
        "parquet": ["pyarrow"],
        "devkit": ["scipy"],
        "tensorboard": ["tensorboard"],
        "peers": ["albumentations", "opencv-python-headless", "spdl"],
        "ffcv": ["ffcv"],  # compiled on the machine, against OpenCV and libturbojpeg (docs/peers.md)
        "dev": [
            "pytest",
            "pytest-timeout",
            "ruff",
            "mypy",
            "pre-commit",
            "types-PyYAML",
            "scikit-image",
            "scikit-learn",
            "fsspec",
            "s3fs",
            "moto[s3]",
            "flask",
            "flask-cors",
            "pyarrow",
            "scipy",
            "webdataset",
            "playwright",  # drives the Chromium of the system: it downloads none
            "albumentations",
            "opencv-python-headless",
            "spdl",
        ],
    },
    entry_points={"console_scripts": ["deit-fast = deit_fast.cli:main"]},
)
