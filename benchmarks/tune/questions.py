"""What is asked, in this order: each question sees the answers before it."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch

from deit_fast.config import Config
from deit_fast.dali_pipelines.decode import HARDWARE_DECODER_SHARE
from deit_fast.dali_pipelines.native.plugin import is_available
from deit_fast.dali_pipelines.native_graph import choose_backend
from deit_fast.data import DEFAULT_PREFETCH
from deit_fast.distributed import Ranks
from deit_fast.kernels.attention.op import BACKENDS, SDPA_DTYPES
from deit_fast.kernels.choice import FUSED, candidates, has_kernel, triton_kernels
from deit_fast.precision import DTYPES, choose_precision
from deit_fast.variants import DEIT_VARIANTS

from .question import Candidate, Question

BATCH_FACTORS = (1, 0.25, 0.5, 2, 4, 8)
BATCH_FACTORS_ON_CPU = (1, 0.5)
"""More images need not be cheaper there, and memory is shared with everything else."""


def options(key: str, values: list[Any], names: list[str] | None = None) -> list[Candidate]:
    """One key, several values."""
    return [Candidate(name, {key: value}) for name, value in zip(names or map(str, values), values, strict=False)]


def default_first(found: list[Candidate], default: str) -> list[Candidate]:
    """The same with the default in front."""
    return sorted(found, key=lambda candidate: candidate.name != default)


def precisions(_config: Config, ranks: Ranks) -> list[Candidate]:
    """fp32 is left out on a GPU: its matrix products run at a sixteenth of the rate (A100, data sheet)."""
    names = ["fp32", "bf16"] if ranks.device.type == "cpu" else ["bf16", "fp16"]
    return default_first(options("runtime.precision", names), choose_precision("auto", ranks.device))


def attentions(config: Config, ranks: Ranks) -> list[Candidate]:
    """The backends that take this dtype on this device; a timm model has its own attention."""
    if config.model.name not in DEIT_VARIANTS:
        return []
    precision = choose_precision(config.runtime.precision, ranks.device)
    names = [name for name in candidates("attention") if takes(name, ranks.device, DTYPES[precision])]
    plain = ranks.device.type == "cpu" and precision == "bf16"  # as attention auto does
    return default_first(options("runtime.attention", names), "reference" if plain else "sdpa")


def takes(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether an attention backend is itself there, and not another in its place."""
    sdpa_backend = getattr(BACKENDS[name], "keywords", {}).get("sdpa_backend")
    if sdpa_backend is not None:
        return dtype in SDPA_DTYPES[device.type].get(sdpa_backend, ())
    return name != "triton" or has_kernel("attention", device, dtype)


def compilations(_config: Config, _ranks: Ranks) -> list[Candidate]:
    """Eager or compiled blocks."""
    return options("runtime.compile", [False, True], ["eager", "compiled"])


def compilations_again(config: Config, ranks: Ranks) -> list[Candidate]:
    """With our kernels there is less left for the compiler to fuse."""
    if not triton_kernels(config.runtime.kernels):
        return []
    now = "compiled" if config.runtime.compile else "eager"
    return default_first(compilations(config, ranks), now)


def with_kernel(kernel: str, config: Config, ranks: Ranks) -> list[Candidate]:
    """The kernels chosen so far, without and with this one."""
    dtype = DTYPES[choose_precision(config.runtime.precision, ranks.device)]
    if not has_kernel(kernel, ranks.device, dtype) or config.model.name not in DEIT_VARIANTS:
        return []
    so_far = triton_kernels(config.runtime.kernels)
    return [
        Candidate("reference", {"runtime.kernels": ",".join(so_far) or "reference"}),
        Candidate("triton", {"runtime.kernels": ",".join([*so_far, kernel])}),
    ]


def graphs(config: Config, ranks: Ranks) -> list[Candidate]:
    """Compiled blocks launched one by one, or replayed."""
    runtime = config.runtime
    if ranks.device.type != "cuda" or not runtime.compile or runtime.checkpoint_activations:
        return []
    return options("runtime.cuda_graphs", [False, True], ["launched", "replayed"])


