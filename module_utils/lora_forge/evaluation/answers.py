"""Answers to cases: those that a trainer sends, which are input, and those that are kept, by what gave them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.text import shown

ADAPTER, BASE, PROMOTED = WHO = ("adapter", "base", "promoted")
FILE = "answers.jsonl"  # beside the adapter's files, as its trainer wrote it
UNLOADABLE = "it cannot be loaded"  # so begins the error of an adapter that its base model does not take any more
_LETTERS = 24  # that a token may have; a longer answer than its tokens can be is cut
_SHOWN = 3
_DIGEST, _REASON = 64, 200  # letters of a hash in hex, and of a reason that are kept


@dataclasses.dataclass(frozen=True)
class Answer(JsonRecord):
    """An answer.

    Attributes:
        key: Of the question, as ``Case.key`` has it.
        text: What the model wrote, with its special tokens.
        tokens: How many.
        ended: Whether the model ended it; else it was cut at the most tokens that a case lets it have.
        template: The SHA-256 of the chat template that the question was written with, in hex.
        error: Why there is no text; empty where there is one.
    """

    key: str
    text: str
    tokens: int = 0
    ended: bool = True
    template: str = ""
    error: str = ""


def read_sent(
    path: pathlib.Path, asked: Mapping[str, int], weights: Mapping[str, str]
) -> tuple[dict[str, dict[str, Answer]], list[str]]:
    """Read the answers that a trainer sent.

    Args:
        path: Its answers.jsonl; there may be none.
        asked: Of each question that may have been asked, by its key, the most tokens of its answer.
        weights: By who is asked, the SHA-256 of the weights, in hex: what was answered with others says nothing of
            them. A base model has none.

    Returns:
        By who answered, the answers by their keys, the first of each; and what was refused or cut, in sentences.
    """
    found: dict[str, dict[str, Answer]] = {who: {} for who in WHO}
    refused: dict[str, list[str]] = {}
    lines, _ = rundir.read_lines(path)
    for line in lines:
        who, key, text = line.get("who"), line.get("key"), line.get("text")
        named = shown(str(key), 20)
        if who not in WHO or not isinstance(key, str):
            refused.setdefault("are by nobody who was asked", []).append(named)
        elif key not in asked:
            refused.setdefault("are to questions that are not among its cases", []).append(named)
        elif not isinstance(text, str):
            refused.setdefault("are no text", []).append(named)
        elif who != BASE and line.get("weights") != weights.get(who):
            refused.setdefault("are of other weights", []).append(named)
        elif key not in found[who]:
            answer = Answer.from_dict(line)
            answer = dataclasses.replace(answer, template=answer.template[:_DIGEST], error=shown(answer.error, _REASON))
            most = asked[key] * _LETTERS
            if len(text) > most:
                refused.setdefault("are longer than their tokens can be, and cut", []).append(named)
                answer = dataclasses.replace(answer, text=text[:most], ended=False)
            found[who][key] = answer
    said = [
        f"{len(keys)} answers {why}: {', '.join(keys[:_SHOWN])}{' …' if len(keys) > _SHOWN else ''}"
        for why, keys in refused.items()
    ]
    return found, said


class KeptAnswers:
    """Answers that were given already, on the disk: the same weights and the same question need no GPU twice.

    Args:
        folder: output/answers.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def path(self, model: str) -> pathlib.Path:
        """Return the file of what a model answered; ``model`` is a SHA-256 in hex."""
        return self.folder / f"{model}.jsonl"

    def read(self, model: str) -> dict[str, Answer]:
        """Read a model's answers by their keys."""
        return {key: answer for key, answer in self.tried(model).items() if not answer.error}

    def tried(self, model: str) -> dict[str, Answer]:
        """Read by their keys a model's answers, and why it has none to a question: that is not asked again either."""
        lines, _ = rundir.read_lines(self.path(model), is_wanted=_is_answer)
        return {line["key"]: Answer.from_dict(line) for line in lines}

    def add(self, model: str, answers: Iterable[Answer]) -> None:
        """Keep answers of a model; those to questions that it has answered already are left as they are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(model)
        with rundir.locked(path):
            known = self.tried(model)
            for answer in answers:
                if answer.key not in known:
                    rundir.append_line(path, answer.as_dict())


def _is_answer(line: Mapping[str, object]) -> bool:
    return isinstance(line.get("key"), str) and isinstance(line.get("text"), str)
