"""The same data set as a folder, shards, a file list or objects: the same batches; and what is said when it is not."""

import logging
import shutil
import threading

import fsspec
import numpy as np
import pytest
import torch
from layouts import pack_folder

from deit_fast.config import DataConfig
from deit_fast.dali_pipelines.file_list import parse_file_list
from deit_fast.dali_pipelines.loader import TrainLoader, ValidationLoader
from deit_fast.dali_pipelines.object_store import ObjectStore, ObjectStoreError
from deit_fast.dali_pipelines.read_ahead import BATCHES_AHEAD, ReadAhead
from deit_fast.dali_pipelines.sampler import TrainSampler, ValidationSampler
from deit_fast.dali_pipelines.train_augment import TrainAugment
from deit_fast.dali_pipelines.unreadable import BadImageError
from deit_fast.open_images import open_images

AUGMENT = TrainAugment(image_size_px=32, policy="none", erase_probability=0.0)


def batches(images, first=0, last=3, rank=0, world_size=1, **options):
    """(images, labels, views) of this rank's batches; a global batch of 48, in groups of 2."""
    sampler = TrainSampler(
        len(images), global_batch_size=48, group_size=2, repeats=3, seed=0, rank=rank, world_size=world_size
    )
    loader = TrainLoader(images, sampler, AUGMENT, seed=3, num_threads=1, **options)
    return [(batch.images.clone(), batch.labels, batch.views) for batch in loader.batches(first, last)]


