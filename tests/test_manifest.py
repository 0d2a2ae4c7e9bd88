"""Kept listings and lists of bad images: used while they hold, made again when not, small for a million files."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deit_fast.config import DataConfig
from deit_fast.dali_pipelines.listing_file import read_listing
from deit_fast.manifest import manifest_folders, open_folder, read_bad, write_bad

LONG_AGO_NS = 1_600_000_000 * 10**9


@pytest.fixture
def data(few_digits, tmp_path, monkeypatch):
    """A data set whose folders have not changed for years."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(few_digits, tmp_path / "digits")
    settle(tmp_path / "digits" / "train")
    return DataConfig(path=str(tmp_path / "digits"))


def settle(root):
    for folder in (root, *root.rglob("*/")):
        os.utime(folder, ns=(LONG_AGO_NS, LONG_AGO_NS))


def kept(data):
    """What the kept listing gives, or None where it is stale."""
    return read_listing(Path(data.path) / "train", manifest_folders(data)[0] / "train.listing")


def names(images):
    return [(images.path(i), int(images.labels[i])) for i in range(len(images))]


def test_a_kept_listing_is_the_listing(data):
    listed = open_folder(data, "train", keep=True)
    again = kept(data)
    assert names(again) == names(listed)
    assert again.classes == listed.classes
    assert again.labels.dtype == listed.labels.dtype


def test_a_small_folder_leaves_no_file_behind(data):
    open_folder(data, "train")
    assert not any(folder.exists() for folder in manifest_folders(data))


def add_file(root):
    shutil.copy(root / "3" / sorted(os.listdir(root / "3"))[0], root / "3" / "new.jpg")


def add_class(root):
    shutil.copytree(root / "3", root / "new")


def rename(root):
    first = sorted((root / "3").iterdir())[0]
    first.rename(first.with_name("renamed.jpg"))


def remove_class(root):
    shutil.rmtree(root / "3")


@pytest.mark.parametrize("change", [add_file, add_class, rename, remove_class])
def test_any_change_of_names_makes_it_stale(data, change):
    before = open_folder(data, "train", keep=True)
    assert kept(data) is not None
    change(Path(data.path) / "train")
    assert kept(data) is None
    assert names(open_folder(data, "train")) != names(before)


def test_a_folder_that_changed_just_before_is_not_believed(data):
    """Another change within the clock's grain would not show in its time."""
    (Path(data.path) / "train" / "3").touch()
    open_folder(data, "train", keep=True)
    assert kept(data) is None


def test_a_broken_listing_is_made_again(data):
    open_folder(data, "train", keep=True)
    file = manifest_folders(data)[0] / "train.listing"
    file.write_bytes(file.read_bytes()[:100])
    assert len(open_folder(data, "train")) == 100


def test_where_nothing_can_be_written_beside_the_data_the_cache_takes_it(data, tmp_path, caplog):
    (Path(data.path) / ".deit_fast").write_text("a file, where a folder is wanted")
    open_folder(data, "train", keep=True)
    assert list((tmp_path / "cache").rglob("train.listing"))
    (tmp_path / "wrong").write_text("")
    with caplog.at_level(logging.WARNING):
        open_folder(DataConfig(path=data.path, manifest=str(tmp_path / "wrong")), "train", keep=True)
    assert "no manifest could be kept" in caplog.text
    chosen = DataConfig(path=data.path, manifest=str(tmp_path / "chosen" / "folder"))
    open_folder(chosen, "train", keep=True)
    assert kept(chosen) is not None


def test_a_list_of_bad_images_holds_for_its_state_of_the_data_set(data, caplog):
    images = open_folder(data, "train")
    file = write_bad(data, "train", images, [(99, "empty"), (0, "no image")])
    assert json.loads(file.read_text().splitlines()[0])["reason"] == "empty"
    assert read_bad(data, "train", images).tolist() == [0, 99]
    moved = Path(data.path).rename(Path(data.path).with_name("moved"))
    there = DataConfig(path=str(moved))
    assert read_bad(there, "train", open_folder(there, "train")).tolist() == [0, 99]  # names are below data.path
    sorted((moved / "train" / "0").iterdir())[0].unlink()
    with caplog.at_level(logging.WARNING):
        assert read_bad(there, "train", open_folder(there, "train")).tolist() == []
    assert "run `deit-fast data scan` again" in caplog.text


MANY = """
import os, sys, time
from pathlib import Path
import numpy as np
from deit_fast.config import DataConfig
from deit_fast.dali_pipelines.image_files import ImageFiles
from deit_fast.dali_pipelines.listing_file import write_listing
from deit_fast.dali_pipelines.packed_text import PackedText
from deit_fast.open_images import open_images
from deit_fast.dali_pipelines.sampler import epoch_permutation

def memory(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))

root, count, action = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
wnids = [f"n{i:08d}" for i in range(1000)]
if action == "write":
    for wnid in wnids:
        (root / "train" / wnid).mkdir(parents=True)
        os.utime(root / "train" / wnid, (1, 1))
    os.utime(root / "train", (1, 1))
    labels = np.sort(np.arange(count) % 1000)
    paths = PackedText.pack([f"{wnids[k]}/{wnids[k]}_{i}.JPEG".encode() for i, k in enumerate(labels)])
    images = ImageFiles(root / "train", tuple(wnids), labels, paths)
    folders = PackedText.pack([b".", *(wnid.encode() for wnid in wnids)])
    (root / ".deit_fast").mkdir()
    write_listing(images, folders, time.time_ns(), root / ".deit_fast" / "train.listing")
else:
    before, start = memory("VmRSS"), time.process_time()
    images = open_images(DataConfig(path=str(root)), "train")
    seconds, held = time.process_time() - start, memory("VmRSS") - before
    order = epoch_permutation(len(images), 0, 0), epoch_permutation(len(images), 0, 1)
    assert len(images) == count and images.path(count - 1).endswith(f"/n00000999_{count - 1}.JPEG")
    print(seconds, held, memory("VmRSS") - before, memory("VmHWM") - before)
"""


def open_many(root, count):
    """CPU seconds to open; MB held by the set, by it and two epochs' orders, and at the peak."""
    command = [sys.executable, "-c", MANY, str(root), str(count)]
    subprocess.run([*command, "write"], check=True)
    done = subprocess.run([*command, "read"], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def test_many_images_are_small(tmp_path):
    """A tenth of ImageNet: a tenth of the 300 MB, two orders and what the allocator keeps included."""
    _, held, with_orders, _ = open_many(tmp_path, 128_117)
    assert held < 30
    assert with_orders < 45


@pytest.mark.slow
def test_imagenet_opens_in_seconds_and_stays_small(tmp_path):
    """1,281,167 files: under 10 s of CPU time, under 300 MB, two orders of the epoch included."""
    seconds, _, with_orders, _ = open_many(tmp_path, 1_281_167)
    assert seconds < 10
    assert with_orders < 300