def teacher_forms(config: Config, ranks: Ranks) -> list[Candidate]:
    """Layout x folded x dtype, not compiled."""
    if not has_live_teacher(config):
        return []
    student = choose_precision(config.runtime.precision, ranks.device)
    others = ["fp32", "bf16"] if ranks.device.type == "cpu" else ["bf16", "fp16"]
    dtypes = [student, *(other for other in others if other != student)]
    return [
        Candidate(
            f"{layout}, {'folded' if fold else 'not folded'}, {dtype}",
            {"runtime.teacher_layout": layout, "runtime.teacher_fold": fold, "runtime.teacher_precision": dtype},
        )
        for dtype, layout, fold in product(dtypes, ("channels_last", "contiguous"), (True, False))
    ]


def teacher_compilations(config: Config, _ranks: Ranks) -> list[Candidate]:
    """The form chosen, and both layouts compiled: which is faster may turn round."""
    if not has_live_teacher(config):
        return []
    now = {"runtime.teacher_layout": config.runtime.teacher_layout, "runtime.teacher_compile": False}
    compiled = [
        Candidate(f"compiled, {layout}", {"runtime.teacher_layout": layout, "runtime.teacher_compile": True})
        for layout in ("channels_last", "contiguous")
    ]
    return [Candidate("eager", now), *compiled]


def has_live_teacher(config: Config) -> bool:
    """Whether a teacher runs beside the student."""
    return config.distill.kind != "none" and config.distill.label_cache is None


def backends(_config: Config, ranks: Ranks) -> list[Candidate]:
    """Native operators or DALI's, where both are."""
    if ranks.device.type == "cuda" or not is_available():
        return []
    return default_first(options("data.backend", ["native", "graph"]), choose_backend("auto", "cpu"))


def decoders(_config: Config, ranks: Ranks) -> list[Candidate]:
    """Where the JPEGs of a GPU are decoded."""
    return options("data.decoder", ["gpu", "cpu"]) if ranks.device.type == "cuda" else []


def decoder_shares(config: Config, ranks: Ranks) -> list[Candidate]:
    """For the hardware decoder of a GPU; one that has none gives equal times, and the default stays."""
    if ranks.device.type != "cuda" or config.data.decoder == "cpu":
        return []
    return options("data.hardware_decoder_share", [HARDWARE_DECODER_SHARE, 0.0, 0.5, 0.75, 1.0])


def threads(_config: Config, ranks: Ranks) -> list[Candidate]:
    """Up to this process's share of the cores."""
    cores = ranks.cores
    counts = dict.fromkeys([cores, max(1, cores * 3 // 4), max(1, cores // 2), max(1, cores // 4)])
    return options("data.num_threads", list(counts))


def prefetches(_config: Config, _ranks: Ranks) -> list[Candidate]:
    """Batches ahead."""
    return options("data.prefetch", [DEFAULT_PREFETCH, 2 * DEFAULT_PREFETCH])


def batch_sizes(config: Config, ranks: Ranks) -> list[Candidate]:
    """Around the batch that was asked for; those that do not fit fail, and are told."""
    size = config.runtime.batch_size_per_device
    factors = BATCH_FACTORS if ranks.device.type == "cuda" else BATCH_FACTORS_ON_CPU
    sizes = dict.fromkeys(max(2, int(size * factor) // 2 * 2) for factor in factors)
    return [Candidate(str(size), {"runtime.batch_size_per_device": size}) for size in sizes]


QUESTIONS = [
    Question("precision", "step", precisions),
    Question("attention", "step", attentions),
    Question("student", "step", compilations),
    *(Question(kernel, "step", partial(with_kernel, kernel)) for kernel in FUSED),
    Question("student with kernels", "step", compilations_again),
    Question("cuda graphs", "step", graphs),
    Question("teacher", "teacher", teacher_forms),
    Question("teacher compiled", "teacher", teacher_compilations),
    Question("loader", "loader", backends),
    Question("decoder", "loader", decoders),
    Question("hardware decoder", "loader", decoder_shares),
    Question("loader threads", "loader", threads, by_speed=True),
    Question("prefetch", "loader", prefetches),
    Question("batch size", "step", batch_sizes, only_told=True),
]
