"""The loss of DeiT with its gradient in one pass; `op.distill_loss` is the public function."""

from .op import LossParts, LossTerms, distill_loss, distill_loss_parts

__all__ = ["LossParts", "LossTerms", "distill_loss", "distill_loss_parts"]
