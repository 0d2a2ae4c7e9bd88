"""Residual add, LayerScale, drop-path and LayerNorm in one pass; `op.add_norm` is the public function."""

from .op import add_norm, branch_slots

__all__ = ["add_norm", "branch_slots"]
