"""The dataset contract: JSON lines of conversations, checked on the controller before anything starts.

A file is read as a stream. What is kept of each conversation is a few numbers, so that a file may be larger than the
memory.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import time
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.data import conversation, jsonl
from ansible.module_utils.lora_forge.data.conversation import Conversation, Flaw, Keys
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedDataset

_CHARS_PER_TOKEN = 3.5  # an estimate for mixed prose, code and tool output; the trainer counts real tokens
_TURN_TOKENS = 4  # what a template puts around a turn
_SHOWN = 5  # problems of one file that are shown, and lines of one problem
_TOLD_EVERY = 5.0  # seconds between two words on how far a file is read

# What keys and tokens begin with, and what the rest of them looks like. Each is looked for by itself, its beginning
# first: that is ten times faster than one expression for all.
SECRETS = [
    (beginning, re.compile(beginning + rest))
    for beginning, rest in (
        ("sk-", "[A-Za-z0-9_-]{20,}"),
        ("gh", "[pousr]_[A-Za-z0-9]{36}"),
        ("github_pat_", "[A-Za-z0-9_]{40,}"),
        ("AKIA", "[0-9A-Z]{16}"),
        ("hf_", "[A-Za-z0-9]{30,}"),
        ("rpa_", "[A-Za-z0-9]{30,}"),
        ("xox", "[abprs]-[A-Za-z0-9-]{20,}"),
        ("glpat-", "[A-Za-z0-9_-]{20}"),
        ("AIza", "[0-9A-Za-z_-]{35}"),
        ("-----BEGIN ", "[A-Z ]*PRIVATE KEY-----"),
    )
]


@dataclasses.dataclass
class Counts:
    """What a file holds besides plain turns.

    Attributes:
        tools: Conversations that offer tools.
        calls: Calls of tools.
        reasoned: Turns with reasoning.
        results: Turns of a tool.
        masked: Turns of the assistant that are not trained, as they say so.
        marked: Conversations with a turn that says whether it is trained.
        needs: What the chat template has to know and to take, in the words of ``conversation.NEEDS`` and ``ORDER``,
            with the first line that has it.
    """

    tools: int = 0
    calls: int = 0
    reasoned: int = 0
    results: int = 0
    masked: int = 0
    marked: int = 0
    needs: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, number: int, one: Conversation) -> None:
        """Count the conversation of another line."""
        self.tools += one.tools
        self.calls += one.calls
        self.reasoned += one.reasoned
        self.results += one.results
        self.masked += one.masked
        self.marked += one.marked
        counts = zip(conversation.NEEDS, (one.reasoned, one.calls, one.results, one.tools))
        for word in (*(word for word, count in counts if count), *one.order):
            self.needs.setdefault(word, number)

    def describe(self) -> str:
        """Say it in a few words; nothing where there is nothing."""
        words = (
            (self.tools, "with tools"),
            (self.calls, "tool calls"),
            (self.results, "tool results"),
            (self.reasoned, "turns with reasoning"),
            (self.masked, "turns not trained, as they say"),
        )
        return ", ".join(f"{count:,} {what}" for count, what in words if count)


@dataclasses.dataclass
class Contents:
    """What was found in a file, whatever it is used for. Nothing but numbers is kept of each conversation.

    Attributes:
        path: The file, as the user knows it.
        sha256: Of its canonical form.
        counts: What it holds besides plain turns.
        warnings: Sentences.
        characters: Of each conversation.
        heads: Of that, the characters before the first turn that is trained.
        turns: Of each conversation.
        digests: 64 bits of each conversation, to compare files.
        numbers: The line of each conversation.
    """

    path: str
    sha256: str = ""
    counts: Counts = dataclasses.field(default_factory=Counts)
    warnings: list[str] = dataclasses.field(default_factory=list)
    characters: array[int] = dataclasses.field(default_factory=lambda: array("I"), repr=False)
    heads: array[int] = dataclasses.field(default_factory=lambda: array("I"), repr=False)
    turns: array[int] = dataclasses.field(default_factory=lambda: array("I"), repr=False)
    digests: array[int] = dataclasses.field(default_factory=lambda: array("Q"), repr=False)
    numbers: array[int] = dataclasses.field(default_factory=lambda: array("I"), repr=False)

    def add(self, number: int, one: Conversation) -> None:
        """Note a conversation of a line."""
        self.characters.append(one.characters)
        self.heads.append(one.head)
        self.turns.append(one.turns)
        self.digests.append(int.from_bytes(hashlib.blake2b(one.same, digest_size=8).digest(), "big"))
        self.numbers.append(number)
        self.counts.add(number, one)

    def repeated(self) -> array[int]:
        """List the lines that say again what an earlier one says."""
        import numpy as np  # here, as every command imports this file, and only a plan that reads data computes

        digests = np.frombuffer(self.digests, np.uint64)
        _, first = np.unique(digests, return_index=True)
        again = np.ones(len(digests), bool)
        again[first] = False
        return array("I", np.frombuffer(self.numbers, np.uint32)[again].tobytes())


@dataclasses.dataclass
class DatasetFile:
    """A file as a training uses it.

    Attributes:
        path: The file, as the user knows it.
        use: ``train`` or ``val``.
        sha256: Of its canonical form.
        lengths: Estimated tokens of each conversation, cut to the sequence length.
        longer: For each, whether it is estimated longer than the sequence length.
        hopeless: For each, whether nothing that is trained lies within the sequence length.
        warnings: Sentences.
        options: What the recipe says of it, without its path.
        counts: What it holds besides plain turns.
        digests: Of each conversation, to compare files.
        numbers: The line of each.
    """

    path: str
    use: str
    sha256: str
    lengths: Sequence[int] = dataclasses.field(repr=False)
    longer: bytes = dataclasses.field(repr=False)
    hopeless: bytes = dataclasses.field(repr=False)
    warnings: list[str] = dataclasses.field(default_factory=list)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    counts: Counts = dataclasses.field(default_factory=Counts)
    digests: Sequence[int] = dataclasses.field(repr=False, default=())
    numbers: Sequence[int] = dataclasses.field(repr=False, default=())

    @classmethod
    def of(
        cls, contents: Contents, use: str, sequence_len: int, options: Optional[Mapping[str, Any]] = None
    ) -> DatasetFile:
        """Work out what a sequence length does to the conversations of a file.

        Args:
            contents: What it holds.
            use: ``train`` or ``val``.
            sequence_len: Tokens an example may have.
            options: What the recipe says of the file, without its path.
        """
        import numpy as np

        limit = int(sequence_len * _CHARS_PER_TOKEN)
        characters = np.frombuffer(contents.characters, np.uint32)
        turns = np.frombuffer(contents.turns, np.uint32)
        tokens = (np.minimum(characters, limit) / _CHARS_PER_TOKEN).astype(np.uint32) + _TURN_TOKENS * turns
        return cls(
            path=contents.path,
            use=use,
            sha256=contents.sha256,
            lengths=array("I", np.minimum(tokens, sequence_len).astype(np.uint32).tobytes()),
            longer=(characters > limit).tobytes(),
            hopeless=(np.frombuffer(contents.heads, np.uint32) >= limit).tobytes(),
            warnings=contents.warnings,
            options=options or {},
            counts=contents.counts,
            digests=contents.digests,
            numbers=contents.numbers,
        )

    @property
    def examples(self) -> int:
        """The number of conversations."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """The estimated tokens of all conversations."""
        return sum(self.lengths)

    def lost(self, strategy: str) -> int:
        """Count the conversations that are not trained on.

        Args:
            strategy: Axolotl's excess_length_strategy.
        """
        return sum(self._flags(strategy))

    def trained(self, strategy: str) -> array[int]:
        """List the lengths of the others."""
        return array("I", (length for length, lost in zip(self.lengths, self._flags(strategy)) if not lost))

    def _flags(self, strategy: str) -> bytes:
        return self.hopeless if strategy == "truncate" else self.longer


# --- which files there are


def find_files(folder: pathlib.Path, agents: Sequence[str], use: str) -> list[pathlib.Path]:
    """List the files ``<agent>_<use>.jsonl`` that are there."""
    return [path for path in (folder / f"{agent}_{use}.jsonl" for agent in agents) if path.is_file()]


def list_folder(folder: pathlib.Path) -> dict[str, list[str]]:
    """List the files of a folder by their agents, as what stands before the first ``_`` is; none where it is no folder.

    Args:
        folder: Where the datasets are.
    """
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in sorted(entry.name for entry in entries if entry.is_file()):
            names.setdefault(name.lower().partition("_")[0], []).append(name)
    return names


def overlooked(folder: pathlib.Path, agent: str, names: Collection[str]) -> list[str]:
    """Tell which file may be meant for the evaluation, where there is none of the name that is read.

    Args:
        folder: Where the datasets are.
        agent: Whose.
        names: The agent's of :func:`list_folder`, which is called once, be there hundreds of agents.

    Returns:
        Warnings.
    """
    wanted = f"{agent}_val.jsonl"
    if wanted in names:
        return []
    others = [f"{agent}_{use}.jsonl" for use in ("eval", "validation", "valid", "test", "dev")]
    near = [name for name in others if name in names]
    near = near or [name for name in names if name.lower().startswith(f"{agent}_val")]
    if not near:
        return []
    return [f"{agent}: {near[0]} in {folder} is not read; what is evaluated on has the name {wanted}"]


# --- one file


def check_file(
    path: pathlib.Path,
    use: str,
    sequence_len: int,
    options: Optional[Mapping[str, Any]] = None,
    say: Callable[[str], None] = lambda _: None,
) -> DatasetFile:
    """Check a file against the contract: :func:`read_contents`, as a training uses it."""
    return DatasetFile.of(read_contents(path, options or {}, say), use, sequence_len, options)


def read_contents(
    path: pathlib.Path,
    options: Mapping[str, Any],
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Contents:
    """Read a file, and check it against the contract.

    Args:
        path: The file.
        options: A recipe's ``datasets`` item, which may say under which keys lines hold what.
        say: Tells people how far it is, where that takes long.
        clock: Tells the time in seconds.

    Raises:
        UserError: With the problems of its lines, each once, or what it is instead.
    """
    contents, keys, found = Contents(str(path)), Keys.from_options(options), _Findings(path)
    digest, told, done = hashlib.sha256(), clock() + _TOLD_EVERY, 0
    with jsonl.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        for number, line in jsonl.lines(path, file):
            done += len(line)
            if clock() >= told:
                told = clock() + _TOLD_EVERY
                say(f"  reading {path}: {done / 1e6:,.0f} of {size / 1e6:,.0f} MB")
            if not line.strip():
                continue
            try:
                one = conversation.read(line, keys)
                found.look_at(number, one)
            except Flaw as flaw:
                found.add_flaw(number, flaw)
                continue
            digest.update(one.line)
            contents.add(number, one)
    found.refuse()
    if not contents.numbers:
        raise UserError(f"{path} is empty. Each line is one conversation: {jsonl.EXAMPLE}")
    contents.sha256 = digest.hexdigest()
    contents.warnings = found.warnings(contents.repeated())
    return contents


class _Findings:
    """What is wrong with the lines of a file, or odd about them. Of many lines with the same problem a few are kept."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.flaws: dict[str, str] = {}  # the first message of each kind
        self.lines: dict[str, array[int]] = collections.defaultdict(lambda: array("I"))  # of each kind

    def add_flaw(self, number: int, flaw: Flaw) -> None:
        """Note what keeps a line from being trained on."""
        self.flaws.setdefault(flaw.kind, str(flaw))
        self.lines[flaw.kind].append(number)

    def look_at(self, number: int, one: Conversation) -> None:
        """Look for what does not belong into a conversation.

        Raises:
            Flaw: A control token of a chat template would end a turn where none ends.
        """
        text = one.text
        if "<" in text:
            if ("<|" in text or "_of_turn>" in text or "<｜" in text or "<turn|>" in text) and (
                found := conversation.CONTROL.search(text)
            ):
                raise Flaw(
                    "control",
                    f"has «{found[0]}» in its text, a control token of chat templates, which would begin or end a turn "
                    "there; take it out, or write it in another way",
                )
            if "<image>" in text or "<video>" in text or "<audio>" in text:
                self.lines["placeholder"].append(number)
        if ("</s>" in text or "INST]" in text) and conversation.LOOSE_CONTROL.search(text):
            self.lines["loose"].append(number)
        for beginning, secret in SECRETS:
            if beginning in text and secret.search(text):
                self.lines["secret"].append(number)
                break
        for name in one.unread:
            self.lines[name].append(number)

    def refuse(self) -> None:
        """Refuse the file where a line cannot be trained on.

        Raises:
            UserError: With each problem once.
        """
        if not self.flaws:
            return
        sentences = []
        for kind, message in sorted(self.flaws.items(), key=lambda item: self.lines[item[0]][0])[:_SHOWN]:
            first, *others = self.lines[kind][: _SHOWN + 1]
            more = len(self.lines[kind]) - 1 - len(others)
            listed = ", ".join(map(str, others)) + (f" and {more:,} more" if more else "")
            same = f"; the same in line{'s' if len(others) > 1 else ''} {listed}" if others else ""
            sentences.append(f"{self.path}, line {first}: {message}{same}")
        rest = len(self.flaws) - _SHOWN
        more_kinds = f"\n… and {rest} problems of other kinds" if rest > 0 else ""
        raise UserError("\n".join(sentences) + f"{more_kinds}\nEach line is one conversation: {jsonl.EXAMPLE}")

    def warnings(self, repeated: Sequence[int]) -> list[str]:
        """Say what is odd.

        Args:
            repeated: Lines that say again what an earlier one says.
        """
        said = {
            "secret": "something that looks like a key or token in {}; take it out",
            "loose": "[INST] or </s> in {}: bases of the families Llama 2 and Mistral take them for control tokens",
            "placeholder": "<image>, <video> or <audio> in {} is trained as plain text; no picture goes with it",
            **{
                name: f"turns of {{}} have «{name}», which is not trained; field_thinking: {name} in the recipe's "
                "datasets makes reasoning of it"
                for name in ("thinking", "reasoning")
            },
            **{
                name: f"turns of {{}} have «{name}», which is not read; message_field_training: {name} in the recipe's "
                "datasets makes it decide what is trained"
                for name in ("training", "trainable", "loss")
            },
            "system_prompt": "«system_prompt» of {} is not read; call it «system», and it is the first turn",
        }
        found = [f"{self.path}: {said[kind].format(_listed(self.lines[kind]))}" for kind in said if self.lines[kind]]
        if repeated:
            found.append(
                f"{self.path}: {_listed(repeated)} repeat{'' if len(repeated) > 1 else 's'} earlier conversations"
            )
        return found


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8:,} more" if len(numbers) > 8 else "")
    return f"line{'s' if len(numbers) > 1 else ''} {shown}"


