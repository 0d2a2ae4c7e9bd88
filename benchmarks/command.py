"""`deit-fast bench VERB`: each verb is a module, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from .options import say

VERBS = {
    "loader": "loader_command",
    "step": "step_command",
    "kernels": "kernels_command",
    "train": "train_command",
    "parity": "parity_command",
    "images": "image_comparison",
    "compare": "compare_command",
    "accuracy": "accuracy.command",
    "report": "report.command",
}
"""Each module has `run(arguments) -> exit code`, which parses, measures and shows; ValueError for wrong use."""


def run(arguments: Sequence[str]) -> int:
    """Runs a verb of bench; ValueError for none, or an unknown one."""
    verbs = "|".join(VERBS)
    if arguments and arguments[0] in ("-h", "--help"):
        say(f"deit-fast bench {verbs} [--help]")
        return 0
    if not arguments or arguments[0] not in VERBS:
        raise ValueError(f"bench takes what to measure, as in `deit-fast bench loader`: one of {verbs}")
    verb, *rest = arguments
    code: int = import_module(f".{VERBS[verb]}", __package__).run(rest)
    return code
