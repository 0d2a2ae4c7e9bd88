"""One step watched operator by operator: arithmetic and bytes, conversions, copies, and where the host waits.

The step runs as ever, but slowly, since every operator passes through Python; nothing in it is timed. Compiled parts
run eagerly meanwhile, so that what the mathematics asks for is counted, and not what a compiler made of it.
"""

from __future__ import annotations

import linecache
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .phases import Phases

WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What makes the host wait for the device: reading a number, or a size that depends on values."""
INDEX = "aten::index"
"""Has such a size for a mask, and a known one for numbers."""
COPIES = {"aten::clone", "aten::copy_", "aten::_to_copy"}
HOST_READS = ("interrupt.py",)
"""The vote on a stop reads a tensor of the host, which no device computes; on a CPU the two look alike."""
DDP_PHASE = "all-reduce tail"
"""There DDP reads its own bookkeeping, which is the host's too."""
SYNC_WARNING = "called a synchronizing CUDA operation"
"""How torch.cuda.set_sync_debug_mode("warn") says that the host waited."""
AUTOGRAD = "autograd's thread"
PACKAGE = Path(__file__).parents[1]


@dataclass
class Count:
    """Sums over the calls of one kind."""

    calls: int = 0
    flops: int = 0
    bytes: int = 0


class OperatorWatch(TorchDispatchMode):
    """Counts every operator while it is entered."""

    def __init__(self, phases: Phases) -> None:
        super().__init__()
        self.phases = phases
        self.operators: dict[str, Count] = defaultdict(Count)
        self.copies: dict[tuple[str, str, str], Count] = defaultdict(Count)
        """(kind, phase, source line) -> calls and bytes."""
        self.waits: dict[tuple[str, str, str], Count] = defaultdict(Count)
        """(operator, phase, source line) -> calls."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:  # in inference mode composite operators come whole: only their parts are in the registry
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        name = func._schema.name
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        count = self.operators[name]
        count.calls += 1
        count.bytes += moved_bytes(inputs, outputs, in_place=func._schema.is_mutable)
        flops_of = flop_registry.get(func._overloadpacket)
        if flops_of is not None:
            count.flops += flops_of(*args, **kwargs, out_val=result)
        if makes_the_host_wait(func, inputs) and inputs[0].device.type == self.phases.device.type:
            self._note(self.waits, name)
        elif name in COPIES and inputs:
            target = inputs[0] if name == "aten::copy_" else outputs[0]
            waits = not (kwargs.get("non_blocking") or (name == "aten::copy_" and any(args[2:])))
            self._note_copy(inputs[-1] if name == "aten::copy_" else inputs[0], target, waits=waits)
        return result

    def _note_copy(self, source: Tensor, target: Tensor, *, waits: bool) -> None:
        kind = copy_kind(source, target)
        if kind == "device to host" and waits:
            self._note(self.waits, "copy to the host")
        count = self._note(self.copies, kind)
        count.bytes += source.numel() * source.element_size() + target.numel() * target.element_size()

    def note_warning(self, message: Any, *_where: Any, **_more: Any) -> None:
        """Stands in for warnings.showwarning: the place that comes with a warning is often a file of torch's.

        A wait that was noted by its operator, here or in autograd's thread, is not noted again.
        """
        here = {(self.phases.current, line) for line in (calling_line(), AUTOGRAD)}
        if SYNC_WARNING in str(message) and here.isdisjoint((phase, source) for _, phase, source in self.waits):
            self._note(self.waits, "synchronisation")

    def _note(self, table: dict[tuple[str, str, str], Count], kind: str) -> Count:
        count = table[kind, self.phases.current, calling_line()]
        count.calls += 1
        return count


def makes_the_host_wait(func: Any, inputs: list[Tensor]) -> bool:
    """Whether an operator's result is a number on the host, or has a size that its values decide."""
    if func._schema.name == INDEX:
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in inputs[1:])
    return bool(inputs) and not WAITING_TAGS.isdisjoint(func.tags)


def moved_bytes(inputs: list[Tensor], outputs: list[Tensor], *, in_place: bool) -> int:
    """Bytes that an operator has to read and write, each tensor once; a view moves none."""
    read_from = {_storage(tensor) for tensor in inputs}
    if not in_place and outputs and all(_storage(tensor) in read_from for tensor in outputs):
        return 0
    return sum(tensor.numel() * tensor.element_size() for tensor in [*inputs, *outputs])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # unlike its pointer, fake tensors have it too


def copy_kind(source: Tensor, target: Tensor) -> str:
    """What a copy changes: device, dtype, layout (other strides), or nothing."""
    if source.device.type != target.device.type:
        return "host to device" if source.device.type == "cpu" else "device to host"
    if source.dtype != target.dtype:
        return "cast"
    moved = [size > 1 for size in source.shape]
    strides = [
        [stride for stride, is_moved in zip(t.stride(), moved, strict=False) if is_moved] for t in (source, target)
    ]
    return "layout" if strides[0] != strides[1] else "copy"


def calling_line() -> str:
    """`deit_fast/step.py:83: loss = ...` of the innermost frame that is not torch's, nor this package's profiler."""
    frame = sys._getframe(1)
    others = (str(Path(__file__).parent), str(Path(torch.__file__).parent), warnings.__file__, "<")
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(others):
            return describe_line(file, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return AUTOGRAD


def describe_line(file: str, line: int) -> str:
    """A place in the source with its code; the path from the package, or its last part."""
    path = Path(file)
    short = path.relative_to(PACKAGE.parent) if path.is_relative_to(PACKAGE) else Path(*path.parts[-2:])
    return f"{short}:{line}: {linecache.getline(file, line).strip()}"


@contextmanager
def watched(phases: Phases, into: list[dict[str, Any]]) -> Iterator[None]:
    """Watches what happens inside, and appends `describe_watch`'s record to `into`.

    On CUDA torch's own detector of synchronisations is on too: it knows of more than the operators do.
    """
    on_cuda = phases.device.type == "cuda"
    watch = OperatorWatch(phases)
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("always")
        warnings.showwarning = watch.note_warning
        if on_cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            with watch:
                yield
        finally:
            if on_cuda:
                torch.cuda.set_sync_debug_mode("default")
    into.append(describe_watch(watch))


def describe_watch(watch: OperatorWatch) -> dict[str, Any]:
    """Plain tables: operators, copies and waits of one step."""
    operators = [
        {"operator": name, "calls": count.calls, "flops": count.flops, "bytes": count.bytes}
        for name, count in sorted(watch.operators.items(), key=lambda item: -item[1].bytes)
    ]
    copies = [
        {"kind": kind, "phase": phase, "source": source, "calls": count.calls, "bytes": count.bytes}
        for (kind, phase, source), count in sorted(watch.copies.items(), key=lambda item: -item[1].bytes)
    ]
    waits = [
        {"operator": name, "phase": phase, "source": source, "calls": count.calls}
        for (name, phase, source), count in watch.waits.items()
        if not source.split(":")[0].endswith(HOST_READS) and phase != DDP_PHASE
    ]
    return {"operators": operators, "copies": copies, "waits": waits}