# --- several files


def check_lengths(sets: Sequence[DatasetFile], sequence_len: int, strategy: str) -> list[str]:
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
        lost, longer = file.lost(strategy), sum(file.longer)
        if lost == file.examples or (strategy == "raise" and lost):
            cause = "have no assistant text within" if strategy == "truncate" else "are longer than"
            raise UserError(
                f"{file.path}: {'all' if lost == file.examples else lost} of {file.examples} examples {cause} "
                f"sequence_len {sequence_len} (about {int(sequence_len * _CHARS_PER_TOKEN):,} characters). "
                "Raise sequence_len in the recipe, or split the conversations."
            )
        if longer:
            fate = "cut at its end" if strategy == "truncate" else "dropped"
            warnings.append(
                f"{file.path}: about {longer} of {file.examples} examples are longer than sequence_len "
                f"{sequence_len} and will be {fate}"
            )
    return warnings


def check_overlap(train: Sequence[DatasetFile], val: Sequence[DatasetFile]) -> None:
    """Refuse evaluation conversations that are trained on.

    Raises:
        UserError: With both files and lines.
    """
    for evaluated in val:
        lines = dict(zip(evaluated.digests, evaluated.numbers))
        for trained in train:
            shared: dict[int, int] = {}
            for digest, number in zip(trained.digests, trained.numbers):
                if digest in lines:
                    shared.setdefault(digest, number)
            if shared:
                found = sorted((lines[digest], number) for digest, number in shared.items())
                pairs = ", ".join(f"{line} (there line {other})" for line, other in found[:_SHOWN])
                raise UserError(
                    f"{evaluated.path} shares {len(found)} conversation(s) with {trained.path}: line {pairs}. An "
                    "evaluation on what was trained on says nothing; remove them from one of the files."
                )


