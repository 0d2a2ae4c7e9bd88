"""A sample of `make fuzz`: broken JPEGs under AddressSanitizer and UBSan, and a fault that they have to find."""

import shutil

import pytest

from deit_fast.dali_pipelines.native import fuzz, plugin

pytestmark = pytest.mark.skipif(
    not plugin.is_available() or not plugin.decodes_jpeg(), reason="needs the native operators: " + plugin.describe()
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return sorted(fuzz.write_samples(tmp_path_factory.mktemp("jpegs") / "jpegs").iterdir())


def test_broken_files_leave_memory_alone(files, tmp_path):
    found = fuzz.run_fuzzer(fuzz.build_fuzzer(tmp_path, "memory"), files, 300, seed=1, threads=2, mutate=True)
    assert found.images == found.refused + found.failed + found.decoded == 300
    assert min(found.refused, found.decoded) > 30  # both kinds were there


@pytest.mark.slow
def test_threads_share_nothing_and_memory_does_not_grow(files, tmp_path):
    fuzz.run_fuzzer(fuzz.build_fuzzer(tmp_path / "t", "threads"), files, 500, seed=2, threads=4, mutate=True)
    plain = fuzz.build_fuzzer(tmp_path / "p", "plain")
    found = fuzz.run_fuzzer(plain, files, 20_000, seed=3, threads=2, mutate=False)
    assert found.decoded == found.images
    assert found.resident_kib < 1.1 * found.resident_early_kib + 4096


@pytest.mark.slow
def test_the_sanitizers_find_a_byte_too_far(files, tmp_path, monkeypatch):
    """A fault put into a copy of the sources: the last row is read beyond its end."""
    sources = tmp_path / "sources"
    shutil.copytree(fuzz.compile_commands.__globals__["HERE"], sources, ignore=shutil.ignore_patterns("*.so"))
    resize = sources / "resize.cc"
    text = resize.read_text()
    assert "held_end - unsafe" in text
    resize.write_text(text.replace("held_end - unsafe", "held_end"))
    monkeypatch.setitem(fuzz.compile_commands.__globals__, "HERE", sources)
    binary = fuzz.build_fuzzer(tmp_path / "built", "memory")
    with pytest.raises(fuzz.FindingError, match="AddressSanitizer"):
        fuzz.run_fuzzer(binary, files, 2000, seed=1, threads=1, mutate=False)
