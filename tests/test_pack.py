"""`data pack` from every layout that people have, read by tarfile, webdataset and Pillow; broken off, and shared."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from layouts import (
    add,
    encode,
    pack_folder,
    small_jpegs,
    write_devkit,
    write_imagenet_train_tar,
    write_parquet,
)
from PIL import Image

from deit_fast.cli import main
from deit_fast.config import DataConfig
from deit_fast.dali_pipelines.image_folder import scan_image_folder
from deit_fast.open_images import find_index, open_images
from deit_fast.pack import unused_key
from deit_fast.tar_source import split_key

WNIDS = ("n01440764", "n01443537", "n02105855")


def data(*arguments):
    """`deit-fast data ...`: the exit code."""
    return main(["data", *map(str, arguments)])


def opened(path, split="train"):
    return open_images(DataConfig(path=str(path)), split)


def contents(images):
    """(name of the class, bytes) of each image."""
    return [(images.classes[images.labels[i]], images.feed(i).tobytes()) for i in range(len(images))]


def pack(source, output, *arguments):
    assert data("pack", "--input", source, "--output", output, "--workers", 1, *arguments) == 0


@pytest.fixture(scope="module")
def jpegs():
    return small_jpegs(12)


@pytest.fixture(scope="module")
def imagefolder(jpegs, tmp_path_factory):
    """Three classes of 3 training images and 1 for validation."""
    root = tmp_path_factory.mktemp("imagefolder")
    for i, jpeg in enumerate(jpegs):
        wnid, split = WNIDS[i % 3], "train" if i < 9 else "val"
        name = f"{wnid}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{i - 8:08d}.JPEG"
        (root / split / wnid).mkdir(parents=True, exist_ok=True)
        (root / split / wnid / name).write_bytes(jpeg)
    return root


@pytest.fixture(scope="module")
def expected(imagefolder):
    """What any packing of this data set has to hold, in the folder's order."""
    found = {}
    for split in ("train", "val"):
        images = scan_image_folder(imagefolder / split)
        pairs = []
        for i in range(len(images)):
            with open(images.path(i), "rb") as file:
                pairs.append((images.classes[images.labels[i]], file.read()))
        found[split] = pairs
    return found


def test_a_folder_packed_is_read_by_tarfile_and_webdataset(imagefolder, expected, tmp_path):
    import webdataset

    pack(imagefolder, tmp_path, "--images-per-shard", 4)
    assert contents(opened(tmp_path)) == expected["train"]
    assert contents(opened(tmp_path, "val")) == expected["val"]
    shards = sorted(map(str, tmp_path.glob("train-*.tar")))
    assert len(shards) == 3
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [(WNIDS[int(sample["cls"])], sample["jpg"]) for sample in samples] == expected["train"]
    assert samples[0]["__key__"] == "n01440764/n01440764_0"
    with tarfile.open(shards[1]) as tar:
        members = tar.getmembers()
        assert [member.size for member in members[::2]] == [len(jpeg) for _, jpeg in expected["train"][4:8]]
        assert all(member.mtime == 0 and member.uid == 0 for member in members)
    assert (tmp_path / "classes.txt").read_text().split() == list(WNIDS)


def test_official_tars_give_the_folders_images(expected, jpegs, tmp_path):
    """The tars list classes and images in another order than the folder, as the official ones may."""
    images_of = {
        wnid: {f"{wnid}_{i}.JPEG": jpegs[i] for i in reversed(range(9)) if WNIDS[i % 3] == wnid}
        for wnid in reversed(WNIDS)
    }
    write_imagenet_train_tar(tmp_path / "ILSVRC2012_img_train.tar", images_of)
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in (11, 9, 10):
            add(tar, f"ILSVRC2012_val_{i - 8:08d}.JPEG", jpegs[i])
    ids = ["n02105855", "n01440764", "n01443537"]  # the devkit numbers classes in an order of its own
    truth = [ids.index(WNIDS[i % 3]) + 1 for i in (9, 10, 11)]
    write_devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", ids, truth)
    pack(tmp_path, tmp_path / "packed")
    assert contents(opened(tmp_path / "packed")) == expected["train"]
    assert contents(opened(tmp_path / "packed", "val")) == expected["val"]

    (tmp_path / "wnids.txt").write_text("".join(f"{WNIDS[i % 3]}\n" for i in (9, 10, 11)))
    tar = tmp_path / "ILSVRC2012_img_val.tar"
    pack(tar, tmp_path / "by_text", "--split", "val", "--devkit", tmp_path / "wnids.txt")
    assert contents(opened(tmp_path / "by_text", "val")) == expected["val"]


