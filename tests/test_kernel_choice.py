"""What `runtime.kernels` and `runtime.attention` lead to."""

import typing
from dataclasses import replace

import pytest
import torch

from deit_fast.config import Config, RuntimeConfig
from deit_fast.config_rules import check_config
from deit_fast.kernels import choice
from deit_fast.kernels.attention import BACKENDS
from deit_fast.kernels.choice import FUSED, TUNABLE, candidates, choose, triton_kernels
from deit_fast.kernels.cpu import library
from deit_fast.start_report import describe_kernels


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("auto", ()),
        ("reference", ()),
        ("triton", FUSED),
        ("gelu_bias", ("gelu_bias",)),
        ("distill_loss, batch_prep", ("batch_prep", "distill_loss")),
    ],
)
def test_what_is_asked_for_is_taken(asked, expected):
    assert triton_kernels(asked) == expected
    assert {kernel for kernel in FUSED if choose(kernel, asked) == "triton"} == set(expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("rope", "runtime.kernels names rope; it takes auto, reference, triton, or some of batch_prep, add_norm"),
        ("add_norm,", "runtime.kernels names nothing; it takes"),
        ("add_norm,triton", "runtime.kernels names triton; it takes"),
        ("attention,add_norm", "chosen by --runtime.attention triton"),
    ],
)
def test_a_name_that_is_no_kernel_is_named(asked, message):
    run = replace(Config(), model=replace(Config().model, name="deit_tiny_patch16_224"))
    with pytest.raises(ValueError, match=message):
        check_config(replace(run, runtime=RuntimeConfig(kernels=asked)))


def test_the_configuration_offers_every_backend():
    hints = typing.get_type_hints(RuntimeConfig)
    assert set(typing.get_args(hints["attention"])) == set(BACKENDS)
    assert set(candidates("attention")) == set(BACKENDS) - {"auto"}
    assert all(candidates(kernel) == ("reference", "triton") for kernel in TUNABLE if kernel != "attention")


def test_a_run_says_what_it_takes(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(choice, "why_not_on", lambda _device: None)
    bf16 = RuntimeConfig(precision="bf16")
    assert describe_kernels(bf16, gpu) == "kernels: plain torch; attention auto"
    asked = replace(bf16, kernels="gelu_bias,add_norm", attention="triton")
    everything = "kernels: add_norm, gelu_bias fused; attention triton"
    assert describe_kernels(asked, gpu) == everything
    monkeypatch.setattr(library, "levels", lambda: ("portable",))
    monkeypatch.setattr(library, "runs_attention", lambda: False)
    assert describe_kernels(asked, cpu) == f"{everything} (no kernel for attention here: plain torch)"
    monkeypatch.setattr(library, "levels", lambda: ())
    assert "(no kernel for add_norm, gelu_bias, attention here: plain torch)" in describe_kernels(asked, cpu)
