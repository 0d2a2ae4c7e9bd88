"""A list of files with labels: a text file of lines `path label`, with numbers or names of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .packed_text import PackedText


def parse_file_list(
    data: bytes, source: str, class_names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray, PackedText]:
    """Classes, labels int64 [N] and paths of lines `path<tab or space>label`; blank lines are passed over.

    Where a line has a tab, the last one parts path and label; else the last space. Labels are numbers from 0, or names,
    whose order is that of class_names or else sorted. Numbers without class_names name the classes 0, 1, ...
    ValueError, naming the source and the line, for a missing label, a path given twice, or an unknown class.
    """
    lines: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(os.fsdecode(data).splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition("\t" if "\t" in line.strip() else " ")
        if not path.strip() or not label:
            raise ValueError(f"{source}, line {number}: expected a path and a label, got {line.strip()!r}")
        path = path.strip()
        if path in lines:
            raise ValueError(f"{source}, line {number}: {path} was given in line {lines[path][0]} already")
        lines[path] = number, label.strip()
    if not lines:
        raise ValueError(f"{source} lists no images; each line needs a path and a label")
    classes, labels = _number_labels(lines, source, class_names)
    return classes, labels, PackedText.pack([os.fsencode(path) for path in lines])


def _number_labels(
    lines: dict[str, tuple[int, str]], source: str, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    given = [label for _, label in lines.values()]
    known = tuple(class_names) if class_names is not None else None
    if all(label.isdecimal() for label in given) and not (known and set(given) <= set(known)):
        labels = np.array([int(label) for label in given], dtype=np.int64)
        classes = known or tuple(str(label) for label in range(labels.max() + 1))
        if labels.max() >= len(classes):
            number, label = list(lines.values())[int(labels.argmax())]
            raise ValueError(f"{source}, line {number}: label {label}, but there are {len(classes)} classes, from 0 on")
        return classes, labels
    classes = known or tuple(sorted(set(given)))
    positions = {name: label for label, name in enumerate(classes)}
    for number, label in lines.values():
        if label not in positions:
            raise ValueError(f"{source}, line {number}: class {label} is not among the {len(classes)} class names")
    return classes, np.array([positions[label] for label in given], dtype=np.int64)
