"""The student: ViT as DeiT trains it, with or without distillation token (Touvron et al. 2021, section 3).

State-dict keys, shapes and order are those of timm's `deit_*` models and of the official checkpoints.

Shapes: B batch, N tokens (patches plus 1 or 2), C embedding, H heads, D = C / H.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn

from deit_fast.dali_pipelines.philox import Stream, uniforms
from deit_fast.kernels.attention import attention


@dataclass(frozen=True)
class DeiTShape:
    """The sizes of a variant."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size_px: int
    image_size_px: int
    distilled: bool


def _variants() -> dict[str, DeiTShape]:
    """Names as in timm. `mini` is for the demo and the tests, small enough to train on a CPU in a minute."""
    shapes = {
        "tiny": (192, 12, 3, 16, (224,)),
        "small": (384, 12, 6, 16, (224,)),
        "base": (768, 12, 12, 16, (224, 384)),
        "mini": (96, 6, 3, 8, (32,)),
    }
    variants = {}
    for name, (embed_dim, depth, num_heads, patch, sizes) in shapes.items():
        for distilled in (False, True):
            for size in sizes:
                full = f"deit_{name}_{'distilled_' if distilled else ''}patch{patch}_{size}"
                variants[full] = DeiTShape(embed_dim, depth, num_heads, patch, size, distilled)
    return variants


DEIT_VARIANTS = _variants()


class Heads(NamedTuple):
    """Logits [B, classes] of the class token, and of the distillation token where there is one."""

    cls: Tensor
    dist: Tensor | None


class PatchEmbed(nn.Module):
    """Cuts images [B, 3, H, W] into patches and projects each: [B, patches, C]."""

    def __init__(self, patch_size_px: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size_px, patch_size_px)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with packed qkv."""

    def __init__(self, embed_dim: int, num_heads: int, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, C = x_BNC.shape
        qkv_BN3HD = self.qkv(x_BNC).view(B, N, 3, self.num_heads, C // self.num_heads)
        return self.proj(attention(qkv_BN3HD, self.backend))


class Mlp(nn.Module):
    """Two linears with exact GELU between them; hidden size 4C."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, 4 * embed_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * embed_dim, embed_dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_BNC)))


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth per sample."""

    def __init__(self, embed_dim: int, num_heads: int, attention_backend: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads, attention_backend)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim)

    def forward(self, x_BNC: Tensor, scale_2B: Tensor | None = None) -> Tensor:
        """scale_2B [2, B]: what the attention and the MLP branch of each sample are multiplied by; None: 1."""
        if scale_2B is None:
            x_BNC = x_BNC + self.attn(self.norm1(x_BNC))
            return x_BNC + self.mlp(self.norm2(x_BNC))
        x_BNC = x_BNC + scale_2B[0, :, None, None] * self.attn(self.norm1(x_BNC))
        return x_BNC + scale_2B[1, :, None, None] * self.mlp(self.norm2(x_BNC))


class DeiT(nn.Module):
    """ViT/DeiT. Call it to train (both heads) and for inference (their mean); `forward_heads` gives them apart."""

    def __init__(
        self,
        *,
        image_size_px: int,
        patch_size_px: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        distilled: bool,
        attention: str = "auto",
    ) -> None:
        """ValueError when the patches do not tile the image."""
        super().__init__()
        if image_size_px % patch_size_px:
            raise ValueError(
                f"model.image_size_px {image_size_px} is not a multiple of the patch size, {patch_size_px}"
            )
        self.num_prefix_tokens = 2 if distilled else 1
        num_patches = (image_size_px // patch_size_px) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + num_patches, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        self.patch_embed = PatchEmbed(patch_size_px, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, attention) for _ in range(depth))
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
        """[B, 3, H, W] -> [B, N, C]: class token, distillation token, patches; positions added to all."""
        patches_BNC = self.patch_embed(images)
        prefix: list[Tensor] = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        prefix_BNC = torch.cat(prefix, dim=1).expand(len(images), -1, -1)
        return torch.cat([prefix_BNC.to(patches_BNC.dtype), patches_BNC], dim=1) + self.pos_embed

    def forward_heads(self, images: Tensor, drop_path_scale: Tensor | None = None) -> Heads:
        """The logits of each head.

        images [B, 3, H, W], in any memory format; drop_path_scale fp32 [2 * depth, B]: what each residual branch of
        each sample is multiplied by (0, or 1 / keep probability), from `draw_drop_path_scale`.
        """
        x_BNC = self.tokens(images)
        for i, block in enumerate(self.blocks):
            x_BNC = block(
                x_BNC, None if drop_path_scale is None else drop_path_scale[2 * i : 2 * i + 2].to(x_BNC.dtype)
            )
        x_BNC = self.norm(x_BNC[:, : self.num_prefix_tokens])  # the heads read only these tokens
        return Heads(self.head(x_BNC[:, 0]), None if self.head_dist is None else self.head_dist(x_BNC[:, 1]))

    def forward(self, images: Tensor, drop_path_scale: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Training: (cls, dist) logits, or cls alone without a distillation token. Evaluation: their mean."""
        cls, dist = self.forward_heads(images, drop_path_scale)
        if dist is None:
            return cls
        return (cls, dist) if self.training else (cls + dist) / 2


def draw_drop_path_scale(seed: int, step: int, views: Tensor, *, rate: float, depth: int) -> Tensor | None:
    """Stochastic depth for a batch: fp32 [2 * depth, B] on the host, each 0 or 1 / keep probability; None for rate 0.

    The rate grows linearly from 0 at the first block to `rate` at the last (linspace, as timm). A pure function of
    (seed, step, block, view), so it is the same however the batch is split over devices.
    """
    if rate == 0:
        return None
    keep = 1 - np.linspace(0, rate, depth).repeat(2)
    draws = uniforms(seed, Stream.DROP_PATH, step, views.cpu().numpy(), 2 * depth).T
    return torch.from_numpy(((draws < keep[:, None]) / keep[:, None]).astype(np.float32))


def has_dist_head(model: nn.Module) -> bool:
    """Whether the model has a distillation token with its own head."""
    return isinstance(model, DeiT) and model.head_dist is not None


def create_student(
    name: str, *, num_classes: int, image_size_px: int, drop_path_rate: float, attention: str
) -> nn.Module:
    """A DeiT of this file by its name, else timm's model of that name; ValueError, with near names, for neither.

    drop_path_rate goes to timm's models only: a DeiT gets its draws as an argument of each forward.
    """
    if name in DEIT_VARIANTS:
        shape = DEIT_VARIANTS[name]
        return DeiT(
            image_size_px=image_size_px,
            patch_size_px=shape.patch_size_px,
            embed_dim=shape.embed_dim,
            depth=shape.depth,
            num_heads=shape.num_heads,
            num_classes=num_classes,
            distilled=shape.distilled,
            attention=attention,
        )
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*DEIT_VARIANTS, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "any name of timm.list_models() will do"
        raise ValueError(f"unknown model.name {name}: {hint}")
    options: dict[str, Any] = {"num_classes": num_classes, "drop_path_rate": drop_path_rate}
    try:
        return timm.create_model(name, pretrained=False, img_size=image_size_px, **options)
    except TypeError:  # a ConvNet takes images of any size, and no img_size
        return timm.create_model(name, pretrained=False, **options)
