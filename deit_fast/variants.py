"""The sizes of the DeiT family, by timm's names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeiTShape:
    """The sizes of a variant."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size_px: int
    image_size_px: int
    distilled: bool = False
    layer_scale_init: float | None = None
    """First value of LayerScale's gamma (DeiT III: 1e-4); None: the model has none."""
    positions_on_prefix: bool = True
    """Whether class and distillation token have positions too; DeiT III adds them to the patches only."""


def _deit() -> dict[str, DeiTShape]:
    """`mini` is for the demo and the tests, small enough to train on a CPU in a minute."""
    shapes = {
        "tiny": (192, 12, 3, 16, (224, 384)),
        "small": (384, 12, 6, 16, (224, 384)),
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


def _deit3() -> dict[str, DeiTShape]:
    """Touvron et al., "DeiT III: Revenge of the ViT", 2022 (arXiv 2204.07118)."""
    shapes = {
        "small": (384, 12, 6, 16, (224, 384)),
        "medium": (512, 12, 8, 16, (224,)),
        "base": (768, 12, 12, 16, (224, 384)),
        "large": (1024, 24, 16, 16, (224, 384)),
        "huge": (1280, 32, 16, 14, (224,)),
        "mini": (96, 6, 3, 8, (32,)),
    }
    return {
        f"deit3_{name}_patch{patch}_{size}": DeiTShape(
            embed_dim, depth, num_heads, patch, size, layer_scale_init=1e-4, positions_on_prefix=False
        )
        for name, (embed_dim, depth, num_heads, patch, sizes) in shapes.items()
        for size in sizes
    }


DEIT_VARIANTS = _deit() | _deit3()
