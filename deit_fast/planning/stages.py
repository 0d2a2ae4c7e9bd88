"""The speeds at which each stage of a run becomes its limit, in images/s over all devices. Predicted."""

from __future__ import annotations

from dataclasses import dataclass

from deit_fast.config import Config
from deit_fast.gpus import Gpu

from .costs import StudentCosts, TeacherCosts

BACKWARD_OVER_FORWARD = 2
GRADIENT_BYTES = 4
IMAGENET_BYTES_PER_IMAGE = 110_000
"""Of the training set: 141 GB in 1,281,167 files."""
ENGINES_OF_ANCHOR, ANCHOR_DECODE_RATE = 5, 7_000
"""An A100 with its five JPEG engines decoded about 7,000 images/s in DALI (DALI issue 5362)."""


@dataclass(frozen=True)
class Machine:
    """What is rented, or would be. What is not known (None) is not held to limit anything: its demand is printed."""

    kind: str | None
    gpu: Gpu
    gpus: int = 8
    gpus_per_node: int = 8
    cores_per_node: int | None = None
    disk_bytes_per_second_per_node: float | None = None
    network_bytes_per_second_per_node: float | None = None

    @property
    def nodes(self) -> int:
        """Machines."""
        return -(-self.gpus // self.gpus_per_node)


@dataclass(frozen=True)
class Work:
    """FLOPs of an image of the training set, on the device."""

    student: float
    """A forward, and a backward of two; with recomputed blocks one forward more."""
    backward: float
    """Of these, the backward's: what an all-reduce can hide behind."""
    teacher: float


def work_of(student: StudentCosts, teacher: TeacherCosts | None, *, recompute: bool) -> Work:
    """What the device computes, which with recomputed blocks is more than the model's FLOPs."""
    forward = student.passes * student.forward_flops
    backward = (BACKWARD_OVER_FORWARD + recompute) * forward
    return Work(forward + backward, backward, 0 if teacher is None else teacher.forward_flops)


def device_seconds(work: Work, gpu: Gpu, student_mfu: float, teacher_mfu: float) -> tuple[float, float]:
    """Of an image, for student and teacher: FLOPs / (share of the peak x peak)."""
    return work.student / (student_mfu * gpu.half_flops), work.teacher / (teacher_mfu * gpu.half_flops)


def compute_rate(machine: Machine, seconds: tuple[float, float]) -> float:
    """Student and teacher one after the other: on streams of their own they share one device."""
    return machine.gpus / sum(seconds)


def all_reduce_seconds(machine: Machine, parameters: int) -> float:
    """Of one step's gradients, at the least: a ring moves 2 (n - 1) / n of them over each link, or each node's network.

    0 for one GPU. The slower of both counts; an unknown network counts as none.
    """
    size = GRADIENT_BYTES * parameters
    within = min(machine.gpus, machine.gpus_per_node)
    seconds = 2 * (within - 1) / within * size / machine.gpu.link_bytes_per_second
    if machine.nodes > 1 and machine.network_bytes_per_second_per_node is not None:
        between = 2 * (machine.gpus - 1) / machine.gpus * size / machine.network_bytes_per_second_per_node
        seconds = max(seconds, between)
    return seconds


def all_reduce_rate(global_batch: int, step_seconds: float, backward_seconds: float, reduce_seconds: float) -> float:
    """Hidden behind the backward: the speed at which it would just be hidden. Longer: the speed it leaves the step."""
    if reduce_seconds <= backward_seconds:
        return backward_seconds / step_seconds * global_batch / reduce_seconds
    return global_batch / (step_seconds - backward_seconds + reduce_seconds)


def decoder_rate(gpu: Gpu) -> float | None:
    """JPEGs a second of one GPU's engines, by the published rate of an A100's; None without engines."""
    return ANCHOR_DECODE_RATE * gpu.jpeg_engines / ENGINES_OF_ANCHOR if gpu.jpeg_engines else None


def input_rates(config: Config, machine: Machine, cpu_ms_per_image: float) -> dict[str, float]:
    """Of the GPUs' JPEG engines where they decode, else of the cores where their number is given; and of the disk."""
    rates: dict[str, float] = {}
    engines = decoder_rate(machine.gpu)
    if config.data.decoder != "cpu" and engines is not None:
        rates["JPEG engines"] = machine.gpus * engines
    elif machine.cores_per_node is not None:
        rates["loader's cores"] = 1e3 * machine.cores_per_node * machine.nodes / cpu_ms_per_image
    if machine.disk_bytes_per_second_per_node is not None:
        disks = machine.nodes * machine.disk_bytes_per_second_per_node
        rates["disk"] = disks / bytes_read_per_image(config, machine)
    return rates


def bytes_read_per_image(config: Config, machine: Machine) -> float:
    """From disk for each view: on one machine the page cache serves an image's other views, which follow at once."""
    return IMAGENET_BYTES_PER_IMAGE / (config.data.repeats if machine.nodes == 1 else 1)
