"""`deit-fast bench parity`: how our augmentation differs from timm's and Pillow's; no speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from deit_fast.bench_records import append_record
from deit_fast.config_file import config_parser, parse_arguments
from deit_fast.dali_pipelines.native import plugin

from . import native_parity, parity
from .options import say
from .records import build_record


def run(arguments: Sequence[str]) -> int:
    """Prints the tables as Markdown: nothing of the configuration matters but the size."""
    parser = config_parser("deit-fast bench parity", "Our augmentation against timm's and Pillow's, as Markdown.")
    parser.add_argument("--model.image_size_px", type=int, default=224, help="side of the images that are compared")
    parser.add_argument("--json", metavar="FILE", help="append the rows as one JSON line")
    options = parse_arguments(parser, arguments)
    size = options.model.image_size_px
    graph = list(parity.parity_rows(size))
    say(parity.markdown_table(graph))
    native = native_parity.table(size) if plugin.is_available() else []
    say(f"{plugin.describe()}\n")
    if native:
        say(native_parity.markdown_table(native))
    if options.json:
        rows: list[dict[str, Any]] = [{"backend": "graph", **asdict(row)} for row in graph]
        rows += [{"backend": "native", **row._asdict()} for row in native]
        config = {"model": {"image_size_px": size}}
        record = build_record("parity", f"parity, {size} px", rows, torch.device("cpu"), config=config)
        append_record(options.json, record)
    return 0
