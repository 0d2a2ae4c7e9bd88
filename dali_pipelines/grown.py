"""A pipeline grown operator by operator: what each of them costs is the difference to the one before.

DALI 2.4 keeps no times of its operators: `executor_statistics()` of the dynamic executor is empty, and its ranges go to
Nsight alone. So the pipeline is cut after each operator on the way from the callback to the images, and measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from nvidia.dali import Pipeline

SPLIT, MERGE = "_conditional__Split", "_conditional__Merge"
ARITHMETIC = "_Arithmetic"
TRIVIAL = ("Cast", "_", "Constant")
"""Operators that do not name a branch."""


class Cut(NamedTuple):
    """A place where the pipeline can end."""

    name: str
    """The operator, or what a branch holds."""
    operators: int
    """How many this step adds: more than one for a branch."""
    position: int
    """In the chain of nodes from the callback to the output."""


def main_chain(pipeline: Pipeline) -> list[Any]:
    """DALI's nodes from the callback to the pipeline's output, by each operator's first input."""
    (node,) = pipeline._graph_out
    chain = [node]
    while chain[-1].source.inputs:
        chain.append(chain[-1].source.inputs[0])
    return chain[::-1]


def operator_name(node: Any) -> str:
    """`decoders.ImageSlice`."""
    return str(node.source._op._schema.Name()).replace("__", ".")


def cuts(pipeline: Pipeline) -> list[Cut]:
    """Where the pipeline can end: after each operator that is not inside a branch, and after each whole branch."""
    found: list[Cut] = []
    inside: list[str] = []
    depth, first_id = 0, 0
    for position, node in enumerate(main_chain(pipeline)):
        name, schema = operator_name(node), node.source._op._schema.Name()
        if schema == SPLIT:
            if depth == 0:
                inside, first_id = [], node.source.id
            depth += 1
        elif schema == MERGE:
            depth -= 1
            if depth == 0:
                count = node.source.id - first_id + 1
                found.append(Cut(_branch_name(inside, count), count, position))
        elif depth:
            inside.append(name)
        else:
            found.append(Cut("arithmetic" if name.startswith(ARITHMETIC) else name, 1, position))
    return found


def _branch_name(inside: list[str], count: int) -> str:
    names = [name for name in dict.fromkeys(inside) if not name.startswith(TRIVIAL)]
    return f"branch: {', '.join(names)}" if names else f"branch of {count} operators"


def grown(pipelines: Iterator[Pipeline]) -> Iterator[tuple[Cut, Pipeline]]:
    """Each cut with a built pipeline that ends there; `pipelines` gives a new one, not yet built, as often as asked."""
    for cut in cuts(next(pipelines)):
        pipeline = next(pipelines)
        pipeline.set_outputs(main_chain(pipeline)[cut.position])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The external source node")  # that inputs are not used yet
            pipeline.build()
        yield cut, pipeline
