"""What to do about a profile: at most five lines, each from measured figures. A pure function of the record.

Faults come before options: a fault is time that a sound run does not lose, an option is another way to run. Within
each kind the larger gain comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deit_fast.precision import DTYPES

from .idle import LAUNCH_BOUND
from .phases import STEP_PHASES

NOTICED = 0.05
"""Share of the step below which nothing is said."""
MOST = 5
NAMES = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
"""What the record calls a dtype -> what the configuration calls it."""


@dataclass(frozen=True)
class Advice:
    """One line of advice."""

    cause: str
    """data, rank, host wait, teacher precision, ...: what tests and scripts ask for."""
    kind: str
    """fault or option."""
    headline: str
    """The cause in a few words, for people."""
    evidence: str
    mend: str
    gain_ms: float | None
    """Estimated milliseconds of the step; None where this device cannot tell."""

    @property
    def line(self) -> str:
        """Evidence, mend, gain."""
        gain = "gain not measurable here" if self.gain_ms is None else f"up to {self.gain_ms:,.1f} ms of the step"
        return f"{self.evidence}; {self.mend} ({gain})"


Rule = Callable[[dict[str, Any]], Advice | None]


def advise(record: dict[str, Any]) -> list[Advice]:
    """The most useful advice first."""
    found = [advice for rule in RULES if (advice := rule(record)) is not None]
    found.sort(key=lambda advice: (advice.kind != "fault", -(advice.gain_ms or 0.0)))
    return found[:MOST]


def _ms(record: dict[str, Any], *phases: str) -> float:
    """What the phases take on every rank, mean ms: on the rank where they take least."""
    rows = [row for row in record["phases"] if row["phase"] in phases]
    if not rows:
        return 0.0
    return min(sum(values) for values in zip(*(row["by_rank_ms"] for row in rows), strict=True))


def _noticed(record: dict[str, Any], ms: float, share: float = NOTICED) -> bool:
    return ms > share * record["step"]["mean_ms"]


def _percent(record: dict[str, Any], ms: float) -> str:
    return f"{ms / record['step']['mean_ms']:.0%} of the step"


def data_wait(record: dict[str, Any]) -> Advice | None:
    """All ranks wait for their loader."""
    loader = record["loader"]
    wait = loader["wait_ms"]
    if not _noticed(record, wait):
        return None
    alone = loader["alone"]
    evidence = (
        f"data wait {_percent(record, wait)}: the loader alone gives {alone['images_per_second']:,.0f} images/s on "
        f"{alone['cores_used']:.1f} cores, the step could take {loader['step_could_take_images_per_second']:,.0f}"
    )
    return Advice("data", "fault", "The step waits for data", evidence, _mend_of_loader(record), wait)


def _mend_of_loader(record: dict[str, Any]) -> str:
    loader, alone = record["loader"], record["loader"]["alone"]
    threads = loader["num_threads"]
    if _ms(record, "feed") > 0.5 * loader["wait_ms"]:
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
    if slow is None or not _noticed(record, slow["behind_ms"]):
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
    gain = None if waited is None else min(waited, _launch_bound_ms(record))
    return Advice("host wait", "fault", "The host waits for the device in every step", evidence, mend, gain)


def _launch_bound_ms(record: dict[str, Any]) -> float:
    idle = record["idle"]
    return float(idle["idle_causes"].get(LAUNCH_BOUND, 0.0) * idle["ms_per_step"])


def teacher_precision(record: dict[str, Any]) -> Advice | None:
    """The teacher computes in fp32 and was measured to be faster in what the device is good at."""
    teacher = record["teacher"]
    if teacher is None or teacher["faster_ms"] is None:
        return None
    gain = teacher["alone_ms"] - teacher["faster_ms"]
    if not _noticed(record, gain):
        return None
    evidence = (
        f"the teacher computes in {teacher['dtype']}, {_percent(record, teacher['ms'])}: alone a batch takes "
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
    ms = _ms(record, "log")
    if not _noticed(record, ms):
        return None
    evidence = f"logging and the rest of the loop take {_percent(record, ms)}"
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


def all_reduce(record: dict[str, Any]) -> Advice | None:
    """The tail that every rank has, so that nobody is to blame."""
    ms = _ms(record, "all-reduce tail")
    if not _noticed(record, ms):
        return None
    hidden = record["all_reduce_overlap"]
    shown = "" if hidden is None else f", {hidden:.0%} of the all-reduce is hidden behind the backward"
    evidence = f"the all-reduce's tail takes {_percent(record, ms)} on every rank{shown}"
    mend = "a larger runtime.batch_size_per_device or runtime.accumulate_steps"
    if record["device_type"] == "cuda":
        mend += "; check NVLink and NCCL"
    return Advice("all-reduce", "option", "The all-reduce is not hidden", evidence, mend, ms)


def launch_bound(record: dict[str, Any]) -> Advice | None:
    """A GPU is idle while the host prepares work."""
    share = record["idle"]["idle_causes"].get(LAUNCH_BOUND, 0.0)
    if record["device_type"] != "cuda" or share < 0.1:
        return None
    launches = record["operators"]["launches"]
    evidence = (
        f"the device is idle for {share:.0%} of the step while the host launches {launches['per_step']:,.0f} kernels, "
        f"{launches['short_share_of_count']:.0%} of them under {launches['short_us']:.0f} us"
    )
    mend = "runtime.compile true, runtime.cuda_graphs true, or a larger batch"
    return Advice("launches", "option", "The host cannot launch fast enough", evidence, mend, _launch_bound_ms(record))


def layouts(record: dict[str, Any]) -> Advice | None:
    """Copies that only change the order in memory."""
    moved = sum(copy["bytes"] for copy in record["operators"]["copies"] if copy["kind"] == "layout")
    ms = 1e3 * moved / record["operators"]["peaks"]["bytes_per_second"]
    if not _noticed(record, ms):
        return None
    first = next(copy for copy in record["operators"]["copies"] if copy["kind"] == "layout")
    evidence = (
        f"layout conversions move {moved / 2**20:,.0f} MiB a step, at this device's bandwidth {_percent(record, ms)}; "
        f"most at {first['source']}"
    )
    return Advice(
        "layout",
        "option",
        "Copies only change the layout",
        evidence,
        "try runtime.teacher_layout, or fuse it (runtime.compile)",
        ms,
    )


def label_cache(record: dict[str, Any]) -> Advice | None:
    """A live teacher is a large part of the step."""
    teacher = record["teacher"]
    if teacher is None or not _noticed(record, teacher["ms"], 0.15):
        return None
    evidence = f"the teacher takes {_percent(record, teacher['ms'])}"
    mend = "compute its labels once (`deit-fast teacher-cache`) if several runs use them"
    return Advice("teacher", "option", "The teacher is a large part of the step", evidence, mend, teacher["ms"])


RULES: tuple[Rule, ...] = (
    data_wait, slow_rank, host_wait, teacher_precision, compiler, logging, fragmentation, all_reduce, launch_bound,
    layouts, label_cache,
)  # fmt: skip
