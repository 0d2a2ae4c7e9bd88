"""The compiled kernels of a CPU, at every level of instructions it has, against the references in fp64.

The bound is that of the Triton kernels in the interpreter: at most twice the error of plain torch in the same dtype.
"""

import shutil

import pytest
import torch

from deit_fast.drop_path import draw_drop_path_scale
from deit_fast.kernels import registration
from deit_fast.kernels.add_norm import add_norm, branch_slots
from deit_fast.kernels.add_norm import cpu as add_norm_cpu
from deit_fast.kernels.add_norm import op as add_norm_op
from deit_fast.kernels.attention import attention
from deit_fast.kernels.attention import cpu as attention_cpu
from deit_fast.kernels.attention import op as attention_op
from deit_fast.kernels.attention.reference import forward_reference
from deit_fast.kernels.cpu import library
from deit_fast.kernels.gelu_bias import cpu as gelu_bias_cpu
from deit_fast.kernels.gelu_bias import gelu_bias
from deit_fast.kernels.gelu_bias import op as gelu_bias_op
from deit_fast.model import create_student
from deit_fast.precision import autocast

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-4}
needs_library = pytest.mark.skipif(not library.levels(), reason="the package was installed without a C++ compiler")
needs_attention = pytest.mark.skipif(not library.runs_attention(), reason="this processor has no AVX512-BF16")


@pytest.fixture(params=library.levels() or ("none",))
def level(request, monkeypatch):
    """Each level in turn, as if the processor had no higher one."""
    place = (library.levels() or ("none",)).index(request.param)
    monkeypatch.setattr(library, "best_level", lambda: place)
    return request.param


def gradients(outputs, leaves, grads):
    """Outputs and the gradients of the leaves, in fp64; grads are what comes in for each output."""
    found = torch.autograd.grad(outputs, leaves, [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)])
    return [tensor.detach().double() for tensor in (*outputs, *found)]


def assert_as_exact(truth, eager, ours, floor):
    for true, plain, mine in zip(truth, eager, ours, strict=True):
        scale = max(1.0, true.abs().max().item())
        assert (mine - true).abs().max() <= 2 * (plain - true).abs().max() + floor * scale


def gelu_results(x, bias, grad_y, backend):
    leaves = [tensor.detach().requires_grad_() for tensor in (x, bias)]
    return gradients([gelu_bias(*leaves, backend)], leaves, [grad_y])


def check_gelu(x, bias, grad_y):
    truth = gelu_results(x.double(), bias.double(), grad_y, "reference")
    eager, ours = (gelu_results(x, bias, grad_y, backend) for backend in ("reference", "triton"))
    assert_as_exact(truth, eager, ours, FLOOR[x.dtype])


@needs_library
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (1, 7), (37, 300), (200, 3072)])
def test_gelu_bias(rows, features, dtype):
    x, bias = gelu_bias_op.example_inputs(rows, features, dtype, "cpu")
    check_gelu(x, bias, torch.randn(rows, features, generator=torch.Generator().manual_seed(1)).to(dtype))


@needs_library
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("value", [0.0, 1e-30, 9.0, -9.0, 1e4, -1e4, 3e38])
def test_gelu_bias_of_extreme_values(value):
    x, bias = torch.full((3, 21), value), torch.zeros(21)
    check_gelu(x, bias, torch.ones(3, 21))


def norm_results(inputs, grads, backend, slot=None):
    names = [n for n in ("x", "branch", "weight", "shift", "bias", "layer_scale") if inputs.get(n) is not None]
    leaves = {name: inputs[name].detach().requires_grad_() for name in names}
    outputs = add_norm(**(inputs | leaves), branch_slot=slot, backend=backend)
    read = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    return gradients([output for output, _ in read], list(leaves.values()), [grad for _, grad in read])


def check_norm(inputs, grads, slot=None):
    truth = norm_results({n: t if t is None else t.double() for n, t in inputs.items()}, grads, "reference", slot)
    eager, ours = (norm_results(inputs, grads, backend, slot) for backend in ("reference", "triton"))
    assert_as_exact(truth, eager, ours, FLOOR[inputs["branch"].dtype])


def norm_grads(inputs):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(inputs["x"].shape, generator=generator) for _ in range(2)]


@needs_library
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("branch", "residual"), [(torch.float32,) * 2, (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 5, 192), (2, 37, 770)])
def test_add_norm(shape, branch, residual):
    inputs = add_norm_op.example_inputs(*shape, branch, "cpu", residual_dtype=residual)
    check_norm(inputs, norm_grads(inputs))