def test_hugging_faces_parquet(jpegs, tmp_path):
    """Rows keep their order, whatever row groups and files they are in."""
    names = ["tench, Tinca tinca", "goldfish", "papillon"]
    rows = [(jpeg, f"{WNIDS[i % 3]}_{i}.JPEG", i % 3) for i, jpeg in enumerate(jpegs)]
    (tmp_path / "data").mkdir()
    for k, part in enumerate((rows[:5], rows[5:9])):
        write_parquet(tmp_path / "data" / f"train-0000{k}-of-00002-abc.parquet", part, names, row_group_size=3)
    write_parquet(tmp_path / "data" / "validation-00000-of-00001-abc.parquet", rows[9:], names)
    pack(tmp_path, tmp_path / "packed", "--images-per-shard", 2)
    images = opened(tmp_path / "packed")
    assert images.classes == tuple(names)
    assert contents(images) == [(names[label], jpeg) for jpeg, _, label in rows[:9]]
    assert contents(opened(tmp_path / "packed", "val")) == [(names[label], jpeg) for jpeg, _, label in rows[9:]]


def write_webdataset(root, jpegs):
    """As the package webdataset writes it."""
    import webdataset

    (root / "train").mkdir(parents=True)
    with webdataset.ShardWriter(f"{root}/train/%04d.tar", maxcount=4, verbose=0) as writer:
        for i, jpeg in enumerate(jpegs[:9]):
            writer.write({"__key__": f"sample{i:04d}", "jpg": jpeg, "cls": i % 3, "json": {"width": 48}})
    (root / "classes.txt").write_text("\n".join(WNIDS))
    return [(WNIDS[i % 3], jpeg) for i, jpeg in enumerate(jpegs[:9])]


def test_webdataset_shards_copied_and_in_place(jpegs, tmp_path):
    expected = write_webdataset(tmp_path / "theirs", jpegs)
    pack(tmp_path / "theirs", tmp_path / "copied", "--images-per-shard", 5)
    assert contents(opened(tmp_path / "copied")) == expected
    before = sorted(tmp_path.rglob("*.tar"))
    assert data("pack", "--input", tmp_path / "theirs", "--index-only") == 0
    assert sorted(tmp_path.rglob("*.tar")) == before
    assert contents(opened(tmp_path / "theirs")) == expected
    assert data("verify", "--data.path", tmp_path / "theirs") == 0


def test_our_shards_are_a_source_too(imagefolder, expected, tmp_path):
    pack_folder(imagefolder, tmp_path / "first", images_per_shard=4)
    pack(tmp_path / "first", tmp_path / "second", "--images-per-shard", 6)
    assert contents(opened(tmp_path / "second")) == expected["train"]


def test_keys_follow_webdatasets_rule():
    import webdataset.tariterators as theirs

    for name in ("a/b.jpg", "a.b/c.d.JPG", "x.cls", "a/noext", "1.5/img.seg.png"):
        key, extension = theirs.base_plus_ext(name)
        assert split_key(name) == ((key, extension.lower()) if key else (name, ""))
    used: set[str] = set()
    assert [unused_key(key, used) for key in ("c/a.b", "c/a_b", "c/a", "c/a", "c/")] == [
        "c/a_b",
        "c/a_b~2",
        "c/a",
        "c/a~2",
        "c/_",
    ]


