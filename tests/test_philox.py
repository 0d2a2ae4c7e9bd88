"""The counter-based generator: the published test vectors, and what makes it stateless."""

import numpy as np
import pytest

from deit_fast.dali_pipelines.philox import Stream, generator, philox4x32, uniforms

# kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds
VECTORS = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(counter, key, expected):
    assert philox4x32(np.array(counter, dtype=np.uint64), key).tolist() == expected


def test_a_draw_depends_on_its_own_coordinates_alone():
    views = np.arange(1000)
    whole = uniforms(5, Stream.CROP, 3, views, 7)
    assert np.array_equal(uniforms(5, Stream.CROP, 3, views[40:44], 7), whole[40:44])
    assert np.array_equal(uniforms(5, Stream.CROP, 3, views[::-1], 3), whole[::-1, :3])


@pytest.mark.parametrize("change", ["seed", "high seed", "stream", "major", "block"])
def test_every_coordinate_matters(change):
    base = uniforms(1, Stream.CROP, 2, [3], 8, block=0)
    other = {
        "seed": uniforms(2, Stream.CROP, 2, [3], 8),
        "high seed": uniforms(1 + 2**32, Stream.CROP, 2, [3], 8),
        "stream": uniforms(1, Stream.FLIP, 2, [3], 8),
        "major": uniforms(1, Stream.CROP, 3, [3], 8),
        "block": uniforms(1, Stream.CROP, 2, [3], 8, block=1),
    }[change]
    assert not np.isin(base, other).any()


def test_uniform_over_views_and_uncorrelated():
    """Kolmogorov-Smirnov at a false-alarm rate of 1e-6, for neighbouring views and for neighbouring draws."""
    draws = uniforms(0, Stream.AUGMENT, 0, np.arange(20000), 4)
    limit = (-0.5 * np.log(1e-6 / 2)) ** 0.5 / len(draws) ** 0.5
    for column in draws.T:
        ordered = np.sort(column)
        rank = np.arange(len(column)) / len(column)
        assert np.abs(ordered - rank).max() < limit
    correlation = np.corrcoef(draws.T)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 5 / len(draws) ** 0.5


def test_generators_are_functions_of_their_coordinates():
    first = generator(1, Stream.MIX, 2, 3).standard_normal(4)
    assert np.array_equal(generator(1, Stream.MIX, 2, 3).standard_normal(4), first)
    for other in (generator(1, Stream.MIX, 2, 4), generator(1, Stream.MIX, 3, 3), generator(2, Stream.MIX, 2, 3)):
        assert not np.isin(other.standard_normal(4), first).any()
