"""`deit-fast doctor`: runs the checks and prints what each found, with its mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from deit_fast.cli import write_json
from deit_fast.config import Config
from deit_fast.config_file import add_config_arguments, config_parser, parse_config
from deit_fast.config_rules import check_config
from deit_fast.distributed import choose_device
from deit_fast.environment import describe_environment

from .finding import Finding, worst
from .versions import check_versions

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "failure": "bold red"}


def run(arguments: list[str]) -> int:
    """Prints the findings; 1 when the run would fail, 0 else. ValueError for wrong use."""
    parser = config_parser(
        "deit-fast doctor",
        "Finds in a minute what would stop or slow a run: machine, packages, data set, and a step on each device.",
    )
    parser.add_argument("--json", metavar="FILE", help="write the findings as JSON")
    add_config_arguments(parser)
    config, options = parse_config(parser, arguments, "deit_base_distilled")
    check_config(config)
    console = Console(soft_wrap=True)
    device, refused = find_device(config)
    findings = []
    for finding in chain(refused, examine(config, device)):
        show(finding, console)
        findings.append(finding)
    level = worst(findings)
    counts = {name: sum(finding.level == name for finding in findings) for name in STYLES}
    console.print(", ".join(f"{count} {name}" for name, count in counts.items() if count), highlight=False)
    result: dict[str, Any] = {"level": level, "findings": [finding._asdict() for finding in findings]}
    write_json(options.json, result | {"environment": describe_environment(device)})
    return 1 if level == "failure" else 0


def find_device(config: Config) -> tuple[torch.device, list[Finding]]:
    """The run's device; the CPU, and a failure, when torch cannot give it."""
    try:
        return choose_device(config.runtime.device), []
    except ValueError as error:
        text, _, mend = str(error).partition("; ")
        return torch.device("cpu"), [Finding("device", "failure", f"{text}; what follows is of the CPU", mend)]


def examine(config: Config, device: torch.device) -> Iterator[Finding]:
    """All findings, the cheap checks first; those of versions alone where DALI is missing or broken."""
    versions = check_versions()
    yield from versions
    if worst([finding for finding in versions if finding.check == "DALI"]) == "failure":
        return
    from .devices import check_devices  # these import DALI, as do those below
    from .host_limits import check_host
    from .images import check_images
    from .software import check_software
    from .trial import check_devices_train

    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    devices = [device] if gpus == 0 else [torch.device("cuda", index) for index in range(gpus)]
    checks: list[Callable[[], list[Finding]]] = [
        check_devices,
        lambda: check_host(config, max(1, gpus)),
        lambda: check_software(config, device),
        lambda: check_images(config, max(1, gpus)),
        lambda: check_devices_train(tuned_or_not(config, device), devices),
    ]
    for check in checks:
        yield from check()


def tuned_or_not(config: Config, device: torch.device) -> Config:
    """As the run would be; a tuned file that is refused is another check's finding."""
    from deit_fast.tuned import TunedFileError, apply_tuned

    try:
        return apply_tuned(config, device)
    except TunedFileError:
        return config


def show(finding: Finding, console: Console) -> None:
    """One line, and the mend below it."""
    line = Text(f"{finding.level:8}", style=STYLES[finding.level])
    line.append(f"{finding.check}: {finding.text}", style="default")
    console.print(line)
    if finding.mend:
        console.print(f"{'':8}-> {finding.mend}", markup=False, highlight=False)
