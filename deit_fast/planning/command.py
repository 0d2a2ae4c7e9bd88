"""`deit-fast plan`: counts the models, does the arithmetic, shows the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from deit_fast.bench_records import read_records
from deit_fast.budget import IMAGENET_TRAIN_IMAGES
from deit_fast.cli import write_json
from deit_fast.config import Config
from deit_fast.config_file import add_config_arguments, config_parser, parse_config
from deit_fast.config_rules import check_config
from deit_fast.gpus import GB, GPUS, Gpu, find_gpu
from deit_fast.host import LOADER_CPU_MS_PER_IMAGE, LOADER_CPU_SOURCE

from .anchors import GIVEN, Utilisation, student_utilisation, teacher_utilisation
from .costs import count_student, count_teacher
from .plan import LoaderCost, Plan, make_plan
from .show import plan_as_dict, show_plan
from .stages import Machine

FULL_RECIPE, OURS = "full recipe", "deit_fast"
POSITIVE = (
    "price",
    "peak_tflops",
    "memory_gb",
    "link_gb_per_second",
    "cores",
    "disk_mb_per_second",
    "network_gbit_per_second",
    "cpu_ms_per_image",
)


def run(arguments: Sequence[str]) -> int:
    """Parses, counts, predicts, shows; ValueError for wrong use."""
    parser = config_parser(
        "deit-fast plan",
        "Predicts memory, speed, days and cost of a run on GPUs that are not here, and what will limit it. Nothing is "
        "measured: FLOPs and bytes are counted, the rest is arithmetic (docs/plan.md).",
    )
    _add_arguments(parser)
    add_config_arguments(parser)
    config, options = parse_config(parser, arguments, "deit_base_distilled")
    check_config(config)
    plan = _plan(config, options)
    show_plan(plan, options.price, Console(width=max(120, Console().width)))
    write_json(options.json, plan_as_dict(plan))
    return 0


def _add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--gpu", metavar="KIND", help=f"of {', '.join(GPUS)}; others by --peak-tflops and --memory-gb")
    add("--gpus", type=int, default=8, help="GPUs in all")
    add("--gpus-per-node", type=int, default=8, help="GPUs of one machine")
    add("--price", type=float | None, help="of one GPU for an hour, in your currency")
    add("--mfu", metavar="LOW:HIGH", help="share of the peak that the student reaches; default: by published speeds")
    add("--teacher-mfu", metavar="LOW:HIGH", help="the same of the teacher")
    add("--peak-tflops", type=float | None, help="dense bf16 products, instead of the table's")
    add("--memory-gb", type=float | None, help="memory of one GPU, instead of the table's")
    add(
        "--link-gb-per-second",
        type=float | None,
        help="between GPUs of a machine, one direction",
    )
    add("--cores", type=int | None, help="CPU cores of one machine; default: the number needed is printed")
    add("--disk-mb-per-second", type=float | None, help="reads of one machine; default: the rate needed is printed")
    add("--network-gbit-per-second", type=float | None, help="of one machine; default: the rate needed is printed")
    add("--cpu-ms-per-image", type=float | None, help="CPU time of the loader for an image")
    add("--loader-rows", metavar="FILE", help="take that from the last row that `bench loader --json FILE` wrote")
    add("--images", type=int, default=IMAGENET_TRAIN_IMAGES, help="training images")
    add("--classes", type=int, default=1000, help="classes")
    add("--json", metavar="FILE", help="write the plan as JSON")


def _plan(config: Config, options: Any) -> Plan:
    _check_figures(options)
    kind, gpu = _gpu(options)
    machine = Machine(
        kind,
        gpu,
        options.gpus,
        options.gpus_per_node,
        options.cores,
        None if options.disk_mb_per_second is None else options.disk_mb_per_second * 1e6,
        None if options.network_gbit_per_second is None else options.network_gbit_per_second * GB / 8,
    )
    loader = loader_cost(options.cpu_ms_per_image, options.loader_rows)
    precision = config.runtime.precision
    if precision == "auto":
        precision = "bf16" if gpu.architecture >= 80 else "fp16"
    student = count_student(config, options.classes, precision)
    teacher = count_teacher(config.distill, config.runtime, config.model.image_size_px, options.classes, precision)
    reached = _range(options.mfu, "--mfu") or student_utilisation(kind, student.embed_dim)
    taught = _range(options.teacher_mfu, "--teacher-mfu") or teacher_utilisation(kind, reached)
    return make_plan(
        config,
        machine,
        student,
        teacher,
        reached,
        None if teacher is None else taught,
        loader,
        price_per_gpu_hour=options.price,
        num_images=options.images,
    )


def _check_figures(options: Any) -> None:
    for name in ("gpus", "gpus_per_node", "images", "classes"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    for name in POSITIVE:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value}")


def _gpu(options: Any) -> tuple[str | None, Gpu]:
    """The table's kind, with what is given in its stead; ValueError when too little is known."""
    given = {
        "half_flops": options.peak_tflops and options.peak_tflops * 1e12,
        "memory_bytes": options.memory_gb and int(options.memory_gb * GB),
        "link_bytes_per_second": options.link_gb_per_second and options.link_gb_per_second * GB,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if options.gpu:
        gpu = find_gpu(options.gpu)
        kind = next(key for key, known in GPUS.items() if known is gpu)
        return kind, replace(gpu, name=gpu.name + (" with figures given" if changes else ""), **changes)
    if options.peak_tflops is None or options.memory_gb is None:
        raise ValueError(f"plan takes --gpu {'|'.join(GPUS)}, or --peak-tflops and --memory-gb")
    pcie = find_gpu("rtx4090").link_bytes_per_second
    custom = Gpu("GPU by given figures", "", 80, 0.0, 0, 0.0, pcie)
    return None, replace(custom, **changes)


def _range(text: str | None, option: str) -> Utilisation | None:
    """`0.3:0.5`, or `0.4` for both ends."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in (text.split(":") if ":" in text else (text, text)))
    except ValueError:
        low = high = 0.0
    if not 0 < low <= high <= 1:
        raise ValueError(f"{option} {text}: expected LOW:HIGH with 0 < LOW <= HIGH <= 1, for example 0.3:0.5")
    return Utilisation(low, high, GIVEN)


def loader_cost(cpu_ms_per_image: float | None, rows: str | None) -> LoaderCost:
    """What was given, what was measured here, or the project's own figure."""
    if cpu_ms_per_image is not None:
        return LoaderCost(cpu_ms_per_image, "given")
    if rows is None:
        return LoaderCost(LOADER_CPU_MS_PER_IMAGE, f"{LOADER_CPU_SOURCE}; --loader-rows for your own")
    for record in reversed(read_records(rows)):
        for row in record["rows"] if record.get("bench") == "loader" else ():
            if row["workload"] == FULL_RECIPE and row["name"].startswith(OURS):
                cpu = record.get("environment", {}).get("cpu", "a machine without a name")
                return LoaderCost(row["cpu_ms_per_image"], f"{row['name']}, measured on {cpu} ({rows})")
    raise ValueError(
        f"--loader-rows {rows} has no loader row of the full recipe; `deit-fast bench loader --json {rows}` makes one"
    )
