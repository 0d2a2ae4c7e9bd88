"""Fuzzes the native parts under sanitizers: `python -m deit_fast.dali_pipelines.native.fuzz`, or `make fuzz`.

Three runs of fuzz_main.cc on real JPEGs: broken ones under AddressSanitizer and UBSan; whole ones, many times, for
memory that grows; and broken ones on several threads under ThreadSanitizer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from .build import NotBuildableError, compile_commands, run_all
from .plugin import jpeg_libraries

PARTS = ("filters", "kernels", "kernels_portable", "resize", "augment", "augment_geometry", "jpeg", "fuzz_main")
SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"),
    "threads": ("-fsanitize=thread", "-g", "-O1"),
    "plain": (),
}


class Outcome(NamedTuple):
    """What became of the images, and resident memory early on and at the end, in KiB."""

    images: int
    refused: int
    failed: int
    decoded: int
    resident_early_kib: int
    resident_kib: int


class FindingError(RuntimeError):
    """A sanitizer's report."""


def build_fuzzer(folder: Path, sanitizer: str) -> Path:
    """Compiles the fuzzer with one of SANITIZERS; NotBuildableError where that cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = SANITIZERS[sanitizer]
    commands = compile_commands(folder, flags, PARTS)
    run_all(commands)
    binary = folder / f"fuzz_{sanitizer}"
    run_all([[commands[0][0], *flags, *(command[-1] for command in commands), "-pthread", "-ldl", "-o", str(binary)]])
    return binary


def run_fuzzer(binary: Path, files: list[Path], count: int, *, seed: int, threads: int, mutate: bool) -> Outcome:
    """Runs `count` images; FindingError with the report when a sanitizer found something, or it crashed."""
    library = next((path for path in jpeg_libraries() if path.is_file()), Path("libjpeg.so.62"))
    command = [str(binary), str(library), str(count), str(seed), str(threads), str(int(mutate)), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FindingError(f"seed {seed}: exit code {done.returncode}\n{done.stderr[-6000:]}")
    words = done.stdout.split()
    return Outcome(*map(int, words[1::2]))


def main() -> int:
    """Runs all three; exit code 1 for a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="broken files under AddressSanitizer and UBSan")
    parser.add_argument("--images", type=int, default=100_000, help="whole files, for memory that grows")
    parser.add_argument("--threaded", type=int, default=2_000, help="broken files on 4 threads under ThreadSanitizer")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--jpegs", type=Path, help="folder of real JPEGs; default: made from photographs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        jpegs = options.jpegs or write_samples(root / "jpegs")
        files = sorted(Path(jpegs).rglob("*.jpg"))[:200]
        plan = (
            ("memory", options.files, 2, True),
            ("plain", options.images, 2, False),
            ("threads", options.threaded, 4, True),
        )
        for sanitizer, count, threads, mutate in plan:
            try:
                binary = build_fuzzer(root / sanitizer, sanitizer)
                found = run_fuzzer(binary, files, count, seed=options.seed, threads=threads, mutate=mutate)
            except (NotBuildableError, FindingError) as error:
                sys.stderr.write(f"{sanitizer}: {error}\n")
                return 1
            sys.stdout.write(f"{sanitizer}: {found}\n")
            if sanitizer == "plain" and found.resident_kib > 1.1 * found.resident_early_kib + 4096:
                sys.stderr.write("plain: memory grows\n")
                return 1
    return 0


def write_samples(folder: Path) -> Path:
    """JPEGs of every kind that the decoder takes: subsamplings, progressive, optimised, grey, restart markers."""
    from PIL import Image

    folder.mkdir(parents=True)
    gradient = Image.linear_gradient("L").resize((211, 160))
    picture = Image.merge("RGB", (gradient, gradient.rotate(90), Image.effect_noise((211, 160), 80.0)))
    kinds: list[dict[str, Any]] = [{"subsampling": s} for s in (0, 1, 2)] + [
        {"progressive": True},
        {"optimize": True},
        {"quality": 30},
    ]
    kinds.append({"restart_marker_blocks": 3})
    for number, options in enumerate(kinds):
        picture.save(folder / f"{number}.jpg", **options)
        picture.convert("L").resize((97, 333)).save(folder / f"{number}_grey.jpg", **options)
    return folder


if __name__ == "__main__":
    sys.exit(main())