def test_shrinking_is_pillows(tmp_path):
    """Longest side, quality and bytes as Pillow makes them; what is small, has 16 bits or is broken stays as it is."""
    noise = Image.effect_noise((300, 200), 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(150 * 120, dtype=np.uint16).reshape(120, 150))
    files = {
        "0.jpg": encode(noise.convert("CMYK")),
        "1.jpg": encode(noise, exif=exif),
        "2.jpg": encode(noise.resize((100, 90))),
        "3.png": encode(deep, "PNG"),
        "4.jpg": encode(noise)[:2000],
        "5.jpg": b"",
    }
    (tmp_path / "train" / "a").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "train" / "a" / name).write_bytes(content)
    pack(tmp_path, tmp_path / "packed", "--shrink-px", 100, "--quality", 80, "--json", tmp_path / "result.json")
    packed = [content for _, content in contents(opened(tmp_path / "packed"))]
    assert packed[2:] == list(files.values())[2:]
    for mine, name in zip(packed, ["0.jpg", "1.jpg"], strict=False):
        whole = Image.open(io.BytesIO(files[name])).convert("RGB")
        assert mine == encode(whole.resize((100, 67), Image.Resampling.BICUBIC), quality=80)
        assert not Image.open(io.BytesIO(mine)).getexif()
    result = json.loads((tmp_path / "result.json").read_text())["train"]
    assert (result["shrunk"], result["undecodable"], result["images"]) == (2, 2, 6)


def test_parts_share_the_work_and_the_last_writes_the_index(imagefolder, tmp_path, capsys):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    options = ("--images-per-shard", 2, "--split", "train")
    pack(imagefolder, whole, *options)
    pack(imagefolder, shared, *options, "--part", "2/2")
    assert "3 shards of other parts are missing" in capsys.readouterr().out
    assert not (shared / "train.index").exists()
    assert sorted(path.name for path in shared.glob("*.tar")) == ["train-00001.tar", "train-00003.tar"]
    pack(imagefolder, shared, *options, "--part", "1/2")
    for file in sorted(whole.glob("train*")):
        assert (shared / file.name).read_bytes() == file.read_bytes()


def test_two_processes_write_what_one_writes(imagefolder, tmp_path):
    options = ("--images-per-shard", 3, "--split", "train")
    pack(imagefolder, tmp_path / "one", *options)
    assert data("pack", "--input", imagefolder, "--output", tmp_path / "two", "--workers", 2, *options) == 0
    for file in sorted((tmp_path / "one").glob("train*")):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()