@needs_library
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("without", ["bias", "layer_scale", "drop_path_scale", "grad of x'", "grad of y"])
def test_add_norm_without(without):
    inputs = add_norm_op.example_inputs(3, 5, 48, torch.bfloat16, "cpu")
    grads = norm_grads(inputs)
    if without.startswith("grad"):
        grads[without == "grad of y"] = None
    else:
        inputs[without] = None
    if without == "grad of y":  # then the norm's own parameters have no gradient, and nothing asks for one
        inputs |= {"weight": torch.ones(48), "shift": torch.zeros(48)}
        ours, theirs = (
            torch.autograd.grad(add_norm(**(inputs | {"x": x}), backend=backend)[0], x, grads[0])[0]
            for backend, x in ((b, inputs["x"].clone().requires_grad_()) for b in ("triton", "reference"))
        )
        assert torch.allclose(ours, theirs)
    else:
        check_norm(inputs, grads)


@needs_library
@pytest.mark.usefixtures("level")
def test_add_norm_by_subset():
    inputs = add_norm_op.example_inputs(5, 6, 64, torch.bfloat16, "cpu")
    kept = torch.tensor([0, 3, 4])
    inputs |= {"branch": inputs["branch"][kept], "drop_path_scale": torch.full((5,), 5 / 3)}
    check_norm(inputs, norm_grads(inputs), branch_slots(kept, 5))


@needs_attention
@pytest.mark.parametrize("tokens", [1, 7, 17, 197, 198, 577, 578, 1026])
@pytest.mark.parametrize(("batch", "head_dim"), [(1, 64), (3, 32)])
def test_attention(tokens, batch, head_dim):
    qkv = attention_op.example_inputs(tokens, torch.bfloat16, "cpu", batch=batch, heads=2, head_dim=head_dim)
    grad = torch.randn(batch, tokens, 2 * head_dim, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert attention_cpu.kernel_takes(qkv)

    def results(qkv, backend):
        leaf = qkv.detach().requires_grad_()
        return gradients([attention(leaf, backend)], [leaf], [grad])

    truth = results(qkv.double(), "reference")
    assert_as_exact(truth, results(qkv, "reference"), results(qkv, "triton"), FLOOR[torch.bfloat16])


@needs_attention
@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_attention_of_extreme_scores(scale):
    qkv = (attention_op.example_inputs(23, torch.float32, "cpu", heads=2, head_dim=16) * scale).bfloat16()
    ours, plain = (attention(qkv, backend).double() for backend in ("triton", "reference"))
    assert ours.isfinite().all()
    assert_as_exact([attention(qkv.double(), "reference")], [plain], [ours], FLOOR[torch.bfloat16])


@needs_library
def test_the_same_bits_with_any_number_of_threads():
    """Sums go block by block, whoever takes the block."""
    x, bias = gelu_bias_op.example_inputs(300, 96, torch.bfloat16, "cpu")
    inputs = add_norm_op.example_inputs(4, 70, 96, torch.bfloat16, "cpu")
    qkv = attention_op.example_inputs(50, torch.bfloat16, "cpu", batch=3, heads=2, head_dim=32)

    def everything():
        leaf = qkv.detach().requires_grad_()
        out = attention(leaf, "triton")
        found = [*gelu_results(x, bias, x, "triton"), *norm_results(inputs, norm_grads(inputs), "triton")]
        return [*found, *gradients([out], [leaf], [torch.ones_like(out)])]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(alone, everything(), strict=True))
    finally:
        torch.set_num_threads(threads)


@needs_library
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", FLOOR)
def test_what_is_not_a_number_stays_that(dtype):
    """A step whose gradients are not finite has to be seen as one."""
    x, bias = gelu_bias_op.example_inputs(40, 33, dtype, "cpu")
    x[17, 5] = torch.nan
    assert [tensor.isnan().any() for tensor in gelu_results(x, bias, torch.ones_like(x), "triton")] == [True] * 3
    inputs = add_norm_op.example_inputs(2, 5, 33, dtype, "cpu")
    inputs["branch"][0, 1, 2] = torch.nan
    assert all(tensor.isnan().any() for tensor in norm_results(inputs, norm_grads(inputs), "triton")[:4])


