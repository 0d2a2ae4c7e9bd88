"""The tuned file while it is written: after every answer it is whole, so that a run that was cut goes on from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from deit_fast.dali_pipelines.tensor_file import replace_file

from .answer import Answer, Tried

HEADER = """\
# Written by `deit-fast tune`. A run takes `chosen` over wherever its configuration says auto or null (runtime.tuned),
# if everything in `valid_for` holds. `questions` tells what was measured.
"""
ENDED = "it ended the program each time it was tried"
ENDS = 2
"""So often a candidate has to end the program to be left out: once, somebody may have killed it from outside."""


class Journal:
    """Answers so far, kept in the file."""

    def __init__(
        self, path: Path, valid_for: dict[str, Any], measured_with: dict[str, Any], again: Collection[str] = ()
    ) -> None:
        """Goes on from the file when it was made for the same and with the same; else begins anew.

        again: questions whose answers of before do not count; those of others stay.
        """
        self.path, self.valid_for, self.measured_with = path, valid_for, measured_with
        self.answers: dict[str, Answer] = {}
        self.ended: list[list[str]] = []
        self.left: list[str] = []
        self.environment: dict[str, Any] = {}
        self._again = set(again)
        self._trying: list[str] | None = None
        if path.is_file():
            self._read(yaml.safe_load(path.read_text()))

    def _read(self, content: Any) -> None:
        if not isinstance(content, dict):
            return
        if (content.get("valid_for"), content.get("measured_with")) != (self.valid_for, self.measured_with):
            return
        for row in content["questions"]:
            candidates = [Tried(**tried) for tried in row.pop("candidates")]
            self.answers[row["question"]] = Answer(**row, candidates=candidates)
        tried = [*content.get("ended", []), content.get("trying")]
        self.ended = [one for one in tried if one and one[0] not in self._again]

    def kept(self, question: str, names: list[str], given: dict[str, Any]) -> Answer | None:
        """The answer from before, when it was asked of the same candidates after the same choices."""
        answer = None if question in self._again else self.answers.get(question)
        if answer is None or answer.given != given or [tried.name for tried in answer.candidates] != names:
            return None
        return answer

    def keep(self, answer: Answer) -> None:
        """Writes an answer down."""
        self._again.discard(answer.question)
        self.answers[answer.question] = answer
        self.write()

    def has_ended(self, question: str, candidate: str) -> bool:
        """Whether this candidate took the program with it, in runs before."""
        return self.ended.count([question, candidate]) >= ENDS

    @contextmanager
    def trying(self, question: str, candidate: str) -> Iterator[None]:
        """Notes what is tried while it is: if the program ends here, by a crash, the next runs know of it."""
        self._trying = [question, candidate]
        self.write()
        try:
            yield
        finally:
            self._trying = None
            self.write()

    def note_ended(self, question: str, candidate: str) -> None:
        """A candidate after which the device cannot be used: that came from nowhere else."""
        self.ended += ENDS * [[question, candidate]]
        self.write()

    def write(self) -> None:
        """Replaces the file whole."""
        answers = [answer for answer in self.answers.values() if answer.question not in self._again]
        content = {
            "valid_for": self.valid_for,
            "chosen": chosen_by(answers),
            "questions": [asdict(answer) for answer in answers],
            "left": self.left,
            "ended": self.ended,
            "trying": self._trying,
            "measured_with": self.measured_with,
            "environment": self.environment,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = HEADER + yaml.dump(content, Dumper=_NoAliases, sort_keys=False, width=120)
        replace_file(self.path, text.encode())


class _NoAliases(yaml.SafeDumper):
    """The same dictionary twice is written twice, for readers."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def chosen_by(answers: list[Answer]) -> dict[str, Any]:
    """The value of each key; later questions may change it again."""
    chosen: dict[str, Any] = {}
    for answer in answers:
        if not answer.only_told:
            chosen |= answer.values
    return chosen