def test_packing_that_was_killed_goes_on(imagefolder, tmp_path):
    """SIGKILL while the second shard is written: the source is a pipe that stops there."""
    root, output = tmp_path / "root", tmp_path / "packed"
    shutil.copytree(imagefolder, root)
    blocked = sorted((root / "train").rglob("*.JPEG"))[4]
    whole = blocked.read_bytes()
    blocked.unlink()
    os.mkfifo(blocked)
    options = ["--input", root, "--output", output, "--split", "train", "--images-per-shard", 3, "--workers", 1]
    command = [sys.executable, "-m", "deit_fast", "data", "pack", *map(str, options)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 120
        while not (output / "train-00001.tar.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert sorted(path.name for path in output.glob("*.tar*")) == ["train-00000.tar", "train-00001.tar.partial"]
    first = (output / "train-00000.tar").stat().st_mtime_ns
    blocked.unlink()
    blocked.write_bytes(whole)
    assert data("pack", *options) == 0
    assert (output / "train-00000.tar").stat().st_mtime_ns == first  # kept
    assert not list(output.glob("*.partial"))
    pack(root, tmp_path / "at_once", "--split", "train", "--images-per-shard", 3)
    for file in sorted((tmp_path / "at_once").glob("train*")):
        assert (output / file.name).read_bytes() == file.read_bytes()


def group_is_gone(group, seconds):
    """Whether all of a process group end in time; the dead stay in it until init buries them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_ends_all_processes_at_once(imagefolder, tmp_path):
    """Both workers wait for pipes that nobody fills."""
    root, output = tmp_path / "root", tmp_path / "packed"
    shutil.copytree(imagefolder, root)
    for file in sorted((root / "train").rglob("*.JPEG"))[::4]:
        file.unlink()
        os.mkfifo(file)
    options = ["--input", root, "--output", output, "--split", "train", "--images-per-shard", 4, "--workers", 2]
    command = [sys.executable, "-m", "deit_fast", "data", "pack", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(list(output.glob("*.partial"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "deit-fast: interrupted" in said
    assert group_is_gone(process.pid, seconds=60)
    assert not list(output.glob("*.tar"))


def test_a_file_that_went_away_is_named(imagefolder, tmp_path, capsys):
    shutil.copytree(imagefolder, tmp_path / "root")
    (tmp_path / "root" / "train" / WNIDS[0] / "gone.JPEG").symlink_to(tmp_path / "nowhere")
    options = ("--input", tmp_path / "root", "--output", tmp_path / "packed", "--images-per-shard", 4)
    for workers in (1, 2):
        assert data("pack", *options, "--workers", workers) == 1
        assert f"{WNIDS[0]}/gone.JPEG" in capsys.readouterr().err


def flip_a_byte(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_verify_names_the_shard_and_the_member(imagefolder, tmp_path, capsys):
    pack_folder(imagefolder, tmp_path, images_per_shard=4)
    assert data("verify", "--data.path", tmp_path) == 0
    assert data("verify", "--data.path", f"file://{tmp_path}", "--split", "val") == 0
    _, index = find_index(DataConfig(path=str(tmp_path)), "train")
    flip_a_byte(tmp_path / "train-00001.tar", int(index.offsets[5]) + 20)
    flip_a_byte(tmp_path / "train-00000.tar", 5)  # the name in a header
    (tmp_path / "train-00002.tar").unlink()
    capsys.readouterr()
    assert data("verify", "--data.path", tmp_path, "--json", tmp_path / "result.json") == 1
    printed = capsys.readouterr().out
    assert re.search(rf"train-00001.tar: {index.names.text(5)} differ from the index", printed)
    assert "train-00000.tar: all images are whole, but bytes between them differ" in printed
    assert "train-00002.tar: " in printed
    assert len(json.loads((tmp_path / "result.json").read_text())["train"]["differing"]) == 3
    shard = tmp_path / "val-00000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    assert data("verify", "--data.path", tmp_path, "--split", "val") == 1
    assert "val-00000.tar ends before byte" in capsys.readouterr().out


def refused(capsys, *arguments):
    capsys.readouterr()
    assert data(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


def test_wrong_use_is_named(imagefolder, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    here = ("pack", "--output", tmp_path / "packed", "--input")
    assert "data takes what to do" in refused(capsys, "unpack")
    assert "none does not exist" in refused(capsys, *here, tmp_path / "none")
    assert "nothing that can be packed" in refused(capsys, *here, tmp_path / "empty")
    assert "--output is not set" in refused(capsys, "pack", "--input", imagefolder)
    assert "--part must be i/n" in refused(capsys, *here, imagefolder, "--part", "0/4")
    assert "--quality must be from 1 to 95" in refused(capsys, *here, imagefolder, "--quality", 101)
    assert "--workers must be at least 1" in refused(capsys, *here, imagefolder, "--workers", 0)
    assert "holds no images of test" in refused(capsys, *here, imagefolder, "--source", "parquet", "--split", "test")
    assert "--index-only takes WebDataset tars" in refused(capsys, "pack", "--input", imagefolder, "--index-only")
    assert "holds no shards" in refused(capsys, "verify", "--data.path", imagefolder)
    pack(imagefolder, tmp_path / "packed")
    line = refused(capsys, *here, imagefolder, "--images-per-shard", 7)
    assert "holds shards of another packing (images_per_shard 10000, now 7)" in line
    with tarfile.open(tmp_path / "empty" / "train-0.tar", "w") as tar:
        add(tar, "a.jpg", b"x")
    assert "a.jpg has no label: there is no member a.cls" in refused(capsys, *here, tmp_path / "empty")
    (tmp_path / "empty" / "train-0.tar").write_bytes(b"x" * 2000)
    assert "train-0.tar is not a whole uncompressed tar" in refused(capsys, *here, tmp_path / "empty")
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    assert "give ILSVRC2012_devkit_t12.tar.gz" in refused(capsys, *here, tmp_path / "ILSVRC2012_img_val.tar")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "empty" / "train-0.parquet").touch()
    assert "pip install 'deit-fast[parquet]'" in refused(capsys, *here, tmp_path / "empty")


def test_a_sample_is_a_data_set(tmp_path, capsys):
    assert data("sample", "--output", tmp_path / "digits") == 0
    assert "1,438 training and 359 validation images in 10 classes" in capsys.readouterr().out
    assert len(opened(tmp_path / "digits")) == 1438
    assert "exists already" in refused(capsys, "sample", "--output", tmp_path / "digits")
