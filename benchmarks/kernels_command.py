"""`deit-fast bench kernels`: times the kernels here, or says what their compiled code would cost elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from deit_fast.bench_records import Record, append_record
from deit_fast.config_file import config_parser, parse_arguments
from deit_fast.environment import describe_environment

from .kernel_contenders import Sizes
from .options import Options, say
from .records import build_record

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CPU_SIZES = {"batch": 2, "heads": 3, "head_dim": 64}
"""Where speed is not the point: DeiT-Ti's width."""


def run(arguments: Sequence[str]) -> int:
    """Parses, measures or compiles, shows; ValueError for wrong use."""
    options = parse_arguments(_parser(), arguments)
    if options.write and options.resources != "all":
        raise ValueError("--write belongs to --resources all: the budget file holds every architecture")
    if options.budget:
        from .kernel_resources import budget_markdown

        say(budget_markdown())
        return 0
    if options.speed_of_light:
        from .speed_of_light import show_speed_of_light

        rows = show_speed_of_light(options.speed_of_light)
        record = _model(f"lower bounds on {options.speed_of_light}", bounds=rows)
    elif options.resources:
        record = _model("resources of compiled kernels", resources=_resources(options))
    else:
        record = _measure(options)
    if options.json:
        append_record(options.json, record)
    return 0


def _model(title: str, **found: Any) -> Record:
    """A record of what was compiled and counted; rows are for what was measured."""
    return build_record("kernels", title, [], torch.device("cpu"), config={}, **found)


def _parser() -> Any:
    name = "deit-fast bench kernels"
    parser = config_parser(name, "Times the kernels, or counts what is compiled.", usage=f"{name} [options]")
    parser.add_argument("--kernels", default="", help="some of them, with commas between; default: all")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--batch", type=int, help="images; default: 256 on a GPU, 2 on a CPU")
    parser.add_argument("--tokens", type=int, default=198, help="tokens of an image; default: 198 (224 px, distilled)")
    parser.add_argument(
        "--turns", type=int, default=20, help="timed turns of each implementation, after one to warm up"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--speed-of-light", metavar="GPU", help="a100, h100 or b200: lower bounds, a model; needs no GPU"
    )
    parser.add_argument(
        "--resources", metavar="SM", help="all, or of 80,90,100,120: registers, spills, ...; needs no GPU"
    )
    parser.add_argument("--write", action="store_true", help="with --resources all: make it the budget of the tests")
    parser.add_argument("--budget", action="store_true", help="print kernels/budget.yaml as a table of docs/kernels.md")
    parser.add_argument("--json", metavar="FILE", help="append the result as one JSON line")
    return parser


def _resources(options: Options) -> dict[str, Any]:
    from .kernel_resources import architectures, kernel_resources, save_budget, show_resources

    chosen = architectures(options.resources)
    with Console().status("compiling") as status:
        rows = kernel_resources(chosen, lambda what: status.update(f"compiling {what}"))
    show_resources(rows)
    if options.write:
        save_budget(rows)
    return rows


def _measure(options: Options) -> Record:
    from .kernels import fastest, measure_kernels, show_kernels

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = Sizes(batch=options.batch or 256, tokens=options.tokens)
    if device == "cpu":
        sizes = Sizes(**(CPU_SIZES | ({"batch": options.batch} if options.batch else {})), tokens=options.tokens)
    only = tuple(name for name in options.kernels.split(",") if name)
    rows = measure_kernels(
        sizes, DTYPES[options.dtype], device, turns=options.turns, compiled=not options.no_compile, only=only
    )
    environment = describe_environment(torch.device(device))
    title = f"forward + backward, batch {sizes.batch}, {sizes.tokens} tokens, {sizes.heads} heads, {options.dtype}, "
    title += str(environment["device"] if device == "cuda" else environment["cpu"])
    show_kernels(rows, title)
    if device == "cpu":
        say("These are the times of a CPU and its kernels; the Triton kernels are timed on a GPU only.")
    config = {"sizes": asdict(sizes), "dtype": options.dtype}
    return build_record("kernels", title, rows, torch.device(device), config=config, fastest=fastest(rows))
