"""The loss of DeiT with its gradient in one pass; `op.distill_loss` is the public function."""

from .op import LossTerms, distill_loss

__all__ = ["LossTerms", "distill_loss"]
