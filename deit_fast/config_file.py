"""Recipes and overrides: `--config RECIPE --section.key value ...` to a `Config`, and back to YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from .config import Config

RECIPES = Path(__file__).parent / "recipes"

# What may change when a run is resumed: where things are and how they are computed, not what is learnt.
FREE_ON_RESUME = (
    "data.path",
    "data.backend",
    "data.manifest",
    "data.decoder",
    "data.hardware_decoder_share",
    "data.num_threads",
    "data.prefetch",
    "eval.",
    "checkpoint.",
    "distill.teacher_checkpoint",
    "distill.label_cache",
    "optim.recipe_batch_size",
    "optim.max_skipped_steps",
    "runtime.",
)
BINDING_ON_RESUME = ("runtime.seed",)  # all the same


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(recipe: str) -> Path:
    """The YAML file of a recipe's name, or the path given; ValueError with the nearest names for neither."""
    packaged = RECIPES / f"{recipe}.yaml"
    if packaged.is_file():
        return packaged
    if Path(recipe).is_file():
        return Path(recipe)
    near = difflib.get_close_matches(recipe, recipe_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(recipe_names())}"
    raise ValueError(f"unknown recipe {recipe}: neither a recipe's name nor a YAML file; {hint}")


def add_config_arguments(parser: ArgumentParser) -> None:
    """Adds `--config` and one `--section.key` for each field, with its docstring, type and default as help."""
    parser.add_argument("--config", action="config", metavar="RECIPE", help="a recipe's name or a YAML file")
    for section in fields(Config):
        parser.add_class_arguments(section.default_factory, section.name)  # type: ignore[arg-type]


def config_parser(prog: str, description: str, usage: str | None = None) -> ArgumentParser:
    """A parser that raises instead of printing its usage and leaving."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = usage or f"{prog} [options] [--config RECIPE] [--section.key value ...]"
    parser = ArgumentParser(prog=prog, usage=usage, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def parse_config(
    parser: ArgumentParser, arguments: Sequence[str], default_recipe: str | None = None
) -> tuple[Config, Any]:
    """Parses recipe and overrides (the later wins); ValueError, one line that names the key, for anything unknown.

    default_recipe: that of a command line without --config. Returns the configuration and the namespace with the verb's
    own options.
    """
    arguments = list(arguments)
    if default_recipe is not None and not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", default_recipe, *arguments]
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            arguments[i + 1] = str(recipe_path(arguments[i + 1]))
        elif argument.startswith("--config="):
            arguments[i] = f"--config={recipe_path(argument.split('=', 1)[1])}"
    namespace = parse_arguments(parser, arguments)
    sections = parser.instantiate(namespace)
    return Config(**{section.name: sections[section.name] for section in fields(Config)}), namespace


def parse_arguments(parser: ArgumentParser, arguments: Sequence[str]) -> Any:
    """The namespace; ValueError of one line for wrong arguments."""
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        source = next((f" (read from {value})" for flag, value in pairwise(arguments) if flag == "--config"), "")
        raise ValueError(_in_our_words(str(error)) + source) from error


def _in_our_words(message: str) -> str:
    """A parser's message of one or several lines as one that names the key and what it takes."""
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))
    if match := re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", text):
        return _unknown_key(f"{match[1]}.{match[2]}")
    if match := re.search(r"[Uu]nrecognized arguments: --([\w.]+)|(?:Key|Option) '([\w.]+)' is not", text):
        return _unknown_key(match[1] or match[2])
    if match := re.search(
        r'key "([\w.]+)": Does not validate .* Subtypes: \[(.*?)\].* Given value type: .* Given value: (\S+)', text
    ):
        kinds = [_type_in_words(kind) for kind in match[2].split(", ")]
        return f"{match[1]}: expected {' or '.join(kinds)}, got {match[3]}"
    if match := re.search(r'key "([\w.]+)": Expected a (.+?)\. Got value: (.*)', text):
        return f"{match[1]}: expected {_type_in_words(match[2])}, got {match[3]}"
    return text


def _type_in_words(kind: str) -> str:
    words = {
        "<class 'float'>": "a number",
        "<class 'int'>": "a whole number",
        "<class 'bool'>": "true or false",
        "<class 'str'>": "text",
        "<class 'NoneType'>": "null",
    }
    for name, word in words.items():
        kind = kind.replace(name, word)
    return re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", kind)


def _unknown_key(key: str) -> str:
    known = [f"{section.name}.{name}" for section in fields(Config) for name in asdict(Config())[section.name]]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "; the verb's --help lists what it takes")


def config_as_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionaries, for YAML, JSON and checkpoints."""
    return asdict(config)


def differing_keys(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys on which the learning depends that differ between two configurations, with both values."""
    lines = []
    for section, values in now.items():
        for key, value in values.items():
            name = f"{section}.{key}"
            before = saved.get(section, {}).get(key)
            is_free = name.startswith(FREE_ON_RESUME) and name not in BINDING_ON_RESUME
            if before != value and not is_free:
                lines.append(f"{name} ({before}, now {value})")
    return lines


def write_config(folder: Path, config: Config) -> None:
    """Saves the resolved configuration as `config.yaml`, which `--config` reads again."""
    partial = folder / "config.yaml.partial"
    partial.write_text(yaml.safe_dump(config_as_dict(config), sort_keys=False))
    partial.replace(folder / "config.yaml")
