"""`deit-fast data pack`: from what people have to tar shards with an index."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from .cli import write_json
from .data_verb import parse_verb, say, verb_parser, with_progress
from .pack_source import Kind, PackSource, open_sources


def _part(text: str) -> tuple[int, int]:
    """`i/n` -> (i, n)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--part must be i/n with i from 1 to n, such as 1/4, got {text}")
    return int(number), int(count)


def _parser() -> ArgumentParser:
    parser = verb_parser("pack", "Packs images into tar shards (WebDataset) with an index.", "processes")
    add = parser.add_argument
    add("--input", metavar="PATH", required=True, help="folder of what is to be packed, or one of ImageNet's tars")
    add("--output", metavar="DIR", type=str | None, help="folder of the shards: a data.path")
    add("--source", type=Kind, default="auto", help="what lies at --input; auto: found out")
    add("--split", type=str | None, help="train or val; default: those that are there")
    devkit = "labels of ImageNet's val tar: the devkit's .tar.gz, or a text file of wnids; default: beside the tar"
    add("--devkit", metavar="FILE", type=str | None, help=devkit)
    add("--shrink-px", type=int | None, help="longest side in pixels; default: images stay as they are")
    add("--quality", type=int, default=90, help="JPEG quality of what is shrunk, 1 to 95")
    add("--images-per-shard", type=int, default=10_000, help="10,000 of ImageNet are 1.1 GB")
    add("--part", metavar="i/n", default="1/1", help="write each n-th shard from the i-th: machines can share the work")
    add("--index-only", action="store_true", help="leave WebDataset tars where they are and write SPLIT.index there")
    return parser


def pack(arguments: list[str]) -> int:
    """`deit-fast data pack --input DIR --output DIR`: writes tar shards and their index."""
    options = parse_verb(_parser(), arguments)
    _check_pack(options)
    root = Path(options.input)
    sources = open_sources(options.source, root, options.split, Path(options.devkit) if options.devkit else None)
    result: dict[str, Any] = {}
    for split, source in sources.items():
        if options.index_only:
            result[split] = _index_split(source, root, split, options)
        else:
            result[split] = _pack_split(source, split, options)
    write_json(options.json, result)
    return 0


def _check_pack(options: Any) -> None:
    if options.images_per_shard < 1:
        raise ValueError(f"--images-per-shard must be at least 1, got {options.images_per_shard}")
    if options.shrink_px is not None and options.shrink_px < 1:
        raise ValueError(f"--shrink-px must be at least 1, got {options.shrink_px}")
    if not 1 <= options.quality <= 95:
        raise ValueError(f"--quality must be from 1 to 95, as Pillow takes it, got {options.quality}")
    if options.output is None and not options.index_only:
        raise ValueError("--output is not set; give the folder of the shards with --output DIR")


def _pack_split(source: PackSource, split: str, options: Any) -> dict[str, Any]:
    from .pack import PackOptions, join_parts, num_shards, pack_split

    how = PackOptions(options.images_per_shard, options.shrink_px, options.quality)
    part, output, total = _part(options.part), Path(options.output), {"images": 0, "shrunk": 0, "undecodable": 0}
    shards, start = num_shards(source, how), time.perf_counter()
    mine = len(range(part[0] - 1, shards, part[1]))
    steps = pack_split(source, output, split, how, part, options.workers)
    written = 0
    for done in with_progress(f"pack {split}", mine, steps, size=lambda _: 1):
        written += 1
        for key in total:
            total[key] += getattr(done, key)
    seconds = time.perf_counter() - start
    missing = join_parts(source, output, split, how)
    say(
        f"{split}: wrote {written} of {mine} shards ({mine - written} were there), {total['images']:,} images in "
        f"{seconds:,.1f} s"
    )
    if how.shrink_px is not None:
        say(f"  {total['shrunk']:,} made smaller, {total['undecodable']:,} could not be decoded and stay as they are")
    if missing:
        say(f"  {len(missing)} shards of other parts are missing; the last part to end writes {split}.index")
    else:
        say(f"  {output / split}.index: {len(source.labels):,} images in {shards} shards")
    return {"shards": shards, "written": written, "missing": missing, "seconds": seconds, **total}


def _index_split(source: PackSource, root: Path, split: str, options: Any) -> dict[str, Any]:
    from .index_in_place import index_in_place
    from .tar_source import TarSource

    if not isinstance(source, TarSource) or root.is_file():
        raise ValueError("--index-only takes WebDataset tars: a folder of tars, as --source webdataset describes")
    steps = index_in_place(source, root, split, options.workers)
    images = sum(with_progress(f"index {split}", len(source.labels), steps, size=lambda images: images))
    say(f"{split}: {root / split}.index: {images:,} images in {len(source.files)} shards")
    return {"shards": len(source.files), "images": images}