def describe_counts(sets: Sequence[DatasetFile]) -> list[str]:
    """Say in a line for each file what it holds besides plain turns; nothing where there is nothing."""
    words = ((pathlib.PurePath(file.path).name, file.counts.describe()) for file in sets)
    return [f"{name}: {described}" for name, described in words if described]


# --- what is trained on


def planned_dataset(file: DatasetFile) -> PlannedDataset:
    """Write what a plan keeps of a file.

    Args:
        file: The checked file.

    Raises:
        UserError: The item asks for what the canonical form does not hold.
    """
    return PlannedDataset(
        path=file.path,
        use=file.use,
        sha256=file.sha256,
        examples=file.examples,
        entry=axolotl_entry(file),
        reading=reading_options(file.options),
        needs=dict(sorted(file.counts.needs.items())),
    )


def needs(datasets: Iterable[PlannedDataset]) -> dict[str, str]:
    """List what a run's data has that a chat template may not know or take, each with the first place that has it.

    Args:
        datasets: The run's.
    """
    found: dict[str, str] = {}
    for planned in datasets:
        for word, line in planned.needs.items():
            found.setdefault(word, f"{planned.path}, line {line}")
    return dict(sorted(found.items()))


def reading_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe's ``datasets`` item says of how lines are read."""
    return {key: options[key] for key in conversation.READING if options.get(key) is not None}


