"""`deit-fast bench train`: from files to updated weights, every stage alone beside it, and scaling under torchrun."""

from __future__ import annotations

from collections.abc import Sequence

from deit_fast.config import Config
from deit_fast.config_file import config_as_dict
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.distributed import Ranks, process_group
from deit_fast.open_images import open_images
from deit_fast.start_report import prepare_host
from deit_fast.tuned import apply_first_ranks_tuned

from .assembled import Assembled, assemble, by_itself
from .loader_stages import bytes_per_image, loader_stages, loader_works
from .memory import MemoryMeter
from .options import Options, measuring_parser, parse_measuring, publish, say
from .photographs import PHOTOGRAPHS, with_images
from .records import build_record, rows_of
from .stalls import scaling, scaling_lines, stall, stall_lines
from .step import batch_of, step_works
from .step_verdict import as_record, by_teacher, judge, lines, step_stages
from .timing import OURS, Contender
from .train import ALONE, END_TO_END, END_TO_END_CACHED, EndToEnd, end_to_end, idle
from .train_peers import Programs, check_against, official_programs, parse_against, share_lines, shares, works_against
from .work import MATRIX, Work, matrix_work, time_work

DEFAULT_STEPS = {"cpu": 2, "cuda": 50}
Runs = dict[str, EndToEnd]
LEAD_IN_STEPS = {"cpu": 1, "cuda": 11}
"""On CUDA as many as DDP's bucketing and CUDA graphs want before they settle (pytorch issue 78124)."""


def run(arguments: Sequence[str]) -> int:
    """Parses, measures, shows; ValueError for wrong use."""
    parser = measuring_parser("train")
    parser.add_argument(
        "--steps-per-turn", type=int, help="steps of an end-to-end turn; default: 50 on a GPU, 2 on a CPU"
    )
    parser.add_argument(
        "--images", type=int, default=PHOTOGRAPHS, help="images that are made when data.path is not given"
    )
    parser.add_argument(
        "--against", default="", metavar="deit=DIR", help="a checkout of the official program, on a CPU"
    )
    config, options = parse_measuring(parser, arguments, "deit_tiny_distilled")
    against = parse_against(options.against)
    with process_group(config.runtime.device) as ranks:
        config = apply_first_ranks_tuned(config, ranks)
        prepare_host(config, ranks)
        config, source = with_images(config, options.images, ranks)
        measure_train(config, ranks, options, source, against)
    return 0


def measure_train(config: Config, ranks: Ranks, options: Options, source: str, against: str | None) -> None:
    """Times all stages and the whole in the same turns, and publishes the result with its verdicts."""
    images = open_images(config.data, "train")
    parts = assemble(config, images.classes, ranks)
    meter = MemoryMeter(ranks.device)
    steps = options.steps_per_turn or DEFAULT_STEPS[ranks.device.type]
    works = loader_works(config, ranks, images, parts.precision, steps)
    works |= step_works(parts, batch_of(parts))
    works[MATRIX] = matrix_work(parts.step_flops(parts.teacher), parts.precision, ranks.device)
    runs, whole = end_to_end_works(parts, images, steps)
    works |= whole
    programs: Programs = {}
    if against is not None:
        check_against(against, config, ranks, images)
        programs = official_programs(against, config, ranks, images, steps) if ranks.is_main else {}
        works |= works_against(programs, parts.step_flops(parts.teacher))
    try:
        timings = time_work(works, ranks, turns=options.turns, warm_up_turns=options.warm_up_turns, meter=meter)
    finally:
        for program in programs.values():
            program.close()

    lanes = ("cores", "cores") if ranks.device.type == "cpu" else ("loader", "device")
    stages = loader_stages(timings, lanes[0]) + step_stages(timings, lanes[1])
    verdicts = judge(by_teacher(timings, parts, END_TO_END, END_TO_END_CACHED), stages, parts)
    stalls = {name: stall(run.wait_seconds, timings, name) for name, run in runs.items()}
    record = build_record(
        "train",
        f"{parts.described}, from JPEG to updated weights, batch {config.runtime.batch_size_per_device} x "
        f"{ranks.world_size}: {source}",
        rows_of(timings),
        ranks.device,
        config=config_as_dict(config),
        **as_record(verdicts, parts),
        scaling=scaling(timings, ranks),
        stalls=stalls,
        bytes_per_image=bytes_per_image(images),
        official_shares=shares(programs, options.turns),
    )
    publish(record, timings, ranks, options)
    if ranks.is_main:
        said = [*lines(verdicts, ranks.device.type), *stall_lines(stalls), *scaling_lines(record["scaling"])]
        for line in [*said, *share_lines(record["official_shares"])]:
            say(line)


def end_to_end_works(parts: Assembled, images: ImageSet, steps: int) -> tuple[Runs, dict[Contender, Work]]:
    """The whole with the teacher as configured, with its labels cached, and, with several devices, on one alone."""
    ranks, distill = parts.ranks, parts.config.distill
    lead_in = LEAD_IN_STEPS[ranks.device.type]
    wanted = {END_TO_END: False}
    if distill.kind == "hard" or distill.label_cache is not None:
        wanted[END_TO_END_CACHED] = True
    runs: Runs = {}
    works: dict[str, Work] = {}
    for name, cached in wanted.items():
        runs[name], works[name] = end_to_end(parts, ranks, images, cached=cached, steps=steps, lead_in=lead_in)
    if ranks.world_size > 1:
        works[ALONE] = Work(idle)
        if ranks.is_main:
            _, work = end_to_end(parts, by_itself(ranks), images, cached=False, steps=steps, lead_in=lead_in)
            works[ALONE] = work._replace(on_one_device=True)
    return runs, {Contender(name, OURS): work for name, work in works.items()}
