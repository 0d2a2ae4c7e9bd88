"""The demo's data set: real digits, every one once, the same classes on both sides."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from deit_fast.digits import split_by_class, write_digits


def test_every_digit_is_written_once_and_looks_like_its_original(tmp_path):
    root = write_digits(tmp_path / "digits")
    files = sorted(root.rglob("*.jpg"))
    digits = load_digits()
    assert len(files) == len(digits.target) == 1797
    assert sorted(int(path.stem) for path in files) == list(range(1797))
    for path in files[::97]:
        index = int(path.stem)
        assert int(path.parent.name) == digits.target[index]
        with Image.open(path) as image:
            assert image.size == (32, 32)
            assert image.mode == "RGB"
            small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float)
        assert np.corrcoef(small.ravel(), digits.images[index].ravel())[0, 1] > 0.95


def test_the_split_is_stratified_and_seeded():
    target = load_digits().target
    split = np.array(split_by_class(target, seed=0))
    for digit in range(10):
        share = (split[target == digit] == "val").mean()
        assert abs(share - 0.2) < 0.005
    assert list(split) == split_by_class(target, seed=0)
    assert list(split) != split_by_class(target, seed=1)


def test_written_once_only(tmp_path):
    root = write_digits(tmp_path / "digits")
    (root / "train" / "0" / "mine.txt").write_text("kept")
    write_digits(root)
    assert (root / "train" / "0" / "mine.txt").exists()
