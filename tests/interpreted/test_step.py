"""One whole training step with every kernel in the interpreter: mixing, student, loss, backward, all in Triton."""

import pytest
from tiny_step import check_against_reference

from deit_fast.kernels.add_norm import triton as add_norm


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "floor"), [("fp32", 2e-5), ("bf16", 3e-3)])
@pytest.mark.parametrize("mode", ["independent", "subset"])
def test_a_whole_step(mode, precision, floor):
    check_against_reference(precision, floor, mode=mode)


@pytest.mark.slow
def test_a_kernel_that_is_wrong_is_found_in_the_step(monkeypatch):
    backward = add_norm.backward

    def without_bias_gradient(*arguments):
        grad_x, grad_branch, columns = backward(*arguments)
        columns[2] = 0
        return grad_x, grad_branch, columns

    monkeypatch.setattr(add_norm, "backward", without_bias_gradient)
    with pytest.raises(AssertionError, match="proj.bias"):
        check_against_reference("fp32", 2e-5)
