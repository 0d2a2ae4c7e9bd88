"""What is lost between the stages, from turns whose losses are known."""

import pytest
import torch

from deit_fast.benchmarks.stalls import scaling, scaling_lines, stall, stall_lines
from deit_fast.benchmarks.timing import OURS, Contender, Timing
from deit_fast.distributed import Ranks


def timed(**seconds):
    """Turns of 100 images by workload."""
    names = {"whole": "whole step", "together": "end to end", "alone": "end to end, one device alone"}
    return {
        Contender(names[name], OURS): Timing([100] * len(turns), list(turns), list(turns))
        for name, turns in seconds.items()
    }


def test_waiting_for_the_loader():
    """A step of 1 s that waits another second for its images; the wait in the turn to warm up does not count."""
    figures = stall([9.0, 1.0, 1.0], timed(whole=[1.0, 1.0], together=[2.0, 2.0]), "end to end")
    assert figures == {"data_wait_fraction": 0.5, "of_synthetic": 0.5}
    assert "waited for the loader 50% of the time; 50% of the same step" in stall_lines({"end to end": figures})[0]
    unknown = stall([1.0], timed(together=[4.0]), "end to end")
    assert unknown == {"data_wait_fraction": 0.25, "of_synthetic": None}


def test_scaling_is_taken_round_by_round():
    """A machine that is twice as slow in the second round scales as well as in the first."""
    ranks = Ranks(0, 4, 0, 4, torch.device("cpu"))
    # 100 images by all four in 0.5 s, 100 by one alone in 1.6 s: 200 / (4 x 62.5)
    figures = scaling(timed(together=[0.5, 1.0, 0.5], alone=[1.6, 3.2, 1.6]), ranks)
    assert figures["efficiency"] == pytest.approx(0.8)
    assert figures["efficiency_min"] == pytest.approx(figures["efficiency_max"])
    assert "80.0%" in scaling_lines(figures)[0]
    assert scaling({}, Ranks(0, 1, 0, 1, torch.device("cpu"))) is None
