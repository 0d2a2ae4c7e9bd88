"""What a peer can do of a configuration: it is not measured where it would do something else than we."""

from __future__ import annotations

import json

from deit_fast.config import Config

Allowed = dict[str, tuple[object, ...]]
"""`section.key` -> the values with which a peer does what we do."""


def check_allowed(peer: str, config: Config, allowed: Allowed) -> None:
    """ValueError that names the first key with another value, and the values to use."""
    for key, values in allowed.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value not in values:
            use = " or ".join(map(as_option, values))
            raise ValueError(f"--against {peer}: {key} {as_option(value)} is not compared; use --{key} {use}")


def as_option(value: object) -> str:
    """As the command line takes it: null, false, 1, rand."""
    return value if isinstance(value, str) else json.dumps(value)
