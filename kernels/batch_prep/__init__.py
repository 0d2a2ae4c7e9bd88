"""Mixing, normalisation, cast and layout of a batch in one pass; `op.batch_prep` is the public function."""

from .op import Prepared, batch_prep, patch_weight

__all__ = ["Prepared", "batch_prep", "patch_weight"]
