"""Arrays with a text header in one file: safetensors, which any reader of weights opens, and nothing runs from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

KEY = "deit_fast"


def write_tensors(tensors: dict[str, np.ndarray], header: dict[str, Any]) -> bytes:
    """The file's content; header: what JSON holds, with the `format`. The same input gives the same bytes."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return save(contiguous, {KEY: json.dumps(header)})  # safetensors writes several keys in any order


def read_tensors(data: bytes, file_format: str, source: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and header; ValueError, naming the source, for a file that is broken or of another `format`."""
    try:
        tensors = load(data)
        header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][KEY])
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{source} cannot be read as {file_format} ({error}); make it anew") from error
    if header.get("format") != file_format:
        raise ValueError(f"{source} is of format {header.get('format')}, not {file_format}; make it anew")
    return tensors, header


def replace_file(path: Path, data: bytes) -> None:
    """Writes beside the path under a name of this process's own, then renames: the file is whole or not there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