def assert_same(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def opened(path, split="train", **options):
    return open_images(DataConfig(path=str(path), **options), split)


@pytest.fixture(scope="module")
def packed(photographs, tmp_path_factory):
    return pack_folder(photographs, tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def from_folder(photographs):
    return batches(opened(photographs))


@pytest.fixture
def memory(packed):
    """The shards in fsspec's memory file system."""
    store = fsspec.filesystem("memory")
    for file in sorted(packed.glob("[a-z]*")):
        store.pipe_file(f"/bucket/data/{file.name}", file.read_bytes())
    yield store
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shards_give_the_folders_batches_on_any_number_of_ranks(packed, from_folder, world_size):
    images = opened(packed)
    for step, (pixels, labels, views) in enumerate(from_folder[:2]):
        expected = {int(view): i for i, view in enumerate(views)}
        for rank in range(world_size):
            ((mine, mine_labels, mine_views),) = batches(images, step, step + 1, rank, world_size)
            where = [expected.pop(int(view)) for view in mine_views]
            assert torch.equal(mine, pixels[where])
            assert torch.equal(mine_labels, labels[where])
        assert not expected


def test_shards_resume_at_any_step(packed, from_folder):
    images = opened(packed)
    for first in range(3):
        assert_same(batches(images, first), from_folder[first:])


def write_list(photographs, root, separator="\t"):
    images = opened(photographs)
    lines = [f"{images.path(i)}{separator}{images.classes[images.labels[i]]}\n" for i in range(len(images))]
    (root / "train.txt").write_text("".join(lines))
    return root


def test_a_file_list_gives_the_folders_batches(photographs, tmp_path, from_folder):
    images = opened(write_list(photographs, tmp_path))
    assert images.classes == opened(photographs).classes
    assert_same(batches(images), from_folder)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_an_object_store_gives_the_folders_batches(packed, from_folder, scheme):
    url = "memory://bucket/data" if scheme == "memory" else f"file://{packed}"
    images = opened(url)
    assert images.name(0).startswith(f"{url}/train-00000.tar:class_0/")
    assert_same(batches(images), from_folder)


def test_a_file_list_in_an_object_store(photographs, memory, from_folder):
    folder = opened(photographs)
    lines = []
    for i in range(len(folder)):
        with open(folder.path(i), "rb") as file:
            memory.pipe_file(f"/bucket/list/images/{i}.jpg", file.read())
        lines.append(f"images/{i}.jpg {folder.classes[folder.labels[i]]}\n")
    memory.pipe_file("/bucket/list/train.txt", "".join(lines).encode())
    images = opened("memory://bucket/list")
    assert_same(batches(images), from_folder)
    memory.rm("/bucket/list/images/7.jpg")
    assert images.feed(7).size == 0  # a bad image, as an empty file is
    assert images.name(7) == "memory://bucket/list/images/7.jpg"


def test_validation_on_shards_is_that_on_the_folder(photographs, packed):
    def pixels(root):
        images = opened(root, "val")
        options = {"image_size_px": 32, "crop_ratio": 0.875, "mean": (0.5,) * 3, "std": (0.2,) * 3, "num_threads": 1}
        loader = ValidationLoader(images, ValidationSampler(len(images), batch_size=5), **options)
        return torch.cat([batch.images.clone() for batch in loader])

    assert torch.equal(pixels(packed), pixels(photographs))


class Flaky:
    """A store that fails the first times it is asked for each object."""

    def __init__(self, store, failures, error):
        self.store, self.failures, self.error = store, failures, error
        self.asked, self.lock = {}, threading.Lock()

    def cat_file(self, path, start=None, end=None):
        with self.lock:
            self.asked[path, start] = self.asked.get((path, start), 0) + 1
            failed = self.asked[path, start] <= self.failures
        if failed and self.error == "short":
            return b"x"
        if failed:
            raise self.error
        return self.store.cat_file(path, start=start, end=end)


@pytest.mark.parametrize("error", [OSError("reset"), TimeoutError(), RuntimeError("503 slow down"), "short"])
def test_failing_requests_are_tried_again(memory, error):
    store = ObjectStore("memory://bucket/data", attempts=3, first_delay_seconds=1e-4)
    whole = store.read("train-00000.tar", 512, 1000)
    store._store = Flaky(memory, 2, error)
    assert np.array_equal(store.read("train-00000.tar", 512, 1000), whole)
    store._store = Flaky(memory, 3, error)
    with pytest.raises(ObjectStoreError, match=r"data/train-00000.tar, bytes 512 to 1,512, .* in 3 attempts"):
        store.read("train-00000.tar", 512, 1000)


@pytest.mark.usefixtures("memory")
def test_a_missing_object_is_not_asked_for_again():
    store = ObjectStore("memory://bucket/data", first_delay_seconds=1e9)
    with pytest.raises(FileNotFoundError):
        store.read("train-99999.tar", 0, 10)


def test_a_store_that_fails_in_training_stops_it_with_the_objects_name(memory):
    images = opened("memory://bucket/data")
    memory.rm("/bucket/data/train-00001.tar")
    with pytest.raises(FileNotFoundError, match="train-00001.tar"):
        batches(images)


def test_reading_ahead_reads_each_image_of_a_batch_once_and_a_few_batches_on():
    class Counted:
        read_threads = 3

        def __init__(self):
            self.read = []

        def feed(self, image):
            self.read.append(image)
            return np.array([image], dtype=np.uint8)

    images = Counted()
    reader = ReadAhead(images, lambda batch: np.array([batch, 100 + batch, batch]), last=20)
    assert [array.tolist() for array in reader.take(0)] == [[0], [100], [0]]
    reader._pool.shutdown(wait=True)
    assert sorted(images.read) == [*range(BATCHES_AHEAD + 1), *range(100, 101 + BATCHES_AHEAD)]


def test_a_bad_image_in_a_shard_is_replaced_and_named(photographs, tmp_path, caplog):
    """As in a folder: the same substitutes, whatever the set is made of."""
    root = tmp_path / "damaged"
    shutil.copytree(photographs, root)
    bad = sorted((root / "train").rglob("*.jpg"))[5]
    bad.write_bytes(b"garbage")
    member = f"train-00000.tar:{bad.parent.name}/{bad.name}"
    shards = opened(pack_folder(root, tmp_path / "packed", splits=["train"]))
    options = {"bad_sample": "replace", "max_bad_fraction": 0.1}
    with caplog.at_level(logging.WARNING):
        mine = batches(shards, **options)
    assert f"{member} cannot be read or decoded" in caplog.text
    assert_same(mine, batches(opened(root), **options))
    with pytest.raises(BadImageError, match=member):
        batches(shards)


def test_shards_that_are_gone_or_cut_short_are_named(packed, tmp_path):
    root = tmp_path / "shards"
    shutil.copytree(packed, root)
    images = opened(root)
    shard = root / "train-00001.tar"
    shard.write_bytes(shard.read_bytes()[:1024])
    with pytest.raises(OSError, match="train-00001.tar ends before byte"):
        batches(images)  # while it runs
    with pytest.raises(ValueError, match=r"train-00001.tar has 1,024 bytes, its index says"):
        opened(root)
    shard.unlink()
    with pytest.raises(ValueError, match="train-00001.tar is missing"):
        opened(root)
    (root / "train.index").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="train.index cannot be read as deit_fast shards"):
        opened(root)


def test_what_was_looked_for_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"train does not exist, .* train.index and train/train.index .* train.txt"):
        opened(tmp_path)
    with pytest.raises(ValueError, match="memory://nothing holds neither train.index"):
        opened("memory://nothing")
    with pytest.raises(ValueError, match="of no store that fsspec knows"):
        opened("nowhere://bucket")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").touch()
    with pytest.raises(ValueError, match="tar shards without an index; .*--index-only"):
        opened(tmp_path)


