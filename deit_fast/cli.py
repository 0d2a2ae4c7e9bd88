"""`deit-fast VERB`: parses, runs, and turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from . import __version__

USAGE = """\
deit-fast VERB [options]

  demo    trains a teacher and a distilled student on a small real data set; a few minutes on 2 CPU cores
  train   deit-fast train --config deit_base_distilled --data.path /imagenet [--section.key value ...]
  eval    deit-fast eval --checkpoint FILE --data.path /imagenet: top-1 and top-5 by [CLS], distillation token, average
  bench   deit-fast bench loader|step|train|kernels: images/s of every stage against the budget, times of kernels;
          parity with timm; images: those of each pipeline here against the CPU's; accuracy: the recipe's claims in
          small; compare A B: what differs beyond noise between two runs; report ROWS.jsonl --out FILE.html: all of it
          as one page
  profile deit-fast profile --config RECIPE --data.path DIR: where each millisecond of a step goes; profile compare A B
  tune    deit-fast tune --config RECIPE: measures what is fastest here, for train and bench to use
  doctor  deit-fast doctor --config RECIPE --data.path DIR: what would go wrong in the next days, and its mend
  plan    deit-fast plan --config deit_base_distilled --gpu h100 --gpus 8 --price 2.5: days, cost, memory and limit of a
          run, predicted before anything is rented
  data    deit-fast data scan|pack|verify|sample: find bad images, pack tar shards, check them, write a small data set
  teacher-cache  deit-fast teacher-cache --config deit_base_distilled --data.path /imagenet --out DIR: the teacher's
          labels of a whole run, computed once; train with --distill.label_cache DIR
  export  deit-fast export --checkpoint FILE --out FILE.safetensors: the weights alone, by timm's names

