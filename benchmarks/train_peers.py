"""Other people's training programs as contenders of `bench train`."""

from __future__ import annotations

from deit_fast.config import Config
from deit_fast.dali_pipelines.image_set import ImageSet
from deit_fast.distributed import Ranks

from .official import official_contender
from .steady_program import SteadyProgram
from .timing import Contender
from .train import END_TO_END

Programs = dict[Contender, SteadyProgram]
Shares = dict[str, dict[str, float]]
OFFICIAL, OFFICIAL_BF16 = "deit main.py", "deit main.py, bf16 autocast added"


def parse_against(text: str) -> str | None:
    """`deit=DIR` -> DIR; None for nothing; ValueError for anything else."""
    if not text:
        return None
    name, _, directory = text.partition("=")
    if name != "deit" or not directory:
        raise ValueError(f"--against {text}: bench train takes deit=DIR, a checkout of facebookresearch/deit")
    return directory


def official_programs(directory: str, config: Config, ranks: Ranks, images: ImageSet, steps: int) -> Programs:
    """The official program as it stands, and with the CPU's bf16 autocast added; ValueError under torchrun."""
    if ranks.world_size > 1 or ranks.device.type != "cpu":
        raise ValueError("--against deit=DIR is measured on one CPU process: leave torchrun away, --runtime.device cpu")
    workers = config.data.num_threads or ranks.cores
    return {
        Contender(END_TO_END, name): official_contender(
            directory, config, images, workers=workers, steps_per_turn=steps, bf16_autocast=bf16_autocast
        )
        for name, bf16_autocast in ((OFFICIAL, False), (OFFICIAL_BF16, True))
    }


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
