"""`deit-fast data scan|pack|verify|sample`: parses, shows progress, prints what was done."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cli import write_json
from .config import DataConfig
from .data_verb import parse_verb, say, verb_parser, with_progress
from .open_images import find_index, open_files, open_images
from .pack_source import SPLITS

NAMED = 20
"""Bad images that are printed; all are in the manifest and in --json."""


def run(arguments: list[str]) -> int:
    """Runs one of the verbs; ValueError for wrong use."""
    from .pack_command import pack

    verbs: dict[str, Callable[[list[str]], int]] = {"scan": scan, "pack": pack, "verify": verify, "sample": sample}
    if arguments and arguments[0] in ("-h", "--help"):
        say("deit-fast data scan|pack|verify|sample [--help]")
        return 0
    if not arguments or arguments[0] not in verbs:
        raise ValueError("data takes what to do: deit-fast data scan, pack, verify or sample")
    return verbs[arguments[0]](arguments[1:])


def _splits(data: DataConfig, split: str | None) -> list[str]:
    """The splits asked for, or those of train and val that can be opened; ValueError, from the first, for none."""
    if split is not None:
        return [split]
    found: list[str] = []
    left_out: dict[str, ValueError] = {}
    for name in SPLITS:
        try:
            open_images(data, name)
        except ValueError as error:
            left_out[name] = error
        else:
            found.append(name)
    if not found:
        raise left_out[SPLITS[0]]
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    return found


def scan(arguments: list[str]) -> int:
    """`deit-fast data scan --data.path DIR`: decodes every image, and writes the manifest."""
    from deit_fast.dali_pipelines.scan import scan_images

    from .manifest import name_in_data, write_bad

    parser = verb_parser("scan", "Finds bad images, and writes the manifest that training reads.", "decoding threads")
    parser.add_argument("--split", type=str | None, help="train or val; default: both")
    parser.add_argument("--data.path", required=True, help="as for `deit-fast train`")
    parser.add_argument(
        "--data.manifest", type=str | None, help="folder of the manifest; default: .deit_fast in data.path"
    )
    options = parse_verb(parser, arguments)
    data = DataConfig(path=options.data.path, manifest=options.data.manifest)
    result: dict[str, Any] = {}
    for split in _splits(data, options.split):
        images, start = open_images(data, split, keep_listing=True), time.perf_counter()
        bad: list[tuple[int, str]] = []
        steps = scan_images(images, options.workers)
        for _, found in with_progress(f"scan {split}", len(images), steps, size=lambda step: step[0]):
            bad += found
        seconds = time.perf_counter() - start
        file = write_bad(data, split, images, bad)
        result[split] = {
            "images": len(images),
            "bad": [{"name": name_in_data(data, images, image), "reason": reason} for image, reason in bad],
            "images_per_second": len(images) / seconds,
            "manifest": str(file) if file else None,
        }
        show_scan(split, result[split])
    write_json(options.json, result)
    return 0


def show_scan(split: str, result: dict[str, Any]) -> None:
    """Prints the counts and the first bad images."""
    bad = result["bad"]
    speed = f"{result['images_per_second']:,.0f} images/s"
    say(f"{split}: {result['images']:,} images, {len(bad):,} bad; {speed}; written: {result['manifest'] or 'nothing'}")
    for row in bad[:NAMED]:
        say(f"  {row['name']}: {row['reason']}")
    if len(bad) > NAMED:
        say(f"  and {len(bad) - NAMED:,} more")


def verify(arguments: list[str]) -> int:
    """`deit-fast data verify --data.path DIR`: holds shards against their checksums; 1 where one differs."""
    from .verify import verify_shards

    parser = verb_parser("verify", "Reads packed shards again and holds them against their checksums.", "threads")
    parser.add_argument("--split", type=str | None, help="train or val; default: both")
    parser.add_argument("--data.path", required=True, help="folder or URL of the shards")
    options = parse_verb(parser, arguments)
    data = DataConfig(path=options.data.path)
    result: dict[str, Any] = {}
    found = {split: find_index(data, split) for split in ([options.split] if options.split else SPLITS)}
    if not any(found.values()):
        raise ValueError(
            f"data.path {data.path} holds no shards: there is no {' or '.join(f'{split}.index' for split in found)}; "
            "image files are checked by `deit-fast data scan`"
        )
    for split, (root, index) in ((split, pair) for split, pair in found.items() if pair):
        steps = verify_shards(open_files(root), index, options.workers)
        differing = [line for line in with_progress(f"verify {split}", len(index.files), steps, lambda _: 1) if line]
        result[split] = {"shards": len(index.files), "images": len(index), "differing": sorted(differing)}
        say(f"{split}: {len(index.files)} shards, {len(index):,} images: {len(differing) or 'none'} differ")
        for line in sorted(differing):
            say(f"  {line}")
    write_json(options.json, result)
    return 1 if any(split["differing"] for split in result.values()) else 0


def sample(arguments: list[str]) -> int:
    """`deit-fast data sample --output DIR`: writes the handwritten digits, a small real data set."""
    from .digits import write_digits

    parser = verb_parser("sample", "Writes a small real data set: 1,797 handwritten digits as JPEGs of 32 px.", None)
    parser.add_argument("--output", metavar="DIR", required=True, help="a new folder, which gets train/ and val/")
    options = parse_verb(parser, arguments)
    root = Path(options.output)
    if root.exists():
        raise ValueError(f"--output {root} exists already; give a new folder")
    root.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_digits(root)
    counts = {split: sum(1 for _ in (root / split).glob("*/*.jpg")) for split in SPLITS}
    say(f"{root}: {counts['train']:,} training and {counts['val']:,} validation images in 10 classes")
    write_json(options.json, {"path": str(root), **counts})
    return 0
