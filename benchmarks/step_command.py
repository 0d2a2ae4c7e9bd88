"""`deit-fast bench step`: the training step on synthetic images, its parts, and how it stands against the budget."""

from __future__ import annotations

from collections.abc import Sequence

from deit_fast.config import Config
from deit_fast.config_file import config_as_dict
from deit_fast.distributed import Ranks, process_group
from deit_fast.start_report import prepare_host
from deit_fast.tuned import apply_first_ranks_tuned

from .assembled import assemble
from .memory import MemoryMeter
from .options import MANY_STEPS, Options, measuring_parser, parse_measuring, publish, say
from .records import build_record, rows_of
from .step import CLASSES, WHOLE, WHOLE_CACHED, batch_of, step_works
from .step_verdict import as_record, by_teacher, judge, lines, step_stages
from .timm_step import TIMM, timm_works
from .work import MATRIX, matrix_work, time_work


def run(arguments: Sequence[str]) -> int:
    """Parses, measures, shows; ValueError for wrong use."""
    parser = measuring_parser("step")
    parser.add_argument("--against", default="", metavar="timm", help="timm's model in a plain loop, in the same turns")
    config, options = parse_measuring(parser, arguments, "deit_tiny_distilled", on_gpu=MANY_STEPS)
    if options.against not in ("", TIMM):
        raise ValueError(f"--against {options.against}: the step is measured against {TIMM}")
    with process_group(config.runtime.device) as ranks:
        config = apply_first_ranks_tuned(config, ranks)
        prepare_host(config, ranks)
        measure_step(config, ranks, options)
    return 0


def measure_step(config: Config, ranks: Ranks, options: Options) -> None:
    """Times all parts, and publishes the result with its verdicts."""
    parts = assemble(config, CLASSES, ranks)
    batch = batch_of(parts)
    works = step_works(parts, batch)
    if options.against:
        works |= timm_works(parts, batch)
    works[MATRIX] = matrix_work(parts.step_flops(parts.teacher), parts.precision, ranks.device)
    meter = MemoryMeter(ranks.device)
    timings = time_work(works, ranks, turns=options.turns, warm_up_turns=options.warm_up_turns, meter=meter)
    verdicts = judge(by_teacher(timings, parts, WHOLE, WHOLE_CACHED), step_stages(timings), parts)
    title = f"step on synthetic images, {parts.described}, batch {config.runtime.batch_size_per_device}"
    record = build_record(
        "step", title, rows_of(timings), ranks.device, config=config_as_dict(config), **as_record(verdicts, parts)
    )
    publish(record, timings, ranks, options)
    if ranks.is_main:
        for line in lines(verdicts, ranks.device.type):
            say(line)