@needs_attention
def test_attention_hands_on_what_is_not_a_number():
    qkv = attention_op.example_inputs(9, torch.bfloat16, "cpu", heads=2, head_dim=16)
    qkv[0, 3, 0, 1, 2] = torch.nan
    assert attention(qkv, "triton").isnan().any()


@pytest.fixture
def no_reference(monkeypatch):
    """Falling back would be an error."""
    for module, names in (
        (gelu_bias_cpu, ("gelu_bias_reference", "gelu_bias_backward_reference")),
        (add_norm_cpu, ("add_norm_reference", "add_norm_backward_reference")),
        (attention_cpu, ("forward_reference", "backward_reference")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, None)


@needs_attention
@needs_library
@pytest.mark.usefixtures("no_reference")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_training_step_takes_them_all(precision):
    """With the drop-path of a run, whose draws of one branch are strided."""
    student = create_student(
        "deit_tiny_distilled_patch16_224",
        num_classes=5,
        image_size_px=32,
        drop_path_rate=0.1,
        attention="triton" if precision == "bf16" else "sdpa",
        kernels=("add_norm", "gelu_bias"),
    ).train()
    drop_path = draw_drop_path_scale(0, 0, torch.arange(2), rate=0.1, depth=12)
    with autocast(precision, torch.device("cpu")):
        cls, dist = student(torch.randn(2, 3, 32, 32), drop_path)
    (cls.float().sum() + dist.float().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())


@needs_library
@pytest.mark.usefixtures("no_reference")
def test_other_strides_give_the_same():
    x, bias = gelu_bias_op.example_inputs(40, 64, torch.bfloat16, "cpu")
    grad_y = torch.ones(1, 1).expand(40, 64)
    plain = gelu_results(x, bias, grad_y.contiguous(), "triton")
    again = gelu_results(torch.cat([x, x], dim=1)[:, :64], torch.stack([bias, bias], 1)[:, 0], grad_y, "triton")
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_stay_with_the_reference(dtype):
    x, bias = gelu_bias_op.example_inputs(5, 20, dtype, "cpu")
    assert torch.equal(gelu_bias(x, bias, "triton"), gelu_bias(x, bias, "reference"))


def test_without_the_library_the_reference_runs(monkeypatch):
    """As in a package that was installed without a C++ compiler."""
    monkeypatch.setattr(library, "load_library", lambda: None)
    monkeypatch.setattr(library, "runs_attention", lambda: False)
    x, bias = gelu_bias_op.example_inputs(5, 20, torch.bfloat16, "cpu")
    assert torch.equal(gelu_bias(x, bias, "triton"), gelu_bias(x, bias, "reference"))
    inputs = add_norm_op.example_inputs(2, 5, 33, torch.bfloat16, "cpu")
    ours, theirs = (add_norm(**inputs, backend=backend) for backend in ("triton", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    qkv = attention_op.example_inputs(9, torch.bfloat16, "cpu", heads=2, head_dim=16)
    assert torch.equal(attention_cpu.forward_on_cpu(qkv)[0], forward_reference(qkv)[0])


@needs_library
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_changes_nothing(default):
    x, bias = gelu_bias_op.example_inputs(70, 24, torch.bfloat16, "cpu")
    inputs = add_norm_op.example_inputs(2, 5, 24, torch.bfloat16, "cpu")
    expected = [*gelu_results(x, bias, x, "triton"), *norm_results(inputs, norm_grads(inputs), "triton")]
    grads = norm_grads(inputs)
    torch.set_default_dtype(default)
    try:
        found = [*gelu_results(x, bias, x, "triton"), *norm_results(inputs, grads, "triton")]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", ["weight", "layer_scale", "drop_path_scale"])
def test_vectors_of_another_length_are_refused(name):
    inputs = add_norm_op.example_inputs(3, 5, 24, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"add_norm takes vectors of \((3|24),\) with this x, got \(1,\)"):
        add_norm(**(inputs | {name: torch.ones(1)}))


@needs_library
def test_kernels_of_another_version_are_not_used(monkeypatch):
    monkeypatch.setattr(library, "_bytes_of", lambda _library, _task: 8)
    monkeypatch.setattr(registration, "_said", set())
    with pytest.warns(UserWarning, match=r"are those of another version; install the package again"):
        assert library.load_library.__wrapped__() is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to build the library with")
def test_it_was_built_here():
    assert library.levels()[0] == "portable"
    assert add_norm_cpu.library is library
