"""What a run says before its first step: batch, learning rate, cores, and what differs from the recipe."""

from __future__ import annotations

from collections.abc import Callable

import torch

from deit_fast.dali_pipelines.native import plugin
from deit_fast.kernels.choice import has_kernel, triton_kernels

from .apex import explain, find_apex
from .config import Config, RuntimeConfig
from .distributed import Ranks
from .host import LOADER_CPU_MS_PER_IMAGE, cores_wanted, host_warnings, pin_cores, raise_open_file_limit
from .keep_memory import keep_freed_memory
from .optim import scaled_lr
from .precision import DTYPES, choose_precision
from .tuned import describe_tuned

TARGET_IMAGES_PER_SECOND = 4_700
"""Of DeiT-B without teacher on an H100 at 50 % of its peak; predicted, no measurement."""


def describe_batch(config: Config, ranks: Ranks, global_batch_size: int) -> str:
    """Both batches and the rate: `global batch 1,024 = 128 per device x 8 devices; peak learning rate 0.001`."""
    runtime = config.runtime
    times = f" x {runtime.accumulate_steps} accumulated" if runtime.accumulate_steps > 1 else ""
    devices = "1 device" if ranks.world_size == 1 else f"{ranks.world_size} devices"
    lr = scaled_lr(config.optim, global_batch_size)
    scaled = f" ({config.optim.lr:g} x {global_batch_size} / 512)" if config.optim.scale_lr else ""
    return (
        f"global batch {global_batch_size:,} = {runtime.batch_size_per_device} per device x {devices}{times}; "
        f"peak learning rate {lr:g}{scaled}"
    )


def batch_warning(config: Config, global_batch_size: int) -> str | None:
    """One line when the global batch is not the recipe's: published accuracies fell with other ones (deit #63)."""
    optim = config.optim
    recipe = optim.recipe_batch_size
    if recipe is None or recipe == global_batch_size:
        return None
    lr = scaled_lr(optim, global_batch_size)
    if optim.scale_lr:
        rate = f"the peak learning rate becomes {lr:g} instead of {scaled_lr(optim, recipe):g}"
    else:
        rate = f"the peak learning rate stays {lr:g}, which was tuned for {recipe:,}"
    return (
        f"the global batch is {global_batch_size:,}, the recipe's {recipe:,}: {rate}, and the published accuracy "
        "may not be reached (DeiT-B fell from 81.8 to 78.8 % at 512, deit issue 63); "
        "--runtime.accumulate_steps makes it larger"
    )


def describe_loader(backend: str, ranks: Ranks) -> str:
    """Which backend makes the batches, and on a CPU what there is to make them with."""
    if ranks.device.type == "cuda":
        return f"loader: {backend} backend, on the GPU"
    return f"loader: {backend} backend; {plugin.describe()}"


def describe_kernels(runtime: RuntimeConfig, device: torch.device) -> str:
    """Which kernels are fused, which attention, and what of it there is not on this device."""
    names = triton_kernels(runtime.kernels)
    fused = f"{', '.join(names)} fused" if names else "plain torch"
    dtype = DTYPES[choose_precision(runtime.precision, device)]
    asked = (*names, *(["attention"] if runtime.attention == "triton" else []))
    absent = [name for name in asked if not has_kernel(name, device, dtype)]
    remark = f" (no kernel for {', '.join(absent)} here: plain torch)" if absent else ""
    return f"kernels: {fused}; attention {runtime.attention}{remark}"


def prepare_host(config: Config, ranks: Ranks) -> None:
    """Binds this process to its cores, before any thread is started; on a CPU, has it keep its memory."""
    if config.runtime.pin_cores and ranks.device.type == "cuda":
        pin_cores(ranks)
    if config.runtime.keep_memory and ranks.device.type == "cpu":
        keep_freed_memory()


def say_start(config: Config, ranks: Ranks, global_batch_size: int, backend: str, say: Callable[[str], None]) -> None:
    """The lines before the first step."""
    say(describe_batch(config, ranks, global_batch_size))
    say(describe_loader(backend, ranks))
    say(describe_tuned(config, ranks.device))
    say(describe_kernels(config.runtime, ranks.device))
    wanted = cores_wanted(TARGET_IMAGES_PER_SECOND)
    say(
        f"{ranks.cores} CPU cores for each device; the loader at 224 px would need {wanted:.1f} for "
        f"{TARGET_IMAGES_PER_SECOND:,} images/s a device (predicted: {LOADER_CPU_MS_PER_IMAGE} CPU-ms an image)"
    )
    if ranks.device.type == "cuda" and (config.optim.name == "lamb" or find_apex() != "missing"):
        say(explain(find_apex()))
    elif find_apex() == "unrelated":
        say(explain("unrelated"))
    for warning in [batch_warning(config, global_batch_size), *host_warnings(raise_open_file_limit())]:
        if warning is not None:
            say(f"warning: {warning}")
