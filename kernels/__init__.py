"""Fused kernels, each a folder: `reference.py` is the truth, `triton.py` the kernel, `op.py` the public function.

Beside them: how kernels are launched (`launch.py`), become operators (`registration.py`), are chosen (`choice.py`), and
are checked without a GPU (`cases.py`, `resources.py`, `budget.py`).
"""
