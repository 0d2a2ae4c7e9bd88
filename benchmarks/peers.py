"""Other people's loaders, as their users run them; docs/peers.md says what each does, and where it differs from ours.

All read the same files in the same turns, with one worker (a process or a thread, as the peer has it) for each thread
of ours. A peer is imported only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import PIL

from deit_fast.config import Config
from deit_fast.dali_pipelines.image_files import ImageFiles
from deit_fast.dali_pipelines.image_set import ImageSet

from .timing import Prepare

CROP, FULL, VALIDATION = "decode + crop + flip", "full recipe", "validation"
"""What is timed, for every contender."""


@dataclass(frozen=True)
class PeerWork:
    """What a peer is asked to do in a turn: `batches` batches of the images, by `workers` processes or threads."""

    peer: str
    workload: str
    config: Config
    images: ImageFiles
    workers: int
    batch_size: int
    batches: int


@dataclass(frozen=True)
class Peer:
    """A loader that can be measured against."""

    module: str
    """The file here whose `prepare(work)` gives its turns."""
    package: str
    """What it imports."""
    install: str
    """The command that installs it."""
    workloads: tuple[str, ...] = (CROP, FULL, VALIDATION)
    """What it can do."""


WITHOUT_RAND_AUGMENT = (CROP, VALIDATION)
FROM_EXTRA = "pip install 'deit-fast[peers]'"
PEERS = {
    "timm": Peer("torch_peers", "timm", "pip install timm"),
    "torchvision": Peer("torch_peers", "torchvision", "pip install torchvision"),
    "albumentations": Peer("albumentations_peer", "albumentations", FROM_EXTRA, WITHOUT_RAND_AUGMENT),
    "spdl": Peer("spdl_peer", "spdl", FROM_EXTRA, WITHOUT_RAND_AUGMENT),
    "ffcv": Peer(
        "ffcv_peer",
        "ffcv",
        "apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev && pip install 'deit-fast[ffcv]'",
        WITHOUT_RAND_AUGMENT,
    ),
}
"""By the name that --against takes."""


def check_peers(names: Sequence[str]) -> None:
    """ValueError for a name that is no peer; RuntimeError, with the command, for one that is not installed."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--against {name}: the loaders to measure against are {', '.join(PEERS)}")
        if find_spec(PEERS[name].package) is None:
            raise RuntimeError(
                f"--against {name} needs the package {PEERS[name].package}, which is missing: {PEERS[name].install}"
            )


def shown_name(peer: str) -> str:
    """As rows name it: timm runs on the Pillow that is installed, which may be Pillow-SIMD in its place."""
    return f"{peer} on Pillow-SIMD {PIL.__version__}" if peer == "timm" and ".post" in PIL.__version__ else peer


def peer_turn(
    peer: str,
    workload: str,
    config: Config,
    images: ImageSet,
    *,
    workers: int,
    batch_size: int,
    batches: int,
) -> Prepare:
    """A turn of `batches` batches from the peer's loader. ValueError where the images are no files."""
    if not isinstance(images, ImageFiles):
        raise ValueError(f"--against {peer} reads files; data.path {config.data.path} holds none: give an image folder")
    module = import_module(f".{PEERS[peer].module}", __package__)
    return module.prepare(PeerWork(peer, workload, config, images, workers, batch_size, batches))
