"""Packaging: four folders at the top, one importable package.

`package_dir` maps the folders into the `deit_fast` namespace, because top-level packages called `kernels` or
`benchmarks` would collide with others of that name on the user's machine.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
MAPPED = ("dali_pipelines", "kernels", "benchmarks")

packages = ["deit_fast"]
package_dir = {"deit_fast": "deit_fast"}
for folder in MAPPED:
    package_dir[f"deit_fast.{folder}"] = folder
    packages += [f"deit_fast.{folder}"] + [f"deit_fast.{folder}.{sub}" for sub in find_packages(folder)]

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
    package_data={"deit_fast": ["py.typed", "recipes/*.yaml"]},
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
        "demo": ["scikit-learn", "pillow"],
        "report": ["matplotlib"],
        "tensorboard": ["tensorboard"],
        "peers": ["albumentations", "spdl"],
        "dev": [
            "pytest",
            "pytest-timeout",
            "ruff",
            "mypy",
            "pre-commit",
            "types-PyYAML",
            "scikit-image",
            "scikit-learn",
        ],
    },
    entry_points={"console_scripts": ["deit-fast = deit_fast.cli:main"]},
)
