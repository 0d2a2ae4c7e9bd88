"""Named ranges for the trace and for Nsight: the phases of a step, and the modules of student and teacher."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function

from deit_fast.fused_blocks import FusedBlock
from deit_fast.model import DeiT

from .trace import MODULE, PHASE

MODULE_GROUPS = {
    "patch_embed": "patch embedding", "attn": "attention", "mlp": "MLP", "norm1": "norm", "norm2": "norm",
    "norm": "norm", "head": "head", "head_dist": "head",
}  # fmt: skip
"""The names of a DeiT's parts (timm's too) -> the group that the report shows."""
FUSED_BRANCHES = {"add_attention": "attention and norm", "add_mlp": "MLP and norm"}
"""A FusedBlock's methods -> their groups: it calls no module for a branch, whose sum and norm are one kernel."""


class PhaseRanges:
    """One range after another, as the phases begin; on the main thread alone, where ranges nest."""

    def __init__(self, enter: Callable[[str], Callable[[], None]]) -> None:
        """enter: name -> what ends that range."""
        self.enter, self.leave = enter, _nothing

    def __call__(self, phase: str) -> None:
        if threading.current_thread() is threading.main_thread():
            self.leave()
            self.leave = self.enter(PHASE + phase)

    def close(self) -> None:
        """Ends the last range."""
        self.leave()
        self.leave = _nothing


def _nothing() -> None:
    return None


def trace_range(name: str) -> Callable[[], None]:
    """A range of torch.profiler."""
    entered = record_function(name)
    entered.__enter__()
    return lambda: entered.__exit__(None, None, None)


def nvtx_range(name: str) -> Callable[[], None]:
    """A range that Nsight Systems shows; costs next to nothing without it."""
    torch.cuda.nvtx.range_push(name)
    return torch.cuda.nvtx.range_pop


def visible_modules(student: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Its named parts, but nothing inside a compiled module, whose graph is one."""
    compiled = {name for name, module in student.named_modules() if getattr(module, "_compiled_call_impl", None)}
    for name, module in student.named_modules():
        if name and not any(name == outer or name.startswith(f"{outer}.") for outer in compiled):
            yield name, module


def grouped_modules(student: nn.Module, teacher: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """(group, module) of what the report tells apart."""
    yield "student, rest", student
    for name, module in visible_modules(student):
        last = name.rsplit(".", 1)[-1]
        if last in MODULE_GROUPS:
            yield MODULE_GROUPS[last], module
        elif "." not in name and not isinstance(student, DeiT):
            yield name, module
    if teacher is not None and not getattr(teacher, "_compiled_call_impl", None):
        yield "teacher", teacher


@contextmanager
def module_ranges(student: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
    """While entered, each forward of a grouped module, or of a fused branch, is a range `module: GROUP`."""
    leaves = []

    def enter(group: str) -> Callable[..., None]:
        return lambda *_call: leaves.append(trace_range(MODULE + group))

    def leave(*_call: Any) -> None:
        leaves.pop()()

    with ExitStack() as stack:
        for group, module in grouped_modules(student, teacher):
            stack.callback(module.register_forward_pre_hook(enter(group)).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        for _, block in visible_modules(student):
            if isinstance(block, FusedBlock):
                for name, group in FUSED_BRANCHES.items():
                    setattr(block, name, _ranged(getattr(block, name), MODULE + group))
                    stack.callback(delattr, block, name)
        yield


def _ranged(part: Callable[..., Any], name: str) -> Callable[..., Any]:
    def in_range(*arguments: Any) -> Any:
        with record_function(name):
            return part(*arguments)

    return in_range
