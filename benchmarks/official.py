"""The official training program as a contender: a checkout of facebookresearch/deit, its own main.py, our images.

End to end, from JPEG to optimizer step, on the CPU. The program is trained with as its authors wrote it (main.py, its
datasets.py, engine.py, losses.py and models.py); what it needs with today's timm and Pillow is in official_patches.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import timm
import torch

from deit_fast.config import Config
from deit_fast.dali_pipelines.image_files import ImageFiles
from deit_fast.dali_pipelines.image_set import ImageSet

from .comparable import Allowed, check_allowed
from .steady_program import SteadyProgram

NUM_CLASSES = 1000
"""What the official code takes for granted of a folder of images."""
ANNOUNCED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID")
"""Variables by which it would think itself one of many processes."""
ALLOWED: Allowed = {
    "data.repeats_placement": ("official",),
    "model.drop_path_schedule": ("linear",),
    "model.drop_path_mode": ("independent",),
    "augment.policy": ("rand",),
    "augment.geometry": ("exact",),
    "augment.color_jitter": (0.0,),
    "augment.crop": ("resized",),
    "augment.crop_scale_min": (0.08,),
    "augment.flip_probability": (0.5,),
    "loss.cosub": (False,),  # its form is that of bce, whatever loss.label is
    "distill.soft_normalization": ("official",),
    "runtime.accumulate_steps": (1,),
}
"""What main.py does, where it has no argument for it."""


def official_contender(
    directory: str | Path,
    config: Config,
    images: ImageSet,
    *,
    workers: int,
    steps_per_turn: int,
    warm_up_steps: int = 3,
    bf16_autocast: bool = False,
) -> SteadyProgram:
    """A Prepare whose turn is `steps_per_turn` steps of `directory`'s main.py on the CPU, on data.path's files.

    workers: of its loader, as many as ours has threads. bf16_autocast: `torch.cuda.amp.autocast`, which does nothing on
    a CPU, becomes its CPU form in bf16. ValueError for a directory that holds no such program, for images that are no
    folder, and for what the official program cannot do.
    """
    directory = Path(directory).resolve()
    check_checkout(directory)
    check_comparable(config, images)
    folder = tempfile.TemporaryDirectory(prefix="deit_fast_official_")
    command = [sys.executable, "-m", "deit_fast.benchmarks.official_run", str(directory)]
    command += ["--warm-up-steps", str(warm_up_steps), *(["--bf16"] if bf16_autocast else [])]
    command += official_arguments(config, workers)
    if config.distill.kind != "none":
        command.append(f"--teacher-path={write_teacher(config.distill.teacher, Path(folder.name))}")
    program = SteadyProgram(f"the official main.py in {directory}", command, folder, steps_per_turn)
    for variable in ANNOUNCED:
        program.environment.pop(variable, None)
    return program


def check_checkout(directory: Path) -> None:
    """ValueError unless the official program is there."""
    missing = [name for name in ("main.py", "engine.py", "losses.py", "utils.py") if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"--against deit={directory}: {missing[0]} is not there; give a checkout of the official program: "
            "git clone https://github.com/facebookresearch/deit DIR"
        )


def check_comparable(config: Config, images: ImageSet) -> None:
    """ValueError, naming the key, where the official program would do something else than we."""
    if not isinstance(images, ImageFiles):
        raise ValueError(f"--against deit reads image folders; data.path {config.data.path} is none")
    check_allowed("deit", config, ALLOWED)


def official_arguments(config: Config, workers: int) -> list[str]:
    """main.py's arguments for a configuration of ours."""
    model, augment, mix, distill, optim = config.model, config.augment, config.mix, config.distill, config.optim
    values = {
        "data-path": Path(config.data.path).resolve(),
        "device": "cpu",
        "num_workers": workers,
        "batch-size": config.runtime.batch_size_per_device,
        "model": model.name,
        "input-size": model.image_size_px,
        "drop-path": model.drop_path_rate,
        "aa": augment.rand_augment,
        "reprob": augment.erase_probability,
        "remode": augment.erase_mode,
        "recount": augment.erase_count,
        "mixup": mix.mixup_alpha,
        "cutmix": mix.cutmix_alpha,
        "mixup-prob": mix.probability,
        "mixup-switch-prob": mix.switch_probability,
        "smoothing": mix.label_smoothing,
        "distillation-type": distill.kind,
        "distillation-alpha": distill.alpha,
        "distillation-tau": distill.temperature,
        "teacher-model": distill.teacher,
        "opt": optim.name,
        "lr": optim.lr,
        "weight-decay": optim.weight_decay,
        "clip-grad": optim.clip_grad_norm,
        "model-ema-decay": optim.ema_decay,
        "seed": config.runtime.seed,
    }
    switches = ["--no-pin-mem"]
    if optim.ema_decay is None:
        switches.append("--no-model-ema")
    if config.loss.label == "bce":
        switches.append("--bce-loss")
    return [*(f"--{name}={value}" for name, value in values.items() if value is not None), *switches]


def write_teacher(name: str, folder: Path) -> Path:
    """The teacher's first weights as main.py reads them: speed does not depend on them, and nothing is downloaded."""
    path = folder / "teacher.pth"
    model = timm.create_model(name, pretrained=False, num_classes=NUM_CLASSES)
    torch.save({"model": model.state_dict()}, path)
    return path
