"""Runs `tests/interpreted/`, the Triton kernels in Triton's interpreter, in a process that has TRITON_INTERPRET set.

By hand: TRITON_INTERPRET=1 python -m pytest tests/interpreted
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


def run_interpreted(*options):
    command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", "--no-header", *options]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_kernels_in_the_interpreter():
    run_interpreted("-m", "not slow and not gpu")


@pytest.mark.slow
def test_kernels_in_the_interpreter_slow_part():
    run_interpreted("-m", "slow and not gpu")
