"""ImageNet-1k as image-net.org gives it: a tar of one tar per class for training, a flat tar and the devkit for val."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path
from typing import Any

from .tar_source import Member, TarSource, tar_members

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def open_imagenet_tar(path: Path, split: str, devkit: Path | None) -> TarSource | None:
    """The split in `path`, a tar or the folder that holds ILSVRC2012_img_SPLIT.tar; None when it is not there.

    Images are ordered as in an ImageFolder of them: by class (wnid), then by name. devkit: for val, the archive, by
    default beside the tar, or a text file with a wnid for each image, one a line. ValueError, naming the file.
    """
    tar = path / f"ILSVRC2012_img_{split}.tar" if path.is_dir() else path
    if not tar.is_file() or (path.is_file() and f"_{split}" not in path.name):
        return None
    if split == "train":
        return _open_train(tar)
    devkit = devkit or tar.with_name(DEVKIT)
    if not devkit.is_file():
        raise ValueError(
            f"{tar.name} holds no labels and {devkit} does not exist; give {DEVKIT}, or a text file with the wnid of "
            "each image, one a line, by --devkit FILE"
        )
    return _open_val(tar, validation_wnids(devkit), devkit)


def _open_train(tar: Path) -> TarSource:
    members: list[Member] = []
    wnids: list[str] = []
    with tarfile.open(tar, mode="r:") as outer:
        inner_tars = sorted((info for info in outer if info.name.endswith(".tar")), key=lambda info: info.name)
        if not inner_tars:
            raise ValueError(f"{tar} holds no tar per class, as ILSVRC2012_img_train.tar does")
        for label, inner in enumerate(inner_tars):
            wnid = Path(inner.name).stem
            wnids.append(wnid)
            inside = tar_members(Path(f"{tar}:{inner.name}"), outer.extractfile(inner))
            members += sorted(
                (
                    _member(inner.offset_data + start, info.size, label, wnid, Path(info.name).name)
                    for info, start in inside
                ),
                key=lambda member: member.name,
            )
    return TarSource.of(tuple(wnids), (str(tar),), members)


def _open_val(tar: Path, wnid_of: list[str], devkit: Path) -> TarSource:
    classes = tuple(sorted(set(wnid_of)))
    labels = {wnid: label for label, wnid in enumerate(classes)}
    members: list[Member] = []
    for info, start in tar_members(tar):
        number = re.search(r"_(\d+)\.JPEG$", info.name)
        if number is None or not 1 <= int(number[1]) <= len(wnid_of):
            raise ValueError(f"{tar}:{info.name} has no label among the {len(wnid_of)} of {devkit}")
        wnid = wnid_of[int(number[1]) - 1]
        members.append(_member(start, info.size, labels[wnid], wnid, Path(info.name).name))
    return TarSource.of(classes, (str(tar),), sorted(members, key=lambda member: (member.label, member.name)))


def _member(start: int, size: int, label: int, wnid: str, name: str) -> Member:
    return Member(0, start, size, label, os.fsencode(f"{wnid}/{Path(name).stem}"), os.fsencode(name))


def validation_wnids(devkit: Path) -> list[str]:
    """The class of each validation image, in the order of their numbers; ValueError, naming what is missing."""
    if not devkit.name.endswith((".tar.gz", ".tgz")):
        return devkit.read_text().split()
    with tarfile.open(devkit) as archive:
        truth = _extract(archive, "data/ILSVRC2012_validation_ground_truth.txt", devkit).read().split()
        wnids = _wnids_by_id(_extract(archive, "data/meta.mat", devkit))
    return [wnids[int(number)] for number in truth]


def _extract(archive: tarfile.TarFile, ending: str, devkit: Path) -> Any:
    info = next((info for info in archive.getmembers() if info.name.endswith(ending)), None)
    file = archive.extractfile(info) if info else None
    if file is None:
        raise ValueError(f"{devkit} holds no {ending}; it should be {DEVKIT}")
    return file


def _wnids_by_id(meta: Any) -> dict[int, str]:
    """ILSVRC2012_ID -> WNID, from the devkit's table of synsets."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(
            "the devkit's meta.mat is read by scipy, which is missing; install it by `pip install "
            "'deit-fast[devkit]'`, or give a text file with the wnid of each image by --devkit FILE"
        ) from error
    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
