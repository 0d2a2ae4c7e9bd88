"""Triton's interpreter (3.8) rounds and multiplies bf16 as a GPU does, once these two are mended.

`tl.dot` on bf16 multiplies the 16-bit patterns as numbers (triton #11584), and fp32 -> bf16 truncates instead of
rounding to even. Products of 16-bit operands are exact in fp32, so operands are widened; the cast adds half of the last
place.

`tests/test_kernels_interpreted.py` runs this folder in a process of its own, because TRITON_INTERPRET has to be set
before triton is imported and the other tests need the compiler.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

create_dot = interpreter.InterpreterBuilder.create_dot
convert_float = interpreter._convert_float


def widened(operand):
    if operand.dtype.scalar == tl.bfloat16:
        return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    if operand.dtype.scalar == tl.float16:
        return interpreter.TensorHandle(operand.data.astype(np.float32), tl.float32)
    return operand


def dot_of_wide_operands(self, a, b, *rest):
    return create_dot(self, widened(a), widened(b), *rest)


def convert_float_rounding(data, source, target, *rest):
    if source == tl.float32 and target == tl.bfloat16:
        bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        data = bits.view(np.float32).reshape(np.shape(data))
    return convert_float(data, source, target, *rest)


interpreter.InterpreterBuilder.create_dot = dot_of_wide_operands
interpreter._convert_float = convert_float_rounding


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
