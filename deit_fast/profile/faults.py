"""Rules for time that a sound run does not lose: each from the record to a line of advice, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deit_fast.precision import DTYPES

from .advice_line import Advice, is_noticed, launch_bound_ms, ms_of, percent
from .phases import STEP_PHASES

NAMES = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
"""What the record calls a dtype -> what the configuration calls it."""


def data_wait(record: dict[str, Any]) -> Advice | None:
    """All ranks wait for their loader."""
    loader = record["loader"]
    wait = loader["wait_ms"]
    if not is_noticed(record, wait):
        return None
    alone = loader["alone"]
    evidence = (
        f"data wait {percent(record, wait)}: the loader alone gives {alone['images_per_second']:,.0f} images/s on "
        f"{alone['cores_used']:.1f} cores, the step could take {loader['step_could_take_images_per_second']:,.0f}"
    )
    return Advice("data", "fault", "The step waits for data", evidence, _mend_of_loader(record), wait)


def _mend_of_loader(record: dict[str, Any]) -> str:
    loader, alone = record["loader"], record["loader"]["alone"]
    threads = loader["num_threads"]
    if ms_of(record, "feed") > 0.5 * loader["wait_ms"]:
        return "most of it is the loader's callback, on the training thread: images are read there too late"
    if alone["images_per_second"] > 1.1 * loader["step_could_take_images_per_second"]:
        return "alone it is fast enough, so beside the step it lacks cores: give it more"
    if alone["cores_used"] < 0.5 * threads:
        return f"its {threads} threads are idle half the time, so it is the storage: `deit-fast data pack`"
    if loader["backend"] == "graph" and record["device_type"] == "cpu":
        return "its threads are busy: build the native operators (data.backend native), or give it more cores"
    return "its threads are busy: more data.num_threads and cores, or a GPU decoder (data.decoder)"


def slow_rank(record: dict[str, Any]) -> Advice | None:
    """The others wait for one rank."""
    slow = record["straggler"]
    if slow is None or not is_noticed(record, slow["behind_ms"]):
        return None
    in_loader = slow["phase"] in ("fetch", "feed")
    evidence = (
        f"rank {slow['rank']} on {slow['host']} is {slow['behind_ms']:,.1f} ms behind in each step: its "
        f"{slow['phase']} takes {slow['phase_ms']:,.1f} ms, the others' {slow['others_phase_ms']:,.1f}; they wait in "
        "the all-reduce"
    )
    mend = (
        "look at that rank's storage, or copy its data to a local disk"
        if in_loader
        else "look at that device's clocks and at what else runs on its cores"
    )
    return Advice("rank", "fault", "One rank holds the others up", evidence, mend, slow["behind_ms"])


def host_wait(record: dict[str, Any]) -> Advice | None:
    """The host waits for the device within the step."""
    waits = [wait for wait in record["operators"]["waits"] if wait["phase"] in STEP_PHASES]
    if not waits:
        return None
    first = waits[0]
    more = f" and at {len(waits) - 1} more places" if len(waits) > 1 else ""
    evidence = f"the host waits for the device in every step, {first['operator']} at {first['source']}{more}"
    mend = "keep the value on the device and read it at log steps"
    waited = record["operators"]["host_wait_ms"]
    # while the host waits the device works: what is lost is that it has no work when the host is back
    gain = None if waited is None else min(waited, launch_bound_ms(record))
    return Advice("host wait", "fault", "The host waits for the device in every step", evidence, mend, gain)


def teacher_precision(record: dict[str, Any]) -> Advice | None:
    """The teacher computes in fp32 and was measured to be faster in what the device is good at."""
    teacher = record["teacher"]
    if teacher is None or teacher["faster_ms"] is None:
        return None
    gain = teacher["ms"] * (1 - teacher["faster_ms"] / teacher["alone_ms"])
    if not is_noticed(record, gain):
        return None
    evidence = (
        f"the teacher computes in {teacher['dtype']}, {percent(record, teacher['ms'])}: alone a batch takes "
        f"{teacher['alone_ms']:,.1f} ms, in {teacher['faster_dtype']} {teacher['faster_ms']:,.1f}"
    )
    return Advice(
        "teacher precision",
        "fault",
        "The teacher computes in fp32",
        evidence,
        f"set {_key_of_teacher_precision(record)}, which is fp32, to {NAMES[teacher['faster_dtype']]}",
        gain,
    )


def _key_of_teacher_precision(record: dict[str, Any]) -> str:
    own = record["config"]["runtime"]["teacher_precision"] != "auto"
    return "runtime.teacher_precision" if own else "runtime.precision"


def compiler(record: dict[str, Any]) -> Advice | None:
    """torch.compile goes on compiling."""
    compiled = record["operators"]["compile"]
    if compiled["recompiles_while_measured"] == 0:
        return None
    evidence = f"{compiled['recompiles_while_measured']} graphs were compiled again after the warm-up"
    mend = "find the changing shape or flag with TORCH_LOGS=recompiles"
    return Advice("recompiles", "fault", "torch.compile keeps compiling", evidence, mend, None)


def logging(record: dict[str, Any]) -> Advice | None:
    """The loop outside of the step is long."""
    ms = ms_of(record, "log")
    if not is_noticed(record, ms):
        return None
    evidence = f"logging and the rest of the loop take {percent(record, ms)}"
    return Advice("log", "fault", "Logging is long", evidence, "raise runtime.log_every_steps", ms)


def fragmentation(record: dict[str, Any]) -> Advice | None:
    """The allocator had to give memory back and ask again, or lost much to gaps."""
    allocator = record["memory"]["allocator"]
    if allocator is None or (allocator["retries"] == 0 and allocator["fragmentation"] < 0.3):
        return None
    evidence = f"{allocator['fragmentation']:.0%} of torch's memory is in gaps, {allocator['retries']} retries"
    return Advice(
        "memory",
        "fault",
        "Memory is lost to gaps",
        evidence,
        "PYTORCH_ALLOC_CONF=expandable_segments:True, or a smaller batch",
        None,
    )


FAULTS: tuple[Callable[[dict[str, Any]], Advice | None], ...] = (
    data_wait,
    slow_rank,
    host_wait,
    teacher_precision,
    compiler,
    logging,
    fragmentation,
)
