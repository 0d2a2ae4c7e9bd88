"""`data pack` from every layout that people have, read by tarfile, webdataset and Pillow."""

import io
import json
import tarfile

import numpy as np
import pytest
from layouts import (
    WNIDS,
    add,
    data,
    encode,
    opened,
    pack,
    pack_folder,
    write_devkit,
    write_imagenet_train_tar,
    write_parquet,
)
from PIL import Image

from deit_fast.dali_pipelines.image_folder import scan_image_folder
from deit_fast.packing.pack import unused_key
from deit_fast.packing.tar_source import split_key


def contents(images):
    """(name of the class, bytes) of each image."""
    return [(images.classes[images.labels[i]], images.feed(i).tobytes()) for i in range(len(images))]


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
