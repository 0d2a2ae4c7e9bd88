"""What `runtime.kernels` and `runtime.attention` lead to."""

import typing

import pytest

from deit_fast.config import RuntimeConfig
from deit_fast.kernels.attention import BACKENDS
from deit_fast.kernels.choice import TUNABLE, candidates, choose


def test_what_is_asked_for_is_taken():
    assert choose("add_norm", "triton", {"add_norm": "reference"}) == "triton"
    assert choose("attention", "sdpa_flash", {"attention": "triton"}) == "sdpa_flash"


def test_auto_takes_what_was_tuned():
    assert choose("distill_loss", "auto", {"distill_loss": "triton"}) == "triton"
    assert choose("attention", "auto", {"attention": "sdpa_cudnn"}) == "sdpa_cudnn"


@pytest.mark.parametrize("tuned", [None, {}])
def test_auto_without_a_tuned_file_is_plain_torch(tuned):
    assert choose("attention", "auto", tuned) == "auto"
    assert {choose(kernel, "auto", tuned) for kernel in TUNABLE if kernel != "attention"} == {"reference"}


def test_a_tuned_backend_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="the tuned file says cuda for gelu_bias, which takes reference, triton"):
        choose("gelu_bias", "auto", {"gelu_bias": "cuda"})


def test_the_configuration_offers_every_backend():
    hints = typing.get_type_hints(RuntimeConfig)
    assert set(typing.get_args(hints["attention"])) == set(BACKENDS)
    assert set(typing.get_args(hints["kernels"])) == {"auto", *candidates("add_norm")}
