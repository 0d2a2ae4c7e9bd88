"""Fused kernels, each a folder: `reference.py` is the truth, `op.py` the public function."""
