"""`data verify` and `data sample`, and what the verbs of `data` answer to wrong use."""

import json
import re
import sys
import tarfile

from layouts import add, data, opened, pack, pack_folder

from deit_fast.config import DataConfig
from deit_fast.open_images import find_index


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
