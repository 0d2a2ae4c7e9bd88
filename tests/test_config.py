"""Recipes and overrides: the official values, and errors that name the key."""

from dataclasses import fields

import pytest
import yaml

from deit_fast.config import Config
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
from deit_fast.variants import DEIT_VARIANTS

# README and main.py of facebookresearch/deit at 7e160fe: the values that the published results depend on.
OFFICIAL = {
    "data.repeats": 3,
    "model.drop_path_rate": 0.1,
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
@pytest.mark.parametrize("image_size_px", [224, 384])
def test_recipe_has_the_official_values(size, distilled, image_size_px):
    if image_size_px == 384 and size != "base":
        return  # published for DeiT-B only
    recipe = f"deit_{size}" + ("_distilled" if distilled else "") + ("_384" if image_size_px == 384 else "")
    config = parse("--config", recipe)
    expected = OFFICIAL | {"model.image_size_px": 224} | (AT_384 if image_size_px == 384 else {})
    for key, official in expected.items():
        assert value(config, key) == official, key
    assert config.model.name == f"deit_{size}_{'distilled_' if distilled else ''}patch16_{image_size_px}"
    assert config.runtime.batch_size_per_device * 8 == GLOBAL_BATCH[image_size_px]
    assert config.mix.group_size == config.runtime.batch_size_per_device
    if distilled:
        assert (config.distill.kind, config.distill.alpha, config.distill.teacher) == ("hard", 0.5, "regnety_160")
    else:
        assert config.distill.kind == "none"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_opens_with_its_claim_and_command(recipe):
    text = (RECIPES / f"{recipe}.yaml").read_text()
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "deit-fast demo" in head or f"train --config {recipe} " in head
    name = parse("--config", recipe).model.name
    assert name in DEIT_VARIANTS or recipe == "demo_teacher"


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


def test_every_field_is_explained_in_the_help():
    parser = config_parser("deit-fast train", "")
    add_config_arguments(parser)
    text = " ".join(parser.format_help().split())
    for section in fields(Config):
        for item in fields(section.default_factory):
            assert f"--{section.name}.{item.name} " in text
    assert "multiply lr by global batch / 512" in text.lower()
