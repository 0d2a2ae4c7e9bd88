"""The student: ViT as DeiT (Touvron et al. 2021, section 3), with or without distillation token, and DeiT III.

State-dict keys, shapes and order are those of timm's `deit_*` and `deit3_*` models, and those of the official
checkpoints but for the names of LayerScale (see weights.py).

Shapes: B batch, N tokens (patches plus 1 or 2), K class and distillation token, C embedding.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from deit_fast.kernels.registration import say_once

from .blocks import Block, DropPath, Mlp, PatchEmbed, RunBlocks, call_block, recompute_block, run_blocks
from .fused_blocks import FusedBlock, FusedMlp, run_fused_blocks
from .variants import DEIT_VARIANTS, DeiTShape


class Heads(NamedTuple):
    """Logits [B, classes] of the class token, and of the distillation token where there is one."""

    cls: Tensor
    dist: Tensor | None


class DeiT(nn.Module):
    """ViT/DeiT. Call it to train (both heads) and for inference (their mean); `forward_heads` gives them apart."""

    def __init__(
        self,
        shape: DeiTShape,
        *,
        image_size_px: int,
        num_classes: int,
        attention: str = "auto",
        kernels: Collection[str] = (),
    ) -> None:
        """kernels: those to run in Triton, of add_norm and gelu_bias. ValueError when the patches do not tile the
        image."""
        super().__init__()
        patch, embed_dim, distilled = shape.patch_size_px, shape.embed_dim, shape.distilled
        if image_size_px % patch:
            below = image_size_px // patch * patch
            raise ValueError(
                f"model.image_size_px {image_size_px} is not a multiple of the patch size, {patch}; "
                f"use --model.image_size_px {below} or {below + patch}"
            )
        self.shape = shape
        self.checkpoint_blocks = False
        self.num_prefix_tokens = 2 if distilled else 1
        num_positions = (image_size_px // patch) ** 2 + (self.num_prefix_tokens if shape.positions_on_prefix else 0)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        self.patch_embed = PatchEmbed(patch, embed_dim)
        fused = "add_norm" in kernels
        build_block = FusedBlock if fused else Block
        self.run_blocks: RunBlocks = run_fused_blocks if fused else run_blocks
        self.blocks = nn.ModuleList(
            build_block(
                embed_dim,
                shape.num_heads,
                attention,
                layer_scale_init=shape.layer_scale_init,
                # the heads read only class and distillation token, so the last block computes no others
                num_queries=self.num_prefix_tokens if i == shape.depth - 1 else None,
                build_mlp=FusedMlp if "gelu_bias" in kernels else Mlp,
            )
            for i in range(shape.depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self.head_dist = nn.Linear(embed_dim, num_classes) if distilled else None
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal 0.02 for tokens, positions and linears; the patch convolution stays at torch's default."""
        for parameter in (self.cls_token, self.pos_embed, self.dist_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, C]: class token, distillation token, patches; with positions."""
        patches_BNC = self.patch_embed(images)
        if not self.shape.positions_on_prefix:
            patches_BNC = patches_BNC + self.pos_embed
        tokens = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        prefix = [token.to(patches_BNC.dtype).expand(len(images), -1, -1) for token in tokens]
        x_BNC = torch.cat([*prefix, patches_BNC], dim=1)
        return x_BNC + self.pos_embed if self.shape.positions_on_prefix else x_BNC

    def forward_heads(self, images: Tensor, drop_path: DropPath | None = None) -> Heads:
        """The logits of each head.

        images [B, 3, H, W], in any memory format, or their patches, as PatchEmbed takes them; drop_path: from
        `draw_drop_path_scale` (fp32 [2 * depth, B]) or `draw_kept_samples` (a list of int64 [kept]).
        """
        call = recompute_block if self.checkpoint_blocks and torch.is_grad_enabled() else call_block
        x_BKC = self.run_blocks(self.blocks, self.norm, self.tokens(images), drop_path, call)
        return Heads(self.head(x_BKC[:, 0]), None if self.head_dist is None else self.head_dist(x_BKC[:, 1]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward computes each block again from its input instead of finding what the forward kept.

        By timm's name for it. The same gradients, for a third more arithmetic (Chen et al. 2016, arXiv 1604.06174).
        """
        self.checkpoint_blocks = enable

    def forward(self, images: Tensor, drop_path: DropPath | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Training: (cls, dist) logits, or cls alone without a distillation token. Evaluation: their mean."""
        cls, dist = self.forward_heads(images, drop_path)
        if dist is None:
            return cls
        return (cls, dist) if self.training else (cls + dist) / 2


def has_dist_head(model: nn.Module) -> bool:
    """Whether the model has a distillation token with its own head."""
    return isinstance(model, DeiT) and model.head_dist is not None


def create_student(
    name: str,
    *,
    num_classes: int,
    image_size_px: int,
    drop_path_rate: float,
    attention: str,
    kernels: Collection[str] = (),
) -> nn.Module:
    """A DeiT of variants.py by its name, else timm's model of that name; ValueError, with near names, for neither.

    drop_path_rate goes to timm's models only: a DeiT gets its draws as an argument of each forward. kernels goes to
    DeiTs only: what of it timm's models leave to their own code is said once.
    """
    if name in DEIT_VARIANTS:
        return DeiT(
            DEIT_VARIANTS[name],
            image_size_px=image_size_px,
            num_classes=num_classes,
            attention=attention,
            kernels=kernels,
        )
    if inside := [kernel for kernel in ("add_norm", "gelu_bias") if kernel in kernels]:
        say_once(f"runtime.kernels: {' and '.join(inside)} are for the DeiTs of this package, not for timm's {name}")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*DEIT_VARIANTS, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "any name of timm.list_models() will do"
        raise ValueError(f"unknown model.name {name}: {hint}")
    options: dict[str, Any] = {"num_classes": num_classes, "drop_path_rate": drop_path_rate}
    try:
        return timm.create_model(name, pretrained=False, img_size=image_size_px, **options)
    except TypeError:  # a ConvNet takes images of any size, and no img_size
        return timm.create_model(name, pretrained=False, **options)
