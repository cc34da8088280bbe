"""A file of JSON lines, read as a stream: what is there instead of one, what it is instead, and whether it stays."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import IO

from ansible.module_utils.lora_forge.errors import UserError

EXAMPLE = '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}'
_LONGEST = 64 * 2**20  # bytes of a line

# What a file is that is no text of ours, by its first bytes, and what to do about it.
_KINDS = (
    (b"\x1f\x8b", "is compressed by gzip", "unpack it: gunzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "unpack it: unzstd"),
    (b"BZh", "is compressed by bzip2", "unpack it: bunzip2"),
    (b"\xfd7zXZ", "is compressed by xz", "unpack it: unxz"),
    (b"PK\x03\x04", "is a ZIP archive", "unpack it"),
    (b"PAR1", "is a Parquet file", "write it as JSON lines: datasets' Dataset.to_json, or pandas' to_json(lines=True)"),
    (b"ARROW1", "is an Arrow file", "write it as JSON lines: datasets' Dataset.to_json"),
    (b"\xff\xfe", "is UTF-16 text", "write it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "is UTF-16 text", "write it as UTF-8: iconv -f UTF-16 -t UTF-8"),
)


def missing_reason(path: pathlib.Path) -> str:
    """Say why a file cannot be read as one, with what lies beside it that may be meant."""
    if path.is_dir():
        return f"{path} is a folder, and a file is wanted"
    if path.exists():
        return f"{path} is no file that can be read twice (a pipe, a socket or a device)"
    if path.is_symlink():
        return f"{path} is a link that leads nowhere"
    near = near_names(path)
    return f"{path} does not exist" + (f" (beside it: {', '.join(near)}; {_ADVICE})" if near else "")


_ADVICE = "what is read is JSON lines, unpacked, under that very name"


def near_names(path: pathlib.Path) -> list[str]:
    """List the files beside one that is missing which may be the one that is meant, the likeliest first."""
    try:
        names = sorted(entry.name for entry in os.scandir(path.parent) if not entry.is_dir())
    except OSError:
        return []
    plain = re.sub(r"\W", "_", path.stem.lower())
    same = [name for name in names if re.sub(r"\W", "_", name.lower()).startswith(plain)]
    agent = plain.rpartition("_")[0]
    whole = [name for name in names if agent and name.lower() in (f"{agent}.jsonl", f"{agent}.json")]
    alike = difflib.get_close_matches(path.name, names, n=2, cutoff=0.9)
    return list(dict.fromkeys([*same, *whole, *alike]))[:3]


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Open a file that stays as it is while it is read.

    Raises:
        UserError: It cannot be read, is something else than a file, or was changed meanwhile.
    """
    try:
        # Not to wait for whoever writes into a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(missing_reason(path)) from None
    except OSError as error:
        right = ". Whoever runs this needs the right to" if isinstance(error, PermissionError) else ""
        raise UserError(f"{path} cannot be read: {error.strerror}{right}") from None
    before = os.fstat(handle)
    if not stat.S_ISREG(before.st_mode):
        os.close(handle)
        raise UserError(missing_reason(path))
    with open(handle, "rb", buffering=2**20) as file:
        try:
            yield file
        except OSError as error:
            raise UserError(f"{path} cannot be read to its end: {error.strerror}") from None
        after = os.fstat(handle)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(f"{path} was changed while it was read. Run the same command again when it is whole")


def lines(path: pathlib.Path, file: IO[bytes], wanted: str = f"conversation: {EXAMPLE}") -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, after a look at what it is.

    Args:
        path: The file.
        file: The same, opened.
        wanted: What a line has to be, with an example.

    Raises:
        UserError: It is something else than JSON lines.
    """
    head = file.peek(2**16)[: 2**16]  # type: ignore[attr-defined]
    if problem := _other_format(path, head):
        raise UserError(f"{problem}. Each line is one {wanted}")
    if head.startswith(b"\xef\xbb\xbf"):
        file.read(3)
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST and not line.endswith(b"\n"):
            raise UserError(
                f"{path}, line {number}: is longer than {_LONGEST // 2**20} MiB, which is no {wanted.partition(':')[0]}"
            )
        yield number, line


def _other_format(path: pathlib.Path, head: bytes) -> str:
    """Say what a file is that is no JSON lines, and what to do; nothing where it may be.

    Args:
        path: The file.
        head: Its first bytes.
    """
    for magic, what, advice in _KINDS:
        if head.startswith(magic):
            return f"{path} {what}; {advice}"
    if head[:64].count(b"\0") > len(head[:64]) // 4:
        return f"{path} is no text of UTF-8 (it may be UTF-16, or no text at all); write it as UTF-8"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    first, end, rest = text.partition(b"\n")
    whole = _is_json(first)
    if text.startswith(b"[") and not (whole and rest.strip()) and not _is_list_of_turns(first if whole else b""):
        return (
            f"{path} holds one JSON array, where each line has to be a conversation; jq -c '.[]' {path} writes it that "
            "way"
        )
    if text.startswith(b"{") and end and not whole and _is_open(first) and not _is_json(first.rstrip()[:-1]):
        return f"{path} spreads a JSON object over many lines; jq -c . {path} writes each object in a line"
    return ""


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_list_of_turns(text: bytes) -> bool:
    """Tell whether a line is a list that is no list of conversations; it is then the line that is wrong."""
    if not text:
        return False
    items = json.loads(text)
    return not (
        items and isinstance(items[0], dict) and any(name in items[0] for name in ("messages", "conversations"))
    )


def _is_open(text: bytes) -> bool:
    """Tell whether JSON is right as far as it goes, and ends where a pretty-printer begins a new line."""
    return text.rstrip()[-1:] in (b"{", b"[", b",") and (b'"' in text or text.strip() == b"{")
