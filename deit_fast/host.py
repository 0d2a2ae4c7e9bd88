"""The host's side of a rank: which cores it may use, near which device, and limits that stop a run hours later."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .distributed import Ranks

NODES = Path("/sys/devices/system/node")
DEVICES = Path("/sys/bus/pci/devices")
WANTED_SHARED_MEMORY_BYTES = 1 << 30
WANTED_OPEN_FILES = 4096
LOADER_CPU_MS_PER_IMAGE = 1.0
"""Of the full recipe at 224 px, as README's table has it; `deit-fast bench loader` measures it here."""
LOADER_CPU_SOURCE = "native operators, measured on a Zen 4 core"


def parse_cpu_list(text: str) -> set[int]:
    """`0-3,8` as the kernel writes it."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def numa_nodes(folder: Path = NODES) -> dict[int, set[int]]:
    """The cores of each NUMA node; empty where the kernel does not tell."""
    return {
        int(node.name.removeprefix("node")): parse_cpu_list((node / "cpulist").read_text())
        for node in sorted(folder.glob("node[0-9]*"))
        if (node / "cpulist").is_file()
    }


def node_of_device(index: int, folder: Path = DEVICES) -> int | None:
    """The NUMA node of a CUDA device; None where the kernel does not tell (-1 in virtual machines)."""
    properties: Any = torch.cuda.get_device_properties(index)  # its stubs lack the address
    address = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    path = folder / address / "numa_node"
    node = int(path.read_text()) if path.is_file() else -1
    return node if node >= 0 else None


def share_of_cores(
    available: Iterable[int], nodes: dict[int, set[int]], of_ranks: list[int | None], rank: int
) -> set[int]:
    """The cores of local rank `rank`: those of its device's node, shared evenly among the ranks of that node.

    of_ranks: the node of each local rank's device, None where unknown: then all cores are shared by all such ranks.
    Cores of one rank are neighbours, which share a cache. With fewer cores than ranks, all cores.
    """
    node = of_ranks[rank]
    cores = sorted(set(available) & nodes[node] if node in nodes else set(available))
    peers = [peer for peer, other in enumerate(of_ranks) if other == node]
    if len(cores) < len(peers):
        return set(cores) or set(available)
    place, size = peers.index(rank), len(cores) // len(peers)
    return set(cores[place * size : (place + 1) * size])


def pin_cores(ranks: Ranks) -> set[int]:
    """Binds this process, and the threads it will start, to its share; returns it."""
    of_ranks = [node_of_device(index) for index in range(ranks.local_world_size)]
    cores = share_of_cores(os.sched_getaffinity(0), numa_nodes(), of_ranks, ranks.local_rank)
    os.sched_setaffinity(0, cores)
    return cores


def raise_open_file_limit() -> int:
    """As many open files as the system lets this process have: worker threads, shards and sockets add up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def host_warnings(open_files: int, shared_memory: Path = Path("/dev/shm")) -> list[str]:
    """Limits that are too small, one line each with the mend."""
    warnings = []
    if open_files < WANTED_OPEN_FILES:
        warnings.append(
            f"only {open_files} files may be open (ulimit -n), {WANTED_OPEN_FILES} are safe: raise the hard limit in "
            "/etc/security/limits.conf, or start the container with --ulimit nofile=65536"
        )
    if shared_memory.is_dir():
        size = os.statvfs(shared_memory)
        free = size.f_bavail * size.f_frsize
        if free < WANTED_SHARED_MEMORY_BYTES:
            warnings.append(
                f"{shared_memory} has {free >> 20} MiB free, NCCL between processes wants {1024} MiB: start the "
                "container with --ipc=host or --shm-size=8g"
            )
    return warnings


def cores_wanted(images_per_second_per_device: float) -> float:
    """CPU cores that the loader of one device needs at this speed: images/s x CPU seconds an image."""
    return images_per_second_per_device * LOADER_CPU_MS_PER_IMAGE / 1e3
