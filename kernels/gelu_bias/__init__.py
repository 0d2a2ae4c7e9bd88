"""GELU with the bias before it, and the bias gradient in the same pass; `op.gelu_bias` is the public function."""

from .op import gelu_bias

__all__ = ["gelu_bias"]
