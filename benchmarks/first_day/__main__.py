"""`python -m deit_fast.benchmarks.first_day`: what `make gpu` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from deit_fast.distributed import choose_device
from deit_fast.environment import describe_environment

from ..options import say
from ..photographs import PHOTOGRAPHS, make_photographs
from .run import read_results, run_step
from .show import write_page
from .steps import Plan, build_steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the steps in order and writes the page after each; 1 when one did not hold. Without a GPU: says so, 0."""
    usage = "%(prog)s [options] [--section.key value ...]"
    parser = argparse.ArgumentParser("make gpu", usage=usage, description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU, or nothing")
    parser.add_argument("--config", default="deit_base_distilled", help="a recipe; its teacher has random weights")
    parser.add_argument("--data", metavar="DIR", help="images; default: photographs that are made")
    parser.add_argument("--minutes", type=float, default=20.0, help="for tune")
    parser.add_argument("--out", metavar="DIR", default="runs/gpu", help="logs, results and report.html")
    parser.add_argument("--only", default="", metavar="STEP,STEP", help="some of the steps; the page keeps the others")
    options, overrides = parser.parse_known_args(arguments)
    if options.device == "auto" and not torch.cuda.is_available():
        say("make gpu: torch finds no GPU here, so there is nothing to try; deit-fast doctor says why")
        return 0
    device = choose_device("cpu" if options.device == "cpu" else "cuda")
    plan = Plan(
        out=Path(options.out),
        device=device.type,
        devices=torch.cuda.device_count() if device.type == "cuda" else 1,
        config=options.config,
        data=options.data,
        minutes=options.minutes,
        overrides=tuple(overrides),
    )
    plan.out.mkdir(parents=True, exist_ok=True)
    steps = build_steps(plan)
    wanted = [name for name in options.only.split(",") if name]
    if unknown := set(wanted) - {step.name for step in steps}:
        parser.error(f"--only {min(unknown)}: the steps are {', '.join(step.name for step in steps)}")
    results = read_results(plan.out)
    for step in steps:
        if wanted and step.name not in wanted:
            continue
        say(f"{step.name}: {step.promise}")
        if step.name == "profile" and not plan.data:  # whose verb makes no images, as the benchmarks' do
            make_photographs(PHOTOGRAPHS)
        results[step.name] = run_step(step, plan.out)
        say(f"  {'held' if results[step.name].held else 'did NOT hold'}: {results[step.name].text}")
        page = write_page(steps, results, describe_environment(device), plan.out)
    say(f"{page}: what held and what did not")
    return 0 if all(result.held for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