`deit-fast VERB --help` shows the options with types, units and defaults. Errors are one line; --debug adds a traceback.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb. Exit codes: 0 done, 1 failed, 2 wrong use."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbs: dict[str, Callable[[list[str]], int]] = {
        "demo": demo,
        "train": train,
        "eval": evaluate,
        "bench": bench,
        "profile": profile,
        "tune": tune,
        "doctor": doctor,
        "plan": plan,
        "data": data,
        "teacher-cache": teacher_cache,
        "export": export,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"deit-fast {__version__}")
        return 0
    if arguments[0] not in verbs:
        print(f"deit-fast: unknown verb {arguments[0]}; the verbs are {', '.join(verbs)}", file=sys.stderr)
        return 2
    try:
        return verbs[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        print("deit-fast: interrupted", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - the one place where an error becomes a line
        if "--debug" in arguments:
            traceback.print_exc()
        wrong_use = isinstance(error, ValueError)
        kind = "" if wrong_use or isinstance(error, RuntimeError | OSError) else f"{type(error).__name__}: "
        print(f"deit-fast: {kind}{error}", file=sys.stderr)
        return 2 if wrong_use else 1


def write_json(path: str | None, result: object) -> None:
    """Writes a result for `--json FILE`, whose folder is made where it is missing."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


def demo(arguments: list[str]) -> int:
    """`deit-fast demo [--distill.kind none] [--section.key value ...]`: overrides are the student's."""
    from .config_file import add_config_arguments, config_parser, parse_config

    parser = config_parser("deit-fast demo", "Trains a teacher and a distilled student on the handwritten digits.")
    parser.add_argument(
        "--json", metavar="FILE", help="write the result here too (it is always in runs/demo/result.json)"
    )
    add_config_arguments(parser)
    if "--config" in arguments or any(argument.startswith("--config=") for argument in arguments):
        raise ValueError("the demo has its own recipes; leave --config out, or use `deit-fast train`")
    from .demo import TEACHER_RECIPE, run_demo, show_result, student_recipe

    student, options = parse_config(parser, ["--config", student_recipe(arguments), *arguments])
    teacher, _ = parse_config(parser, ["--config", TEACHER_RECIPE])
    teacher = replace(
        teacher,
        data=replace(teacher.data, num_threads=student.data.num_threads),
        runtime=replace(teacher.runtime, device=student.runtime.device, seed=student.runtime.seed),
    )
    from rich.console import Console

    from .distributed import process_group

    with process_group(student.runtime.device, student.runtime.hang_timeout_s) as ranks:
        result = run_demo(teacher, student, ranks)
    if result is None:
        print("deit-fast: stopped by a signal before the demo was done", file=sys.stderr)
        return 1
    show_result(result, Console(soft_wrap=True))
    write_json(options.json, result)
    return 0


def train(arguments: list[str]) -> int:
    """`deit-fast train --config RECIPE --data.path DIR`."""
    from .config_file import add_config_arguments, config_parser, parse_config

    parser = config_parser("deit-fast train", "Trains by a recipe; alone, or on several devices under torchrun.")
    add_config_arguments(parser)
    config, _ = parse_config(parser, arguments)
    from .budget import REQUIRED_IMAGES_PER_SECOND, projected_days
    from .distributed import process_group
    from .trainer import Trainer
    from .tuned import apply_first_ranks_tuned

    with process_group(config.runtime.device, config.runtime.hang_timeout_s) as ranks:
        outcome = Trainer(apply_first_ranks_tuned(config, ranks), ranks).fit()
        if not ranks.is_main:
            return 0
    if outcome.unsaved:
        raise RuntimeError(
            f"the state of step {outcome.step} could not be saved ({outcome.unsaved}); "
            f"the last checkpoint is {outcome.checkpoint}"
        )
    if not outcome.finished:
        print(f"stopped at step {outcome.step}, saved to {outcome.checkpoint}; go on with --checkpoint.resume auto")
        return 0
    if outcome.images_per_second:
        print(
            f"{outcome.images_per_second:,.1f} images/s, data wait {outcome.data_wait_fraction:.1%}; at this speed 300 "
            f"epochs of ImageNet-1k take {projected_days(outcome.images_per_second):,.1f} days (budget for DeiT-B: "
            f"{REQUIRED_IMAGES_PER_SECOND:,.1f} images/s, 3 days)"
        )
    print(f"checkpoint {outcome.checkpoint}")
    return 0


def evaluate(arguments: list[str]) -> int:
    """`deit-fast eval --checkpoint FILE --data.path DIR`."""
    from .config import DataConfig, EvalConfig, RuntimeConfig
    from .config_file import config_parser, parse_arguments

    parser = config_parser(
        "deit-fast eval", "Scores a checkpoint of this trainer, of timm, or of the official repository."
    )
    parser.add_argument("--checkpoint", metavar="FILE", required=True, help="weights: .pt, .pth or .safetensors")
    parser.add_argument(
        "--ema", action="store_true", help="the moving average of the weights, for a checkpoint of `train`"
    )
    parser.add_argument("--model.name", type=str | None, help="any name of timm; default: found from the checkpoint")
    parser.add_argument("--model.image_size_px", type=int | None, help="default: the checkpoint's, else by its name")
    parser.add_argument("--eval.crop_ratio", type=float | None, help="default: the run's own, else 0.875")
    parser.add_argument("--eval.batch_size_per_device", type=int, default=EvalConfig.batch_size_per_device)
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(RuntimeConfig, "runtime")
    options = parser.instantiate(parse_arguments(parser, arguments))
    from .distributed import process_group
    from .evaluate_checkpoint import evaluate_checkpoint

    with process_group(options.runtime.device) as ranks:
        result = evaluate_checkpoint(
            options.checkpoint,
            options.data,
            options.runtime,
            ranks,
            batch_size_per_device=options.eval.batch_size_per_device,
            ema=options.ema,
            name=options.model.name,
            image_size_px=options.model.image_size_px,
            crop_ratio=options.eval.crop_ratio,
        )
    if ranks.is_main:
        print(f"{result['checkpoint']}  {result['model']['name']}  {result['images']:,} images", end="")
        print(f"  {result['images_per_second']:,.1f} images/s")
        print(f"{'':8}  {'top-1':>7}  {'top-5':>7}")
        for head, top1 in result["top1"].items():
            if top1 is not None:
                print(f"{head:8}  {top1:6.2f} %  {result['top5'][head]:6.2f} %")
        write_json(options.json, result)
    return 0


def bench(arguments: list[str]) -> int:
    """`deit-fast bench VERB`."""
    from deit_fast.benchmarks.command import run

    return run(arguments)


def profile(arguments: list[str]) -> int:
    """`deit-fast profile --config RECIPE --data.path DIR`, or `profile compare A B`."""
    from .profile.command import run

    return run(arguments)


def tune(arguments: list[str]) -> int:
    """`deit-fast tune --config RECIPE [--minutes N]`."""
    from deit_fast.benchmarks.tune.command import run

    return run(arguments)


def doctor(arguments: list[str]) -> int:
    """`deit-fast doctor [--config RECIPE] [--data.path DIR]`."""
    from .doctor.command import run

    return run(arguments)


def plan(arguments: list[str]) -> int:
    """`deit-fast plan --config RECIPE --gpu KIND --gpus N --price P`."""
    from .planning.command import run

    return run(arguments)


def data(arguments: list[str]) -> int:
    """`deit-fast data scan|pack|verify|sample`."""
    from .data_command import run

    return run(arguments)


def teacher_cache(arguments: list[str]) -> int:
    """`deit-fast teacher-cache --config RECIPE --data.path DIR --out DIR`."""
    from .config_file import add_config_arguments, config_parser, parse_config

    parser = config_parser(
        "deit-fast teacher-cache",
        "Computes the teacher's labels of a run: a full pass of loader and teacher over its epochs. It pays when the "
        "labels are used again (three sizes, sweeps, repeats) or made on other machines than those that train.",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the cache, one file an epoch")
    parser.add_argument("--epochs", metavar="FIRST:LAST", default=":", help="only these epochs, counted from 0")
    parser.add_argument("--top-k", type=int, default=16, help="classes kept of each view, for distill.kind soft")
    parser.add_argument("--compare", metavar="DIR", help="compare --out with this cache instead, and write nothing")
    parser.add_argument("--json", metavar="FILE", help="write the result of --compare as JSON")
    add_config_arguments(parser)
    config, options = parse_config(parser, arguments)
    from .distributed import process_group
    from .teacher_cache import compare_caches, parse_epochs, write_label_cache

    if options.compare:
        result = compare_caches(Path(options.out), Path(options.compare))
        print(f"{result['differing']:,} of {result['views']:,} labels differ: {result['share']:.4%}")
        write_json(options.json, result)
        return 0
    epochs = parse_epochs(options.epochs, config.schedule.epochs)
    with process_group(config.runtime.device) as ranks:
        made = write_label_cache(config, ranks, Path(options.out), epochs, options.top_k, print)
        if ranks.is_main:
            print(f"{made} of {len(epochs)} epochs made; train with --distill.label_cache {options.out}")
    return 0


def export(arguments: list[str]) -> int:
    """`deit-fast export --checkpoint FILE --out FILE.safetensors`."""
    from .config_file import config_parser, parse_arguments

    parser = config_parser("deit-fast export", "Writes a checkpoint's weights as safetensors, by timm's names.")
    parser.add_argument("--checkpoint", metavar="FILE", required=True, help="own, timm's or official weights")
    parser.add_argument("--out", metavar="FILE", required=True, help="a path that ends in .safetensors")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    options = parse_arguments(parser, arguments)
    from .export import export_weights

    print(export_weights(options.checkpoint, options.out, ema=options.ema))
    return 0
