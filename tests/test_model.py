"""The student against timm's `deit_*`: names, shapes and order of the weights, and what comes out."""

import pytest
import timm
import torch

from deit_fast.blocks import Block, PatchEmbed, add_branch
from deit_fast.drop_path import draw_drop_path_scale, draw_kept_samples
from deit_fast.model import create_student, has_dist_head
from deit_fast.variants import DEIT_VARIANTS

TINY = "deit_tiny_distilled_patch16_224"
TIMM_NAMES = [name for name in DEIT_VARIANTS if timm.is_model(name)]


def student(name, num_classes=1000, image_size_px=None, attention="auto"):
    size = image_size_px or DEIT_VARIANTS[name].image_size_px
    return create_student(name, num_classes=num_classes, image_size_px=size, drop_path_rate=0.0, attention=attention)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_weights_have_timms_names_shapes_and_order(name):
    with torch.device("meta"):
        ours, theirs = student(name).state_dict(), timm.create_model(name).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]
    if not name.startswith("deit3"):
        assert len(ours) == (155 if "distilled" in name else 152)  # counted in the official repository too


@pytest.mark.parametrize(("name", "parameters"), [("tiny", 5_910_800), ("small", 22_436_432), ("base", 87_338_192)])
def test_parameter_counts_are_the_papers(name, parameters):
    with torch.device("meta"):
        model = student(f"deit_{name}_distilled_patch16_224")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def check_outputs(name, image_size_px):
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    for parameter in theirs.parameters():  # biases and norms at their first values would hide a mistake
        torch.nn.init.normal_(parameter, std=0.05)
    ours = student(name).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, image_size_px, image_size_px)
    with torch.no_grad():
        assert (ours(images) - theirs(images)).abs().max() < 1e-5
        assert (ours(images.contiguous(memory_format=torch.channels_last)) - theirs(images)).abs().max() < 1e-5
        if has_dist_head(ours):
            theirs.set_distilled_training(True)
            theirs.train()  # timm gives both heads only then; drop rates are 0
            for mine, other in zip(ours.forward_heads(images), theirs(images), strict=True):
                assert (mine - other).abs().max() < 1e-5
            ours.train()
            assert isinstance(ours(images), tuple)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", TINY, "deit3_small_patch16_224"])
def test_outputs_are_timms(name):
    check_outputs(name, 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TIMM_NAMES if "tiny" not in name and "huge" not in name])
def test_outputs_are_timms_for_all_sizes(name):
    check_outputs(name, DEIT_VARIANTS[name].image_size_px)


def test_gradients_are_timms():
    name = "deit_tiny_patch16_224"
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    ours = student(name).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 224, 224)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        other = gradients[key].grad
        assert (parameter.grad - other).abs().max() <= 1e-4 * other.abs().max().clamp(min=1e-3), key


def test_initial_weights_follow_the_official_code():
    torch.manual_seed(0)
    model = student("deit_tiny_distilled_patch16_224")
    weights = {name: value.detach() for name, value in model.named_parameters()}
    for name in ("cls_token", "dist_token", "pos_embed", "head.weight", "blocks.3.attn.qkv.weight"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.25), name
    assert weights["blocks.0.mlp.fc1.bias"].abs().max() == 0
    bound = (3 * 16 * 16) ** -0.5  # torch's default for a convolution: uniform within 1 / sqrt(fan in)
    assert weights["patch_embed.proj.weight"].abs().max().item() == pytest.approx(bound, rel=0.01)


def test_drop_path_keeps_the_mean_and_depends_on_the_view_alone():
    views = torch.arange(4000)
    scale = draw_drop_path_scale(1, 7, views, rate=0.3, depth=4)
    assert scale.shape == (8, 4000)
    assert torch.equal(scale[:2], torch.ones(2, 4000))  # the first block is never dropped
    dropped = (scale == 0).double().mean(dim=1)
    expected = torch.linspace(0, 0.3, 4).repeat_interleave(2)
    # 5 standard deviations of a share of 4000: a false alarm in 2 million runs, but the seed is fixed anyway
    assert (dropped - expected).abs().max() < 5 * (0.25 / 4000) ** 0.5
    assert scale[7].max() == pytest.approx(1 / 0.7)
    part = draw_drop_path_scale(1, 7, views[1000:1010], rate=0.3, depth=4)
    assert torch.equal(part, scale[:, 1000:1010])
    assert not torch.equal(draw_drop_path_scale(1, 8, views, rate=0.3, depth=4), scale)


def test_drop_path_scales_the_branches():
    model = student("deit_mini_patch8_32", num_classes=10).train()
    images = torch.randn(3, 3, 32, 32)
    off = torch.zeros(12, 3)
    with torch.no_grad():
        untouched = model.norm(model.tokens(images))[:, 0]
        assert torch.allclose(model(images, off), model.head(untouched), atol=1e-6)
        assert torch.allclose(model(images, torch.ones(12, 3)), model(images), atol=1e-6)


