"""The dataset contract: JSON lines of conversations, checked on the controller before anything starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any, Optional

from ansible.module_utils.lora_forge.errors import UserError

_CHARS_PER_TOKEN = 3.5  # an estimate for mixed prose, code and tool output; the trainer counts real tokens
_SHOWN = 5  # errors of one file that are shown
EXAMPLE = '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}'

# The two forms: the list's key, the keys of a turn, and whom each speaker stands for.
_FORMS = {
    "conversations": ("from", "value"),
    "messages": ("role", "content"),
}
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}

_SECRETS = re.compile(
    r"sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,}|AKIA[0-9A-Z]{16}|"
    r"hf_[A-Za-z0-9]{30,}|rpa_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{20,}|glpat-[A-Za-z0-9_-]{20}|"
    r"AIza[0-9A-Za-z_-]{35}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


@dataclasses.dataclass
class DatasetFile:
    """What a dataset file holds.

    Attributes:
        path: The file, as the user knows it.
        use: ``train`` or ``val``.
        sha256: Of its bytes.
        form: ``conversations`` or ``messages``.
        lengths: Estimated tokens of each conversation, cut to the sequence length.
        longer: Which of them are estimated longer than the sequence length, by their place.
        hopeless: Which of them have no assistant text within the sequence length.
        warnings: Sentences.
        digests: One per conversation, to compare files.
        options: What the recipe says of it, without its path.
    """

    path: str
    use: str
    sha256: str
    form: str
    lengths: list[int] = dataclasses.field(repr=False)
    longer: set[int] = dataclasses.field(repr=False)
    hopeless: set[int] = dataclasses.field(repr=False)
    warnings: list[str]
    digests: dict[str, int] = dataclasses.field(repr=False, default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def examples(self) -> int:
        """The number of conversations."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """The estimated tokens of all conversations."""
        return sum(self.lengths)

    def lost(self, strategy: str) -> set[int]:
        """Tell which conversations are not trained on, by their place.

        Args:
            strategy: Axolotl's excess_length_strategy.
        """
        return self.hopeless if strategy == "truncate" else self.longer

    def trained(self, strategy: str) -> list[int]:
        """List the lengths of the others."""
        lost = self.lost(strategy)
        return [length for place, length in enumerate(self.lengths) if place not in lost]


def find_files(folder: pathlib.Path, agents: list[str], use: str) -> list[pathlib.Path]:
    """List the files ``<agent>_<use>.jsonl`` that are there."""
    return [path for path in (folder / f"{agent}_{use}.jsonl" for agent in agents) if path.is_file()]


def check_file(path: pathlib.Path, use: str, sequence_len: int) -> DatasetFile:
    """Check a file against the contract.

    Args:
        path: The file.
        use: ``train`` or ``val``.
        sequence_len: Tokens an example may have.

    Raises:
        UserError: With the first errors, each with its line number.
    """
    raw = path.read_bytes()
    file = DatasetFile(str(path), use, hashlib.sha256(raw).hexdigest(), "", [], set(), set(), [])
    errors: list[str] = []
    secrets: list[int] = []
    repeated: list[int] = []
    limit = int(sequence_len * _CHARS_PER_TOKEN)
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        problem, form, turns = _read(line)
        if problem is None and file.form and form != file.form:
            problem = f"is in the «{form}» form, but the lines before are in «{file.form}»; a file takes one form"
        if problem is not None:
            errors.append(f"{path}, line {number}: {problem}")
            continue
        file.form = form
        characters = sum(len(text) for _, text in turns)
        before = 0
        for speaker, text in turns:
            if speaker == "assistant":
                break
            before += len(text)
        if before >= limit:
            file.hopeless.add(file.examples)
        if characters > limit:
            file.longer.add(file.examples)
        length = int(min(characters, limit) / _CHARS_PER_TOKEN) + 4 * len(turns)
        file.lengths.append(min(length, sequence_len))
        digest = hashlib.sha256(repr(turns).encode()).hexdigest()
        if digest in file.digests:
            repeated.append(number)
        file.digests.setdefault(digest, number)
        if any(_SECRETS.search(text) for _, text in turns):
            secrets.append(number)
    if errors:
        more = f"\n… and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise UserError("\n".join(errors[:_SHOWN]) + f"{more}\nEach line is one conversation: {EXAMPLE}")
    if not file.examples:
        raise UserError(f"{path} is empty. Each line is one conversation: {EXAMPLE}")
    if secrets:
        file.warnings.append(f"{path}: something that looks like a key or token in {_lines(secrets)}; take it out")
    if repeated:
        file.warnings.append(f"{path}: {_lines(repeated)} repeat earlier conversations")
    return file


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"line{'s' if len(numbers) > 1 else ''} {shown}"


def _read(line: bytes) -> tuple[Optional[str], str, list[tuple[str, str]]]:
    """Read a line: its problem or None, its form, and its turns as (speaker, text)."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start + 1})", "", []
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})", "", []
    if not isinstance(record, dict):
        return f"holds a JSON {type(record).__name__}, not an object", "", []
    form = next((form for form in _FORMS if form in record), "")
    if not form:
        names = ", ".join(map(str, record)) or "nothing"
        return f"has neither «conversations» nor «messages» (it has: {names})", "", []
    if not isinstance(record[form], list) or not record[form]:
        return f"«{form}» holds no turns", form, []
    speaker_key, text_key = _FORMS[form]
    turns: list[tuple[str, str]] = []
    for number, turn in enumerate(record[form], 1):
        if not isinstance(turn, dict) or speaker_key not in turn or text_key not in turn:
            return f"turn {number} needs «{speaker_key}» and «{text_key}»", form, []
        speaker = _SPEAKERS.get(str(turn[speaker_key]))
        if speaker is None:
            return f"turn {number} is by «{turn[speaker_key]}»; known speakers: {', '.join(_SPEAKERS)}", form, []
        if not isinstance(turn[text_key], str):
            return f"turn {number}: «{text_key}» must be text, not {type(turn[text_key]).__name__}", form, []
        if not turn[text_key].strip():
            return f"turn {number} ({turn[speaker_key]}) is empty", form, []
        turns.append((speaker, turn[text_key]))
    if not any(speaker == "assistant" for speaker, _ in turns):
        return "has no assistant turn, so there is nothing to learn from it", form, []
    return None, form, turns


