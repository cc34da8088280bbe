"""One archive of a run for whoever helps: what is known of it, without keys and without the data. Pure functions."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Literal

from ansible.module_utils.lora_forge.results.redaction import Quotations, Redactor, Secrets

FOLDER = "bundles"  # below the output folder
LARGEST = 256 * 1024  # bytes of a file in it

Kind = Literal["log", "sentence", "recipe", "json", "lines"]


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of an archive.

    Attributes:
        name: Its name there.
        about: What it holds, in a few words.
        kind: How it is made fit to be sent: a log, a sentence, a recipe in YAML, JSON, or JSON on each line.
        content: A text, or what JSON can hold; of ``lines`` a list. Empty where there is none.
    """

    name: str
    about: str
    kind: Kind
    content: Any


def compose(
    parts: Sequence[Part],
    missing: Iterable[str],
    secrets: Secrets,
    data: Callable[[], Iterable[bytes]] | None,
    title: str = "",
) -> dict[str, str]:
    """Write the files of an archive; the first one says what the others hold, and what is missing.

    Args:
        parts: What is known. A part without content is left out.
        missing: What is not known, and why; sentences.
        secrets: Takes keys out.
        data: Yields the lines of what the run is trained on; None where that cannot be read.
        title: What the archive is about, in a sentence of ours.

    Returns:
        Texts by name.
    """
    there, missing = [part for part in parts if part.content], list(missing)
    texts = [text for part in there for text in _texts(part.content)] + missing
    redactor = Redactor(secrets, Quotations(texts, data() if data else None))
    files = {part.name: _cut(_written(part, redactor), end=part.kind == "log") for part in there}
    lines = [f"{part.name:<20} {part.about}" for part in there]
    absent = [f"- {redactor.sentence(sentence)}" for sentence in missing]
    read_me = [title, "", *lines, *(["", "Missing:", *absent] if absent else []), "", *_LEFT_OUT, ""]
    return {"README.txt": "\n".join(read_me), **files}


_LEFT_OUT = (
    "Left out: keys, tokens and addresses with a password in them; whatever of a log is no record, traceback, figure",
    "or bar; and what shares 16 letters and digits in a row with the data. Host names, paths and the recipe are in it.",
    "Read it before you send it.",
)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _texts(value)


def _written(part: Part, redactor: Redactor) -> str:
    if part.kind == "json":
        return json.dumps(redactor.data(part.content), indent=1, ensure_ascii=False)
    if part.kind == "lines":
        return "\n".join(json.dumps(redactor.data(entry), ensure_ascii=False) for entry in part.content)
    write = {"log": redactor.log, "sentence": redactor.sentence, "recipe": redactor.recipe}[part.kind]
    return write(part.content)


def _cut(text: str, end: bool) -> str:
    """Return a text of no more than :data:`LARGEST` bytes, with a line end: its end, or its beginning."""
    data = text.rstrip("\n").encode("utf-8", "replace")
    if len(data) > LARGEST:
        data = data[-LARGEST:] if end else data[:LARGEST]
        text = data.decode("utf-8", "ignore")
        return f"« the beginning is cut »\n{text}\n" if end else f"{text}\n« the end is cut »\n"
    return data.decode() + "\n"


def packed(files: dict[str, str], folder: str, now: float) -> bytes:
    """Pack files into a gzipped tar.

    Args:
        files: Texts by name; names are ours.
        folder: The folder that they lie in there.
        now: Epoch seconds, for their times.
    """
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode()
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(now)
            archive.addfile(entry, io.BytesIO(data))
    return target.getvalue()
