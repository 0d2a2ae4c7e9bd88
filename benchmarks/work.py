"""What a contender does, with the arithmetic behind it; and the rate at which the device multiplies matrices.

A CPU has no data sheet that tells its peak, so it is measured: plain matrix products in the run's precision, in the
same turns as all else. The fastest turn counts, so that a disturbance of it does not flatter the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from deit_fast.distributed import Ranks
from deit_fast.precision import DTYPES
from deit_fast.utilisation import peak_flops

from .memory import MemoryMeter
from .timing import Contender, Prepare, Timings, time_in_turns

MATRIX = Contender("matrix products", "torch")
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
MATRIX_PRODUCTS = 8
"""At least so many in a turn: 17 GFLOP on a CPU."""


class Work(NamedTuple):
    """A contender's turns, and what its rows need to know."""

    prepare: Prepare
    flops_per_image: float | None = None
    turn_is_step: bool = False
    step_seconds: list[list[float]] | None = None
    """For turns of several steps: each turn appends those of its steps."""
    on_one_device: bool = False
    """The others wait."""


def synchronised(work: Callable[[], object], images: int, device: torch.device) -> Prepare:
    """A turn that ends when the device has done the work."""

    def turn() -> int:
        work()
        wait_for(device)
        return images

    return lambda: turn


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_work(flops_per_image: float, precision: str, device: torch.device) -> Work:
    """Products that need the FLOPs of some images, so that their images/s are the most a step could reach here."""
    side = MATRIX_SIDE[device.type]
    images = max(1, math.ceil(MATRIX_PRODUCTS * 2 * side**3 / flops_per_image))
    products = math.ceil(images * flops_per_image / (2 * side**3))
    inner = round(images * flops_per_image / (2 * side**2 * products))  # makes the sum exact to 1 in 500
    left, right = (
        torch.randn(shape, device=device, dtype=DTYPES[precision]) for shape in ((side, inner), (inner, side))
    )
    out = torch.empty(side, side, device=device, dtype=DTYPES[precision])

    def multiply() -> None:
        for _ in range(products):
            torch.mm(left, right, out=out)

    return Work(synchronised(multiply, images, device), flops_per_image)


def time_work(
    works: dict[Contender, Work],
    ranks: Ranks,
    *,
    turns: int,
    warm_up_turns: int,
    meter: MemoryMeter | None = None,
) -> Timings:
    """Times all in turns; MFU by the device's data sheet, on a CPU by MATRIX, which has to be among them."""
    prepares = {contender: work.prepare for contender, work in works.items()}
    timings = time_in_turns(prepares, turns, warm_up_turns, ranks=ranks, meter=meter)
    for contender, work in works.items():
        timing = timings[contender]
        timing.flops_per_image = work.flops_per_image
        if work.turn_is_step:
            timing.step_seconds = list(timing.seconds)
        elif work.step_seconds is not None:
            timing.step_seconds = [seconds for turn in work.step_seconds[warm_up_turns:] for seconds in turn]
    peak = peak_of_all(timings, ranks)
    for contender, work in works.items():
        share = ranks.world_size if work.on_one_device else 1
        timings[contender].peak_flops = None if peak is None else peak / share
    return timings


def peak_of_all(timings: Timings, ranks: Ranks) -> float | None:
    """FLOP/s of all devices: by the data sheet, else by the fastest turn of MATRIX; None without either."""
    known = peak_flops(ranks.device)
    if known is not None:
        return known * ranks.world_size
    matrix = timings.get(MATRIX)
    if matrix is None or matrix.flops_per_image is None:
        return None
    return max(matrix.speeds) * matrix.flops_per_image