def check_lengths(sets: list[DatasetFile], sequence_len: int, strategy: str) -> list[str]:
    """Tell what the sequence length does to the examples.

    Args:
        sets: The dataset files.
        sequence_len: Tokens an example may have.
        strategy: Axolotl's excess_length_strategy.

    Returns:
        Warnings.

    Raises:
        UserError: Nothing trainable would be left of a file.
    """
    warnings = []
    for file in sets:
        lost = len(file.lost(strategy))
        if lost == file.examples or (strategy == "raise" and lost):
            cause = "have no assistant text within" if strategy == "truncate" else "are longer than"
            raise UserError(
                f"{file.path}: {'all' if lost == file.examples else lost} of {file.examples} examples {cause} "
                f"sequence_len {sequence_len} (about {int(sequence_len * _CHARS_PER_TOKEN):,} characters). "
                "Raise sequence_len in the recipe, or split the conversations."
            )
        if file.longer:
            fate = "cut at its end" if strategy == "truncate" else "dropped"
            warnings.append(
                f"{file.path}: about {len(file.longer)} of {file.examples} examples are longer than sequence_len "
                f"{sequence_len} and will be {fate}"
            )
    return warnings


def check_overlap(train: list[DatasetFile], val: list[DatasetFile]) -> None:
    """Refuse evaluation conversations that are trained on.

    Raises:
        UserError: With both files and lines.
    """
    for trained in train:
        for evaluated in val:
            shared = evaluated.digests.keys() & trained.digests
            lines = sorted((evaluated.digests[digest], trained.digests[digest]) for digest in shared)
            if lines:
                pairs = ", ".join(f"{line} (there line {other})" for line, other in lines[:_SHOWN])
                raise UserError(
                    f"{evaluated.path} shares {len(lines)} conversation(s) with {trained.path}: line {pairs}. An "
                    "evaluation on what was trained on says nothing; remove them from one of the files."
                )


def axolotl_entry(summary: DatasetFile, options: dict[str, Any]) -> dict[str, Any]:
    """Make Axolotl's dataset item for a file, without its path.

    Args:
        summary: The checked file.
        options: What a recipe's ``datasets`` item adds or replaces.
    """
    item: dict[str, Any] = {"ds_type": "json", "type": "chat_template"}
    if summary.form == "conversations":
        item |= {"field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}}
    else:
        item |= {"field_messages": "messages"}
    return item | {key: value for key, value in options.items() if key != "path"}
