"""Started by torchrun: sums a megabyte over all processes, and ends with 1 when the sum is wrong."""

from __future__ import annotations

import sys

import torch

from deit_fast.distributed import process_group

NUMBERS = 1 << 18


def main(device: str) -> int:
    """Every process adds its rank + 1."""
    with process_group(device) as ranks:
        total = ranks.sum(torch.full((NUMBERS,), ranks.rank + 1.0, device=ranks.device))
        expected = ranks.world_size * (ranks.world_size + 1) / 2
        return 0 if bool((total == expected).all()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
