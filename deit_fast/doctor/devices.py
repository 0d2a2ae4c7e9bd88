"""Whether the GPUs that are there are seen, supported, free, and able to talk to one another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from nvidia.dali import backend

from .finding import Finding

DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
FREE_SHARE = 0.95
"""Of a GPU's memory; what the driver and an idle display keep is less than the rest."""
COLLECTIVE_TIMEOUT_S = 60
LAUNCHER_GRACE_S = 40
"""torchrun gives its workers 30 s before it kills them."""


class Gpu(NamedTuple):
    """What torch says of a device."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int


def check_devices() -> list[Finding]:
    """All GPUs, by the driver, by torch and by DALI."""
    there = len(list(DRIVER_GPUS.iterdir())) if DRIVER_GPUS.is_dir() else 0
    by_torch = torch.cuda.device_count() if torch.cuda.is_available() else 0
    by_dali = backend.GetCUDADeviceCount() if by_torch else 0  # type: ignore[attr-defined]
    findings = judge_counts(there, by_torch, by_dali)
    for index in range(by_torch):
        gpu = Gpu(
            torch.cuda.get_device_name(index),
            torch.cuda.get_device_capability(index),
            *torch.cuda.mem_get_info(index),
        )
        findings += judge_gpu(index, gpu, torch.cuda.get_arch_list())
    if by_torch > 1:
        findings.append(check_collective("cuda", by_torch))
    return findings


def judge_counts(there: int, by_torch: int, by_dali: int) -> list[Finding]:
    """there: GPUs that the driver lists."""
    if by_torch == 0 and there == 0:
        return [Finding("GPU", "note", "there is none: everything runs on the CPU")]
    if by_torch == 0:
        mend = "check CUDA_VISIBLE_DEVICES, `docker run --gpus all`, and `python -m torch.utils.collect_env`"
        return [Finding("GPU", "failure", f"the driver lists {there}, torch sees none", mend)]
    if by_dali != by_torch:
        mend = "install the DALI of the driver's CUDA: docs/gpu.md, Install"
        return [Finding("GPU", "failure", f"torch sees {by_torch}, DALI {by_dali}", mend)]
    return [Finding("GPU", "ok", f"torch and DALI see {by_torch}")]


def judge_gpu(index: int, gpu: Gpu, built_for: list[str]) -> list[Finding]:
    """built_for: torch's architectures, `sm_90`. A kernel runs on its own major version from its minor one upwards."""
    findings = []
    name = f"GPU {index}"
    major, minor = gpu.capability
    built = [divmod(int(arch.removeprefix("sm_").rstrip("af")), 10) for arch in built_for if arch.startswith("sm_")]
    if not any(one == major and other <= minor for one, other in built):
        text = f"{gpu.name} is sm_{major}{minor}, this torch was built for {', '.join(built_for)}"
        findings.append(Finding(name, "failure", text, "install a torch that was built for it, or use another GPU"))
    elif major < 8:
        text = f"{gpu.name} does not compute in bf16: fp16 with loss scaling is used"
        findings.append(Finding(name, "warning", text, "use an A100 or newer"))
    used = gpu.total_bytes - gpu.free_bytes
    if gpu.free_bytes < FREE_SHARE * gpu.total_bytes:
        text = f"{used / 2**30:.1f} of {gpu.total_bytes / 2**30:.0f} GiB are taken by other processes"
        findings.append(
            Finding(name, "warning", text, "nvidia-smi names them; end them, or choose CUDA_VISIBLE_DEVICES")
        )
    return findings or [Finding(name, "ok", f"{gpu.name}, {gpu.free_bytes / 2**30:.0f} GiB free")]


def check_collective(device: str, processes: int, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> Finding:
    """A sum over all devices, in processes as torchrun starts them: NCCL on GPUs, gloo on a CPU."""
    name = "NCCL" if device == "cuda" else "gloo"
    if device == "cuda" and not dist.is_nccl_available():
        return Finding(name, "failure", "this torch has no NCCL", "install torch from its own index, for Linux")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    mend = (
        "NCCL_DEBUG=INFO tells why; common: too little /dev/shm (--ipc=host), a firewall between nodes, "
        "virtual machines without peer access (NCCL_P2P_DISABLE=1)"
    )
    command += ["-m", "deit_fast.doctor.collective", device]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            _, errors = launcher.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            end_launcher(launcher)
            return Finding(name, "failure", f"a sum over {processes} processes did not end in {timeout_s:.0f} s", mend)
    if launcher.returncode != 0:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        return Finding(name, "failure", f"a sum over {processes} processes failed: {last}", mend)
    return Finding(name, "ok", f"a sum over {processes} processes is right")


def end_launcher(launcher: subprocess.Popen[str]) -> None:
    """Asks torchrun to end, which ends its workers; killed at once it would leave them, and their GPUs taken."""
    launcher.terminate()
    try:
        launcher.communicate(timeout=LAUNCHER_GRACE_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
