"""Other people's training programs as contenders of `bench train`."""

from __future__ import annotations

from pathlib import Path

from deit_fast.config import Config
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.distributed import Ranks
from deit_fast.tuned import with_values

from .official import check_checkout, check_comparable, official_contender
from .steady_program import SteadyProgram
from .timing import Contender
from .train import END_TO_END, idle
from .work import Work

Programs = dict[Contender, SteadyProgram]
Shares = dict[str, dict[str, float]]
OFFICIAL_BF16 = "deit main.py, bf16 autocast added"
OFFICIAL_NAMES = ("deit main.py", OFFICIAL_BF16)


def parse_against(text: str) -> str | None:
    """`deit=DIR` -> DIR; None for nothing; ValueError for anything else."""
    if not text:
        return None
    name, _, directory = text.partition("=")
    if name != "deit" or not directory:
        raise ValueError(f"--against {text}: bench train takes deit=DIR, a checkout of facebookresearch/deit")
    return directory


def check_against(directory: str, config: Config, ranks: Ranks, images: ImageSet) -> None:
    """ValueError, on every rank alike, for what the official program cannot do, or not here."""
    if ranks.device.type != "cpu" or ranks.world_size != ranks.local_world_size:
        raise ValueError("--against deit=DIR is measured on the CPU of one machine: add --runtime.device cpu")
    check_checkout(Path(directory).resolve())
    check_comparable(config, images)


def official_programs(directory: str, config: Config, ranks: Ranks, images: ImageSet, steps: int) -> Programs:
    """The official program as it stands, and with the CPU's bf16 autocast added.

    One process with the whole batch and all threads: under torchrun the first rank runs it while the others wait.
    """
    batch_size = config.runtime.batch_size_per_device * ranks.world_size
    workers = (config.data.num_threads or ranks.cores) * ranks.world_size
    programs = {
        Contender(END_TO_END, name): official_contender(
            directory,
            with_values(config, {"runtime.batch_size_per_device": batch_size}),
            images,
            workers=workers,
            steps_per_turn=steps,
            bf16_autocast=name == OFFICIAL_BF16,
        )
        for name in OFFICIAL_NAMES
    }
    if ranks.world_size > 1:
        for program in programs.values():
            program.environment.pop("OMP_NUM_THREADS", None)  # torchrun's, of one rank among several
    return programs


def works_against(programs: Programs, flops_per_image: float) -> dict[Contender, Work]:
    """The official programs where they run, and idle turns on the ranks that have none."""
    names = [Contender(END_TO_END, name) for name in OFFICIAL_NAMES]
    return {name: Work(programs.get(name, idle), flops_per_image) for name in names}


def shares(programs: Programs, turns: int) -> Shares:
    """Of each program's last `turns` turns, by its own clock: its parts' shares of the wall time; the student has the
    rest."""
    found: Shares = {}
    for contender, program in programs.items():
        reports = program.reports[-turns:]
        whole = sum(report["seconds"] for report in reports)
        found[contender.name] = {
            part: sum(report["parts"][part] for report in reports) / whole for part in reports[0]["parts"]
        }
    return found


def share_lines(shares: Shares) -> list[str]:
    """In words."""
    return [
        f"{name}: {', '.join(f'{part} {share:.0%}' for part, share in parts.items())} of the time"
        for name, parts in shares.items()
    ]
