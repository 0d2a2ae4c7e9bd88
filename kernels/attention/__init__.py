"""Multi-head self-attention on packed qkv; `op.attention` is the public function."""

from .op import BACKENDS, attention

__all__ = ["BACKENDS", "attention"]
