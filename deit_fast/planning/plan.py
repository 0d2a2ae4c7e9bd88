"""A run on a machine that is not here: memory, speed, days, cost, and what will limit it. Predicted, not measured."""

from __future__ import annotations

from dataclasses import dataclass

from deit_fast.budget import IMAGENET_TRAIN_IMAGES, IMAGENET_VAL_IMAGES, REQUIRED_IMAGES_PER_SECOND, SECONDS_PER_DAY
from deit_fast.config import Config

from .anchors import Utilisation
from .costs import StudentCosts, TeacherCosts
from .memory_plan import MemoryPlan, plan_memory
from .stages import (
    GRADIENT_BYTES,
    Machine,
    all_reduce_rate,
    all_reduce_seconds,
    bytes_read_per_image,
    compute_rate,
    decoder_rate,
    device_seconds,
    input_rates,
    work_of,
)

COMPUTE, ALL_REDUCE = "compute", "all-reduce"


@dataclass(frozen=True)
class LoaderCost:
    """CPU time of the loader, and who measured it."""

    cpu_ms_per_image: float
    source: str


@dataclass(frozen=True)
class Demand:
    """What the rest of the machine has to give at a speed, over all devices."""

    loader_cores: float
    decodes_per_second_per_gpu: float
    decoder_load: float | None
    """Share of what a GPU's JPEG engines are predicted to do."""
    disk_bytes_per_second: float
    network_bytes_per_second_per_gpu: float
    """To hide the all-reduce behind the backward."""
    network_bits_per_second_per_node: float
    """The same between nodes; 0 on one."""


@dataclass(frozen=True)
class Outlook:
    """At one end of the range of utilisation."""

    student_mfu: float
    teacher_mfu: float
    images_per_second: float
    stages: dict[str, float]
    """images/s at which each stage is the limit, the lowest first."""
    student_share: float
    """Of the device's time."""
    step_seconds: float
    all_reduce_seconds: float
    days: float
    cost: float | None
    margin: float
    """Times the budget's 1,482.8 images/s."""
    demand: Demand

    @property
    def limit(self) -> str:
        """The stage that sets the speed."""
        return next(iter(self.stages))


@dataclass(frozen=True)
class Plan:
    """Everything that is shown."""

    config: Config
    machine: Machine
    student: StudentCosts
    teacher: TeacherCosts | None
    loader: LoaderCost
    num_images: int
    global_batch: int
    memory: tuple[MemoryPlan, ...]
    """Activations kept; then recomputed, where the model can."""
    student_utilisation: Utilisation
    teacher_utilisation: Utilisation | None
    slow: Outlook
    fast: Outlook

    @property
    def chosen_memory(self) -> MemoryPlan:
        """As runtime.checkpoint_activations has it."""
        return self.memory[self.config.runtime.checkpoint_activations]


def make_plan(
    config: Config,
    machine: Machine,
    student: StudentCosts,
    teacher: TeacherCosts | None,
    student_utilisation: Utilisation,
    teacher_utilisation: Utilisation | None,
    loader: LoaderCost,
    *,
    price_per_gpu_hour: float | None = None,
    num_images: int = IMAGENET_TRAIN_IMAGES,
) -> Plan:
    """By arithmetic alone: what is counted comes in."""
    runtime = config.runtime
    global_batch = runtime.batch_size_per_device * runtime.accumulate_steps * machine.gpus
    memory = tuple(
        plan_memory(config, student, teacher, machine.gpu.memory_bytes, recompute=recompute)
        for recompute in (False, True)
        if not recompute or student.recomputed is not None
    )

    def outlook(student_mfu: float, teacher_mfu: float) -> Outlook:
        work = work_of(student, teacher, recompute=runtime.checkpoint_activations)
        seconds = device_seconds(work, machine.gpu, student_mfu, teacher_mfu)
        stages = {COMPUTE: compute_rate(machine, seconds)}
        reduce_seconds = all_reduce_seconds(machine, student.parameters)
        backward_share = work.backward / work.student * seconds[0] / sum(seconds)
        if reduce_seconds:
            step_seconds = global_batch / stages[COMPUTE]
            stages[ALL_REDUCE] = all_reduce_rate(
                global_batch, step_seconds, backward_share * step_seconds, reduce_seconds
            )
        stages |= input_rates(config, machine, loader.cpu_ms_per_image)
        stages = dict(sorted(stages.items(), key=lambda stage: stage[1]))
        speed = next(iter(stages.values()))
        training = num_images * config.schedule.epochs / speed
        forward = seconds[0] * student.forward_flops / work.student
        days = (training + evaluation_images(config) * forward / machine.gpus) / SECONDS_PER_DAY
        return Outlook(
            student_mfu=student_mfu,
            teacher_mfu=teacher_mfu,
            images_per_second=speed,
            stages=stages,
            student_share=seconds[0] / sum(seconds),
            step_seconds=global_batch / speed,
            all_reduce_seconds=reduce_seconds,
            days=days,
            cost=None if price_per_gpu_hour is None else days * 24 * machine.gpus * price_per_gpu_hour,
            margin=speed / REQUIRED_IMAGES_PER_SECOND,
            demand=demand_at(speed, config, machine, student, loader, backward_share * global_batch / speed),
        )

    taught = teacher_utilisation or student_utilisation
    return Plan(
        config, machine, student, teacher, loader, num_images, global_batch, memory,
        student_utilisation, teacher_utilisation,
        outlook(student_utilisation.low, taught.low), outlook(student_utilisation.high, taught.high),
    )  # fmt: skip


def evaluation_images(config: Config) -> int:
    """Forwards of a run's evaluations: ImageNet's 50,000, of the weights and of their moving average."""
    evaluations = -(-config.schedule.epochs // config.eval.every_epochs)
    return evaluations * IMAGENET_VAL_IMAGES * (1 if config.optim.ema_decay is None else 2)


def demand_at(
    speed: float, config: Config, machine: Machine, student: StudentCosts, loader: LoaderCost, backward_seconds: float
) -> Demand:
    """At `speed` images/s over all devices, a step's backward taking `backward_seconds`."""
    size = GRADIENT_BYTES * student.parameters
    ring = 2 * (machine.gpus - 1) / machine.gpus * size / backward_seconds
    engines = decoder_rate(machine.gpu)
    return Demand(
        loader_cores=speed * loader.cpu_ms_per_image / 1e3,
        decodes_per_second_per_gpu=speed / machine.gpus,
        decoder_load=None if engines is None else speed / machine.gpus / engines,
        disk_bytes_per_second=speed * bytes_read_per_image(config, machine),
        network_bytes_per_second_per_gpu=ring,
        network_bits_per_second_per_node=8 * ring if machine.nodes > 1 else 0.0,
    )
