"""Listing a folder of images: torchvision's order, odd names, and folders that are not one."""

import os

import pytest
from torchvision.datasets import ImageFolder as TorchvisionFolder

from deit_fast.dali_pipelines.image_folder import scan_image_folder


def test_the_order_is_torchvisions(photographs):
    theirs = TorchvisionFolder(photographs / "train")
    ours = scan_image_folder(photographs / "train")
    assert ours.classes == tuple(theirs.classes)
    assert [(ours.path(i), int(ours.labels[i])) for i in range(len(ours))] == theirs.samples


def test_subfolders_links_and_names_that_are_no_text(tmp_path):
    odd = os.fsencode(tmp_path) + b"/data/b/deep"
    os.makedirs(odd)
    for name in (b"z.JPG", b"\xff not utf8.jpeg", b"\xc3\xa9 \xe6\xbc\xa2.png", b"notes.txt"):
        with open(odd + b"/" + name, "wb") as file:
            file.write(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(b"x")
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "README").write_text("no class")
    images = scan_image_folder(tmp_path / "data")
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 1, 1, 1]
    assert all(os.path.exists(images.path(i)) for i in range(4))
    theirs = TorchvisionFolder(str(tmp_path / "data"))
    assert [images.path(i) for i in range(4)] == [path for path, _ in theirs.samples]


def test_folders_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        scan_image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no class folders"):
        scan_image_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="class folder .*cat holds no images"):
        scan_image_folder(tmp_path)