def test_a_store_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"pip install 'deit-fast\[object-store\]'"):
        opened("s3://bucket/data")


def test_an_index_wins_over_a_list_and_a_list_over_folders(photographs, packed, tmp_path):
    shutil.copytree(photographs, tmp_path, dirs_exist_ok=True)
    assert opened(tmp_path).feeds == "path"
    write_list(photographs, tmp_path)
    assert opened(tmp_path).root == tmp_path
    shutil.copytree(packed, tmp_path / "train", dirs_exist_ok=True)
    assert opened(tmp_path).feeds == "bytes"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "lists no images"),
        ("a.jpg 0\nb.jpg\n", "line 2: expected a path and a label, got 'b.jpg'"),
        ("a.jpg\t0\n\na.jpg\t1\n", "line 3: a.jpg was given in line 1"),
    ],
)
def test_lists_that_are_wrong(text, named):
    with pytest.raises(ValueError, match=named):
        parse_file_list(text.encode(), "train.txt")


def test_what_lists_may_look_like():
    classes, labels, paths = parse_file_list(b"a b/c d.jpg 2\nx\xff.jpg 0\n", "train.txt")
    assert (classes, labels.tolist()) == (("0", "1", "2"), [2, 0])
    assert [paths.text(0), paths.bytes(1).tobytes()] == ["a b/c d.jpg", b"x\xff.jpg"]
    classes, labels, paths = parse_file_list(b"a.jpg\ttabby cat\nb c.jpg\tant\n", "train.txt")
    assert (classes, labels.tolist(), paths.text(1)) == (("ant", "tabby cat"), [1, 0], "b c.jpg")
    classes, labels, _ = parse_file_list(b"a.jpg 1\n", "train.txt", ["dog", "cat"])
    assert (classes, labels.tolist()) == (("dog", "cat"), [1])
    with pytest.raises(ValueError, match="line 1: label 2, but there are 2 classes"):
        parse_file_list(b"a.jpg 2\n", "train.txt", ["dog", "cat"])
    with pytest.raises(ValueError, match="line 2: class cow is not among the 2"):
        parse_file_list(b"a.jpg dog\nb.jpg cow\n", "train.txt", ["dog", "cat"])


def test_a_real_s3_server_gives_the_folders_batches(packed, from_folder, monkeypatch):
    """moto's server speaks S3 over HTTP; s3fs and botocore are the real ones."""
    server = pytest.importorskip("moto.server", reason="moto's S3 server is not installed (pip install '.[dev]')")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        for key, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{key}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("bucket")
        for file in sorted(packed.glob("[a-z]*")):
            store.put_file(str(file), f"bucket/data/{file.name}")
        assert_same(batches(opened("s3://bucket/data"), last=1), from_folder[:1])
    finally:
        running.stop()