def test_only_the_mean_head_in_evaluation():
    model = student("deit_mini_distilled_patch8_32", num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        cls, dist = model.forward_heads(images)
        assert torch.equal(model(images), (cls + dist) / 2)


def test_any_timm_model_can_be_the_student():
    convnet = create_student("resnet10t", num_classes=7, image_size_px=32, drop_path_rate=0.1, attention="auto")
    assert convnet(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    vit = create_student("vit_tiny_patch16_224", num_classes=7, image_size_px=64, drop_path_rate=0.1, attention="auto")
    assert vit(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_an_unknown_name_gets_near_ones():
    with pytest.raises(ValueError, match="did you mean deit_tiny_patch16_224"):
        create_student("deit_tiny_patch16_22", num_classes=2, image_size_px=224, drop_path_rate=0, attention="auto")
    with pytest.raises(ValueError, match=r"image_size_px 225 .* patch size, 16"):
        student("deit_tiny_patch16_224", image_size_px=225)


@pytest.mark.parametrize("drop_path", ["none", "independent", "subset"])
@pytest.mark.parametrize("name", ["deit_mini_distilled_patch8_32", "deit3_mini_patch8_32"])
def test_training_compiles_without_graph_breaks_and_gives_the_same(name, drop_path):
    """`compile_blocks` asks for fullgraph, which raises at a graph break; with autocast, forward and backward."""
    from deit_fast.student import compile_blocks

    torch.manual_seed(0)
    model = student(name, num_classes=10).train()
    images, views = torch.randn(4, 3, 32, 32), torch.arange(4)
    drops = {
        "none": None,
        "independent": draw_drop_path_scale(0, 1, views, rate=0.3, depth=6),
        "subset": draw_kept_samples(0, 1, views, group_size=4, rate=0.3, depth=6),
    }[drop_path]

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(images, drops)
        cls = output[0] if isinstance(output, tuple) else output
        cls.float().square().sum().backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    plain = gradients()
    torch.compiler.reset()  # aot_eager: inductor takes a minute, and test_trainer.py has it
    compile_blocks(model, subset=drop_path == "subset", backend="aot_eager")
    compiled = gradients()
    assert list(model.state_dict()) == list(student(name, num_classes=10).state_dict())
    for key, value in plain.items():
        assert (compiled[key] - value).norm() <= 0.01 * value.norm() + 1e-6, key


def full_block(last, x):
    """The last block as the paper has it, all tokens computed, by the same weights."""
    whole = Block(48, 3, "sdpa", layer_scale_init=0.5).double()
    whole.load_state_dict(last.state_dict())
    return whole, whole(x)[:, : last.num_queries]


@pytest.mark.parametrize("num_queries", [1, 2])
def test_the_last_block_on_the_prefix_alone_is_exact(num_queries):
    """fp64: outputs and gradients, of input and weights, are those of the whole block."""
    torch.manual_seed(0)
    last = Block(48, 3, "sdpa", layer_scale_init=0.5, num_queries=num_queries).double()
    for parameter in last.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 21, 48, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, num_queries, 48, dtype=torch.float64)
    whole, expected = full_block(last, x)
    given = last(x)
    assert (given - expected).abs().max() < 1e-12
    ours = torch.autograd.grad((given * weight).sum(), [x, *last.parameters()])
    theirs = torch.autograd.grad((expected * weight).sum(), [x, *whole.parameters()])
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() < 1e-12


def test_every_model_computes_its_last_block_on_the_prefix():
    assert [block.num_queries for block in student(TINY).blocks] == [None] * 11 + [2]
    assert student("deit3_mini_patch8_32", num_classes=3).blocks[-1].num_queries == 1


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_patch_product_is_the_convolution(memory_format):
    embed = PatchEmbed(4, 24).double()
    images = torch.randn(3, 3, 12, 20, dtype=torch.float64).contiguous(memory_format=memory_format)
    expected = embed.proj(images).flatten(2).transpose(1, 2)
    assert (embed(images) - expected).abs().max() < 1e-13


def test_a_subset_drops_the_same_share_of_every_group_and_costs_nothing_for_the_rest():
    views = torch.arange(64)
    kept = draw_kept_samples(3, 5, views, group_size=16, rate=0.5, depth=3)
    assert [len(samples) for samples in kept] == [64, 64, 48, 48, 32, 32]
    assert all((torch.bincount(kept[4] // 16, minlength=4) == 8).tolist())
    part = draw_kept_samples(3, 5, views[16:32], group_size=16, rate=0.5, depth=3)
    assert torch.equal(part[4], kept[4][(kept[4] >= 16) & (kept[4] < 32)] - 16)  # however the batch is split
    seen = []
    out = add_branch(torch.ones(64, 1, 1), torch.ones(64, 1, 1), lambda x: seen.append(len(x)) or x, kept[4])
    assert seen == [32]
    assert sorted(out.flatten().tolist()) == [1.0] * 32 + [3.0] * 32  # the kept ones scaled by 64 / 32


def test_constant_drop_path_is_the_same_at_every_block():
    scale = draw_drop_path_scale(1, 7, torch.arange(4000), rate=0.3, depth=4, schedule="constant")
    dropped = (scale == 0).double().mean(dim=1)
    assert (dropped - 0.3).abs().max() < 5 * (0.21 / 4000) ** 0.5  # 5 standard deviations


def test_gradients_lie_in_memory_as_their_parameters():
    """Otherwise DDP copies them into its buckets, and warns."""
    model = student("deit_mini_distilled_patch8_32", num_classes=3)
    sum(head.sum() for head in model(torch.rand(2, 3, 32, 32))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
