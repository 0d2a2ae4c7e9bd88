"""Recipes and overrides: the official values, and errors that name the key."""

from dataclasses import fields, replace

import pytest
import yaml

from deit_fast.config import Config, RuntimeConfig
from deit_fast.config_file import (
    RECIPES,
    add_config_arguments,
    config_as_dict,
    config_parser,
    differing_keys,
    parse_config,
    recipe_names,
    write_config,
)
from deit_fast.config_rules import check_config
from deit_fast.optim import scaled_lr
from deit_fast.variants import DEIT_VARIANTS

# README and main.py of facebookresearch/deit at 7e160fe: the values that the published results depend on.
OFFICIAL = {
    "data.repeats": 3,
    "model.drop_path_rate": 0.1,
    "model.drop_path_schedule": "linear",
    "loss.label": "ce",
    "augment.policy": "rand",
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.geometry": "exact",
    "augment.crop_scale_min": 0.08,
    "augment.flip_probability": 0.5,
    "augment.erase_probability": 0.25,
    "mix.mixup_alpha": 0.8,
    "mix.cutmix_alpha": 1.0,
    "mix.probability": 1.0,
    "mix.switch_probability": 0.5,
    "mix.label_smoothing": 0.1,
    "mix.cutmix_box": "official",
    "optim.name": "adamw",
    "optim.lr": 5e-4,
    "optim.scale_lr": True,
    "optim.weight_decay": 0.05,
    "optim.decay_dist_token": True,
    "optim.clip_grad_norm": None,
    "optim.ema_decay": 0.99996,
    "schedule.epochs": 300,
    "schedule.warmup_epochs": 5,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-5,
    "eval.crop_ratio": 0.875,
}
AT_384 = {
    "model.image_size_px": 384,
    "optim.lr": 5e-6,
    "optim.weight_decay": 1e-8,
    "schedule.epochs": 30,
    "schedule.min_lr": 5e-6,
}
# README_revenge.md of facebookresearch/deit, and main.py's defaults: what all of DeiT III shares.
DEIT3_ALL = {
    "model.drop_path_schedule": "constant",
    "augment.crop_scale_min": 0.08,
    "augment.flip_probability": 0.5,
    "augment.erase_probability": 0.0,
    "mix.cutmix_alpha": 1.0,
    "mix.probability": 1.0,
    "mix.switch_probability": 0.5,
    "mix.cutmix_box": "official",
    "optim.scale_lr": False,
    "optim.clip_grad_norm": None,
    "optim.ema_decay": 0.99996,
    "schedule.warmup_epochs": 5,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-5,
    "eval.crop_ratio": 1.0,
    "distill.kind": "none",
}
# From scratch, and from ImageNet-21k.
DEIT3 = DEIT3_ALL | {"augment.policy": "three", "augment.color_jitter": 0.3, "optim.name": "lamb"}
DEIT3_1K = DEIT3 | {
    "data.repeats": 3,
    "augment.crop": "resized",
    "mix.mixup_alpha": 0.8,
    "mix.label_smoothing": 0.0,
    "loss.label": "bce",
    "optim.weight_decay": 0.05,
    "schedule.epochs": 800,
}
DEIT3_21K = DEIT3 | {
    "data.repeats": 1,
    "augment.crop": "simple",
    "mix.mixup_alpha": 0.0,
    "mix.label_smoothing": 0.1,
    "loss.label": "ce",
    "optim.weight_decay": 0.02,
}
DEIT3_FINE_TUNED = DEIT3_ALL | {
    "data.repeats": 1,
    "augment.policy": "rand",
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.geometry": "exact",
    "augment.color_jitter": 0.0,  # main.py's 0.3 is not used beside RandAugment
    "augment.crop": "resized",
    "mix.mixup_alpha": 0.8,
    "mix.label_smoothing": 0.1,
    "loss.label": "ce",
    "optim.name": "adamw",
    "optim.weight_decay": 0.1,
}
# recipe: (shared values, global batch, lr, image side, drop-path, epochs); huge: the side that its patches cover.
DEIT3_RECIPES = {
    "deit3_small": (DEIT3_1K, 2048, 4e-3, 224, 0.05, 800),
    "deit3_base_192": (DEIT3_1K, 2048, 3e-3, 192, 0.2, 800),
    "deit3_large_192": (DEIT3_1K, 2048, 3e-3, 192, 0.45, 800),
    "deit3_huge_154": (DEIT3_1K, 2048, 3e-3, 160 // 14 * 14, 0.6, 800),
    "deit3_base": (DEIT3_FINE_TUNED, 512, 1e-5, 224, 0.2, 20),
    "deit3_large": (DEIT3_FINE_TUNED, 512, 1e-5, 224, 0.45, 20),
    "deit3_huge": (DEIT3_FINE_TUNED, 512, 1e-5, 224, 0.55, 20),
    "deit3_small_384": (DEIT3_FINE_TUNED, 512, 1e-5, 384, 0.0, 20),
    "deit3_base_384": (DEIT3_FINE_TUNED, 512, 1e-5, 384, 0.15, 20),
    "deit3_large_384": (DEIT3_FINE_TUNED, 512, 1e-5, 384, 0.4, 20),
    "deit3_small_21k": (DEIT3_21K, 2048, 1e-3, 224, 0.05, 240),
    "deit3_base_21k": (DEIT3_21K, 2048, 1e-3, 224, 0.1, 240),
    "deit3_large_21k": (DEIT3_21K, 2048, 1e-3, 224, 0.3, 240),
    "deit3_huge_21k": (DEIT3_21K, 2048, 1e-3, 128 // 14 * 14, 0.5, 90),
    "deit3_small_21k_1k": (DEIT3_21K, 2048, 3e-4, 224, 0.05, 50),
    "deit3_base_21k_1k": (DEIT3_21K, 2048, 3e-4, 224, 0.15, 50),
    "deit3_large_21k_1k": (DEIT3_21K, 2048, 3e-4, 224, 0.4, 50),
    "deit3_huge_21k_1k": (DEIT3_21K, 2048, 3e-4, 224, 0.45, 50),
}
GLOBAL_BATCH = {224: 1024, 384: 512}


def parse(*arguments):
    parser = config_parser("deit-fast train", "")
    add_config_arguments(parser)
    return parse_config(parser, arguments)[0]


def value(config, key):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("form", ["", "_384", "_1000"])
def test_recipe_has_the_official_values(size, distilled, form):
    if form == "_1000" and not distilled:
        return  # published for distilled models only
    recipe = f"deit_{size}" + ("_distilled" if distilled else "") + form
    config = parse("--config", recipe)
    image_size_px = 384 if form == "_384" else 224
    expected = OFFICIAL | {"model.image_size_px": 224} | (AT_384 if form == "_384" else {})
    expected |= {"schedule.epochs": 1000} if form == "_1000" else {}
    for key, official in expected.items():
        assert value(config, key) == official, key
    assert config.model.name == f"deit_{size}_{'distilled_' if distilled else ''}patch16_{image_size_px}"
    assert config.runtime.batch_size_per_device * 8 == config.optim.recipe_batch_size == GLOBAL_BATCH[image_size_px]
    assert config.mix.group_size == config.runtime.batch_size_per_device
    if distilled:
        assert (config.distill.kind, config.distill.alpha, config.distill.teacher) == ("hard", 0.5, "regnety_160")
    else:
        assert config.distill.kind == "none"


@pytest.mark.parametrize("recipe", DEIT3_RECIPES)
def test_deit3_recipe_has_the_official_values(recipe):
    shared, batch, lr, image_size_px, drop_path_rate, epochs = DEIT3_RECIPES[recipe]
    config = parse("--config", recipe)
    for key, official in shared.items():
        assert value(config, key) == official, key
    assert scaled_lr(config.optim, batch) == config.optim.lr == lr
    assert (config.model.image_size_px, config.model.drop_path_rate) == (image_size_px, drop_path_rate)
    assert config.schedule.epochs == epochs
    runtime = config.runtime
    assert runtime.batch_size_per_device * runtime.accumulate_steps * 8 == config.optim.recipe_batch_size == batch
    shape = DEIT_VARIANTS[config.model.name]
    assert recipe.split("_")[1] in config.model.name
    assert image_size_px % shape.patch_size_px == 0
    check_config(config)


def test_any_backbone_is_fine_tuned_as_deit3_is():
    config = parse("--config", "finetune_timm")
    for key, official in (DEIT3_FINE_TUNED | {"optim.lr": 1e-5, "schedule.epochs": 20}).items():
        assert key == "model.drop_path_schedule" or value(config, key) == official, key  # timm's models have their own


def test_vit_base_is_deit_base_computed_by_timm():
    one, other = parse("--config", "vit_base"), parse("--config", "deit_base")
    assert one.model.name == "vit_base_patch16_224"
    assert replace(one, model=other.model) == other


def test_every_published_recipe_is_in_a_table():
    deit = {f"deit_{size}{d}{form}" for size in ("tiny", "small", "base") for d in ("", "_distilled")
            for form in ("", "_384", "_1000")}  # fmt: skip
    others = {"vit_base", "finetune_timm", "demo_teacher", "demo_student", "demo_student_distilled"}
    not_published = {f"deit_{size}_1000" for size in ("tiny", "small", "base")}
    assert set(recipe_names()) == (deit - not_published) | set(DEIT3_RECIPES) | others


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_opens_with_its_claim_and_command(recipe):
    text = (RECIPES / f"{recipe}.yaml").read_text()
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "deit-fast demo" in head or f"train --config {recipe} " in head
    name = parse("--config", recipe).model.name
    assert name in DEIT_VARIANTS or recipe in ("demo_teacher", "vit_base", "finetune_timm")


def test_overrides_win_over_the_recipe():
    config = parse(
        "--config", "deit_tiny", "--optim.lr", "1e-3", "--mix.label_smoothing", "0", "--optim.ema_decay", "null"
    )
    assert (config.optim.lr, config.mix.label_smoothing, config.optim.ema_decay) == (1e-3, 0, None)
    assert config.schedule.epochs == 300


def test_numbers_in_yaml_may_have_an_exponent_without_a_point(tmp_path):
    (tmp_path / "mine.yaml").write_text("optim: {lr: 5e-4}\n")
    assert parse("--config", str(tmp_path / "mine.yaml")).optim.lr == 5e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "deit_bse"], "unknown recipe deit_bse.*did you mean deit_base"),
        (["--config", "zzz"], "unknown recipe zzz.*deit_small_distilled"),
        (["--model.nam", "x"], "unknown key model.nam; did you mean model.name"),
        (["--nonsense", "1"], "unknown key nonsense"),
        (["--optim.lr", "fast"], "optim.lr: expected a number, got fast"),
        (["--runtime.batch_size_per_device", "1.5"], "runtime.batch_size_per_device: expected a whole number"),
        (["--distill.kind", "firm"], "distill.kind: expected one of 'none', 'soft', 'hard', got firm"),
        (["--optim.ema_decay", "often"], "optim.ema_decay: expected a number or null, got often"),
    ],
)
def test_wrong_use_is_one_line_that_names_the_key(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["optim: {lrr: 1}", "optin: {lr: 1}", "optim: {lr: abc}", "optim: [", "- 3"])
def test_wrong_yaml_names_the_file(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine.yaml") as error:
        parse("--config", str(path))
    assert "\n" not in str(error.value)


def test_the_saved_config_reads_back_the_same(tmp_path):
    config = parse("--config", "deit_base_distilled", "--data.path", "/images", "--optim.lr", "1e-3")
    write_config(tmp_path, config)
    assert parse("--config", str(tmp_path / "config.yaml")) == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config_as_dict(config)


def test_what_is_learnt_may_not_change_on_resume_but_where_it_runs_may():
    saved = config_as_dict(parse("--config", "deit_tiny"))
    assert differing_keys(saved, config_as_dict(parse("--config", "deit_tiny", "--data.path", "/elsewhere"))) == []
    (line,) = differing_keys(saved, config_as_dict(parse("--config", "deit_tiny", "--optim.lr", "1e-3")))
    assert line == "optim.lr (0.0005, now 0.001)"


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"data.hardware_decoder_share must be in \[0, 1\], got 90.0"):
        check_config(parse("--data.hardware_decoder_share", "90"))


@pytest.mark.parametrize("key", [field.name for field in fields(RuntimeConfig)])
def test_how_a_run_is_computed_may_change_on_resume_but_not_its_seed(key):
    """Also a key that a checkpoint of an older version lacks."""
    now = config_as_dict(Config())
    older = {**now, "runtime": {name: value for name, value in now["runtime"].items() if name != key}}
    assert differing_keys(older, now) == (["runtime.seed (None, now 0)"] if key == "seed" else [])


def test_every_field_is_explained_in_the_help():
    parser = config_parser("deit-fast train", "")
    add_config_arguments(parser)
    text = " ".join(parser.format_help().split())
    for section in fields(Config):
        for item in fields(section.default_factory):
            assert f"--{section.name}.{item.name} " in text
    assert "multiply lr by global batch / 512" in text.lower()