def axolotl_entry(file: DatasetFile) -> dict[str, Any]:
    """Make Axolotl's dataset item for the canonical form of a file, without its path.

    Args:
        file: The checked file; its options go into the item.

    Raises:
        UserError: The item asks for what the canonical form does not hold.
    """
    options = file.options
    if options.get("message_field_training_detail"):
        raise UserError(
            "«message_field_training_detail» in the recipe's datasets is not supported: a turn is trained as a whole, "
            "or not. Make turns of the parts, and say train: false for those that are not to be trained"
        )
    item: dict[str, Any] = {"ds_type": "json", "type": "chat_template", "field_messages": "messages"}
    if file.counts.marked:
        item["message_field_training"] = "train"
    settled = ("path", *conversation.READING)
    item |= {key: value for key, value in options.items() if key not in settled}
    if options.get("roles_to_train"):
        speakers = Keys.from_options(options).speakers
        roles = list(dict.fromkeys(speakers.get(role, role) for role in options["roles_to_train"]))
        unknown = next((role for role in roles if role not in conversation.ROLES), "")
        if unknown:
            raise UserError(
                f"«roles_to_train» in the recipe's datasets names «{unknown}», which no turn is by. Known speakers: "
                f"{', '.join(speakers)}"
            )
        item["roles_to_train"] = roles
    return item
