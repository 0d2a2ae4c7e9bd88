"""`data pack` by several processes and in parts: shared, killed, interrupted, and with a file that goes away."""

import os
import shutil
import signal
import subprocess
import sys
import time

from layouts import WNIDS, data, pack


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
