"""What may go to somebody else: text without keys, and without what a model was trained on. Pure functions.

Of a log only lines of known kinds stay: records of a logger, tracebacks, figures, bars. Whatever else a training
prints may be a conversation. What stays is held against the data, too: a sentence that shares a piece of 16 letters
and digits with it is left out, so that an error which quotes its example keeps its class and loses the quotation.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from ansible.module_utils.lora_forge.data.dataset import SECRETS
from ansible.module_utils.lora_forge.text import printable

SECRET = "«secret»"
QUOTATION = "«left out: it may quote the data»"
PIECE = 16  # letters and digits in a row that text and data share by more than chance
_DEEPEST = 50  # lists and mappings in each other
SHORTEST = 6  # letters of a known secret; a shorter one is a word of any text
_LONGEST = 400  # letters of a sentence in a log; what is longer prints data more often than reasons
_LONGEST_LINE = 4000  # letters of a line
_BATCH = 4 << 20  # bytes of the data that are looked at at once
_BUCKETS = 22  # bits of the table that is asked before the sorted list

# --- keys -----------------------------------------------------------------------------------------------------------

_NAMES = (
    r"api[_-]?key|access[_-]?key|secret|passw(?:or)?d|passphrase|(?:become|ssh|sudo)_?pass|credential|authorization|"
    r"webhook|token"
)
_SECRET_NAME = re.compile(
    rf"(?i)(?:{_NAMES})(?:_id|_url)?$|(?:secret|credential)s$|(?:^|_)(?:key|pass)$|notify_url|pod_env"
)
_SECRET_NAMES = re.compile(rf"(?i)(?:{_NAMES})s$")  # of a variable; in data, tokens are what is counted
_TOKENS_OF_A_TEXT = re.compile(r"(?i)(?:^|[_.-])(?:bos|eos|pad|unk|sep|cls|mask|stop|special|end|image)_tokens?$")
_PATTERNS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), SECRET),
    (re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*[\"']?)(?:\w+\s+)?[^\s\"']+"), rf"\1{SECRET}"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{SECRET}"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)[^/\s@\"'<>]{1,500}@"), rf"\1{SECRET}@"),
    (re.compile(r"(?i)https?://(?:hooks\.slack\.com|(?:\w+\.)?discord(?:app)?\.com/api/webhooks|"
                r"[\w.-]{1,80}\.webhook\.office\.com)/[^\s\"'<>]*"), SECRET),
    (re.compile(rf"(?i)([?&][\w.-]{0,60}(?:{_NAMES}|key|sig|signature)=)[^&\s\"'<>]+"), rf"\1{SECRET}"),
    (re.compile(r"\beyJ[\w-]{8,500}\.[\w-]{8,}\.[\w-]*"), SECRET),
    (re.compile(r"\bwandb_v\d_\w{8,}"), SECRET),
    (re.compile(r"\b(?:ASIA|AKIA)[0-9A-Z]{12,}\b"), SECRET),
    (re.compile(r"\b(?:hf|rpa|gh[pousr])_[A-Za-z0-9]{16,}"), SECRET),
    *((secret, SECRET) for _, secret in SECRETS),
]  # fmt: skip
_NAMED = re.compile(rf"(?i)\b([\w.-]{{0,60}}(?:{_NAMES})s?)([\"']?\s*[:=]\s*[\"']?)([^\s\"',;&}}\]]{{6,}})")
# A key of W&B's looks like a commit, which has its name before it.
_FORTY = re.compile(r"(?<![0-9A-Fa-f])[0-9a-f]{40}(?![0-9A-Fa-f])")
_COMMIT = re.compile(r"(?i)(?:revision\w*|commit|snapshots)[\"']?\s?[:=/]?\s?[\"']?$")


def is_secret_name(name: str) -> bool:
    """Tell whether a key, an option or a variable of this name holds a secret.

    Args:
        name: The name.
    """
    return bool(_SECRET_NAME.search(name)) and not _TOKENS_OF_A_TEXT.search(name)


def known_secrets(variables: Mapping[str, Any]) -> set[str]:
    """Collect the values of what is named like a secret, in all forms in which a text may have them.

    Args:
        variables: Environment or host variables: texts, lists and mappings, in each other too.
    """
    found: set[str] = set()
    for text in secret_texts(variables):
        if len(text.strip()) >= SHORTEST and not text.startswith(("~/", "./")):
            found |= _spellings(text.strip())
    return found


def secret_texts(value: Any, name: str = "", within: bool = False, depth: int = 0) -> Iterator[str]:
    """Yield the texts that a value holds under a name of a secret, however deep they lie.

    Args:
        value: A text, or lists and mappings of texts.
        name: What it is called.
        within: Whether it lies in something that is named like a secret.
        depth: How deep it lies.
    """
    within = within or is_secret_name(name) or bool(_SECRET_NAMES.search(name) and not _TOKENS_OF_A_TEXT.search(name))
    if isinstance(value, Mapping):
        if depth < _DEEPEST:
            for key, held in value.items():
                yield from secret_texts(held, str(key), within, depth + 1)
    elif isinstance(value, (list, tuple)):
        if depth < _DEEPEST:
            for held in value:
                yield from secret_texts(held, name, within, depth + 1)
    elif within and value is not None and not isinstance(value, bool):
        yield str(value)  # a number, or a text of the vault's


def _spellings(secret: str) -> set[str]:
    """List how a secret is written: as it is, in a URL, in JSON; of an address also the part that is secret."""
    rest = urllib.parse.urlsplit(secret) if "://" in secret else None
    path = f"{rest.path}?{rest.query}" if rest and rest.query else rest.path if rest else ""
    forms = {secret, urllib.parse.quote(secret, safe=""), secret.replace("\\", "\\\\").replace('"', '\\"')}
    return (
        forms
        | ({path} if len(path) > 2 * SHORTEST else set())
        | {line for line in secret.split("\n") if len(line) > 15}
    )


class Secrets:
    """What takes keys out of texts.

    Args:
        known: The values that are known.
    """

    def __init__(self, known: Iterable[str] = ()):
        longest_first = sorted({word for word in known if len(word) >= SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def taken_out(self, text: str) -> str:
        """Return a text without keys.

        Args:
            text: Any text, of several lines too.
        """
        if self._known:
            text = self._known.sub(SECRET, text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        text = _NAMED.sub(_named, text)
        return _FORTY.sub(_forty, text)


def _forty(found: re.Match[str]) -> str:
    before = found.string[max(0, found.start() - 40) : found.start()]
    return found[0] if _COMMIT.search(before) else SECRET


def _named(found: re.Match[str]) -> str:
    name, between, value = found.groups()
    harmless = _TOKENS_OF_A_TEXT.search(name) or re.fullmatch(r"[\d.,]+|true|false|null|none", value, re.IGNORECASE)
    return found[0] if harmless or SECRET in value else f"{name}{between}{SECRET}"


# --- conversations --------------------------------------------------------------------------------------------------

_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|[nrtbfv])")
_MARKS = str.maketrans("", "", "ĠĊĉ▁")  # of blanks and line ends, where tokens are printed
_ALL = bytes(range(128))
_NO_WORD = bytes(byte for byte in _ALL if not chr(byte).isalnum())
_NO_LETTER = bytes(byte for byte in _ALL if not chr(byte).isalpha())
# What is said everywhere says nothing of the data.
_PUBLIC = [
    *(f"[Errno {number}] {os.strerror(number)}" for number in errno.errorcode),
    *(name for name in dir(builtins) if name[:1].isupper()),
    "Traceback (most recent call last):",
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate",
    "RuntimeError: CUDA error: device-side assert triggered",
    "ModuleNotFoundError: No module named",
    "object has no attribute", "unexpected keyword argument", "required positional argument",
    "ConnectionRefusedError: [Errno 111] Connection refused", "Permission denied", "No space left on device",
]  # fmt: skip


def _unescaped(text: str) -> str:
    def letter(found: re.Match[str]) -> str:
        code = found[1] or found[2]
        return chr(int(code, 16)) if code else " "

    if "\\" not in text:
        return text
    # Letters beyond 16 bits are escaped as two halves.
    return _ESCAPE.sub(letter, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _squashed(text: str) -> Iterator[bytes]:
    """Yield the letters and digits of a text, and the letters alone: tokens are printed with numbers between them.

    Escapes, blanks, marks and case make no difference: a text is printed by repr, as JSON or wrapped.
    """
    data = _unescaped(text).translate(_MARKS).lower().encode("utf-8", "replace")
    yield data.translate(None, _NO_WORD)
    yield data.translate(None, _NO_LETTER)


def _pieces(data: bytes) -> Any:
    """Return a number for each piece of :data:`PIECE` bytes."""
    if len(data) < PIECE:
        return np.empty(0, np.uint64)
    flat = np.frombuffer(data, np.uint8)
    half = np.lib.stride_tricks.sliding_window_view(flat, 8).copy().view("<u8").ravel()
    first, second = half[: len(data) - PIECE + 1], half[8 : 8 + len(data) - PIECE + 1]
    mixed = first * np.uint64(0x9E3779B97F4A7C15) ^ (
        second * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(0x165667B19E3779F9)
    )
    mixed ^= mixed >> np.uint64(29)
    return mixed * np.uint64(0xBF58476D1CE4E5B9)


class Quotations:
    """What texts share with the data. The data is read once, and none of it is kept.

    Args:
        texts: All texts that will be asked about.
        data: Lines of the files that are trained on; None where they cannot be read: then every text of some length
            may be a quotation.
    """

    def __init__(self, texts: Iterable[str], data: Iterable[bytes] | None):
        self._unknown = data is None
        parts = [_pieces(form) for text in texts for form in _squashed(text)]
        asked = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))
        public = [_pieces(form) for text in _PUBLIC for form in _squashed(text)]
        asked = np.setdiff1d(asked, np.concatenate(public))
        self._shared = set() if data is None or not len(asked) else _found(asked, data)

    def quotes(self, text: str) -> bool:
        """Tell whether a text shares a piece with the data.

        Args:
            text: One of the texts, or a part of one.
        """
        forms = list(_squashed(text))
        if self._unknown:
            return len(forms[0]) >= PIECE
        return bool(self._shared) and any(not self._shared.isdisjoint(_pieces(form).tolist()) for form in forms)


def _found(asked: Any, data: Iterable[bytes]) -> set[int]:
    """Return which of some pieces the data has."""
    shift = np.uint64(64 - _BUCKETS)
    table = np.zeros(1 << _BUCKETS, np.bool_)
    table[(asked >> shift).astype(np.int64)] = True
    shared: set[int] = set()
    for batch in _batches(data):
        for form in _squashed(batch.decode("utf-8", "replace")):
            pieces = _pieces(form)
            likely = np.unique(pieces[table[(pieces >> shift).astype(np.int64)]])
            shared.update(likely[np.isin(likely, asked, assume_unique=True)].tolist())
    return shared


def _batches(data: Iterable[bytes]) -> Iterator[bytes]:
    batch: list[bytes] = []
    size = 0
    for line in data:
        batch.append(line)
        size += len(line)
        if size >= _BATCH:
            yield b"".join(batch)
            batch, size = [], 0
    yield b"".join(batch)


# --- kinds of lines -------------------------------------------------------------------------------------------------

_STAMP = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?"
_LEVEL = r"(?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)"
_RANK = r"(?:\[(?:rank|default)?\d+\]:\s?)?"
_HEADS = "|".join([
    rf"\[{_STAMP}\] \[{_LEVEL} *\] \[[\w.<>]{{1,100}}(?::\d+)?\](?: ?\[(?:PID|RANK):\d+\])*",  # Axolotl's
    rf"\[{_LEVEL}\|[\w./-]{{1,80}}:\d+\](?: {_STAMP})? >>",  # transformers'
    rf"{_STAMP}(?: - [\w.]{{1,80}} - {_LEVEL} -| \[?{_LEVEL}\]?:?)?",  # the supervisor's, and logging's usual ones
    rf"{_LEVEL}:[\w.]{{1,80}}:",
    r"\[?[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +(?:\d+ )?[\w./-]{1,80}:\d+\]",  # torch's
    r"wandb:",
    r"[\w./@+-]{1,200}\.py:\d+: \w*Warning:",
])  # fmt: skip
_RECORD = re.compile(rf"({_RANK}(?:{_HEADS}))(\s*)(.*)$")
_FRAME = re.compile(rf'({_RANK}(?:[ |+-]*)File "[^"\n]{{1,300}}", line \d+)(, in [\w<>.]{{1,100}})?$')
_CARETS = re.compile(rf"{_RANK}[\s|]*[~^]+$")
_SOURCE = re.compile(rf"{_RANK}[ |]{{4,}}\S.{{0,200}}$")
_ERROR = re.compile(
    rf"({_RANK}[ |]*(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Warning|Interrupt|Exit|Timeout))(?::\s?(.*))?$"
)
_ANY_ERROR = re.compile(rf"({_RANK}[A-Za-z_][\w.]{{0,100}})(?::\s(.*))?$")  # behind a frame
_BETWEEN = re.compile(
    rf"{_RANK}[ |+-]*(?:Traceback \(most recent call last\):|Exception Group Traceback \(most recent call last\):|"
    r"During handling of the above exception, another exception occurred:|"
    r"The above exception was the direct cause of the following exception:)$"
)
_NUMBER = r"'?(?:[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf|-inf|None|True|False)'?"
_FIGURES = re.compile(rf"{_RANK}\{{'[\w/ -]{{1,60}}': {_NUMBER}(?:, '[\w/ -]{{1,60}}': {_NUMBER})*\}}$")
_BAR = re.compile(r"([\w ()=/.,-]{0,60}:)?\s*\d{1,3}%\|[^|\w]*\|\s*[\d.,kMG]+/[\d.,kMG?]+ \[[\d:<?, .\w/%-]{1,60}\]$")
_ENDS = (
    "",
    "Killed",
    "Terminated",
    "Segmentation fault (core dumped)",
    "Aborted (core dumped)",
    "Bus error (core dumped)",
)
# What prints examples: tokens with their ids, lists of ids, tensors, turns, the tokens between turns.
_DUMP = re.compile(
    r"\(-?\d+, ?-?\d+\).*\(-?\d+, ?-?\d+\)|(?:-?\d+[, ]\s*){8}|\btensor\(|\binput_ids\b|\battention_mask\b|"
    r"['\"](?:role|content|from|value|messages|conversations|text|prompt|completion)['\"]\s*:|<\|[\w ]+\|>.*\w|"
    r"\[/?INST\]"
)
_QUOTED = re.compile(r"(?<!\w)(['\"`])(?:\\.|(?!\1).){1,2000}?\1(?!\w)")
_COMMITS = ("commit", "revision", "model_revision", "revision_of_model")
_YAML = re.compile(r"\s*(?:- )*(?:[\w./'\"-]{1,100}:(?: .*)?|- .*|#.*|---)?$")


class Redactor:
    """What may be sent to somebody else, of logs, of sentences, of recipes and of data as JSON has it.

    Args:
        secrets: Takes keys out.
        quotations: Knows what is of the data.
    """

    def __init__(self, secrets: Secrets, quotations: Quotations):
        self._secrets, self._quotations = secrets, quotations

    def sentence(self, text: str) -> str:
        """Return a sentence that is told of a run. What follows its first line is taken for a log.

        Args:
            text: The sentence.
        """
        first, *others = self._clean(text).split("\n")
        kept = [self._said(first, 4 * _LONGEST)]
        return "\n".join([*kept, *(self._lines(others) if others else [])])

    def log(self, text: str) -> str:
        """Return the lines of a log that are of a known kind, and how many others were left out between them.

        Args:
            text: The log.
        """
        return "\n".join(self._lines(self._clean(text).split("\n")))

    def recipe(self, text: str) -> str:
        """Return the lines of a YAML file that are keys, items or comments.

        Args:
            text: The file.
        """
        rows = [self._quoted_out(row) if _YAML.match(row) else QUOTATION for row in self._clean(text).split("\n")]
        return "\n".join(rows)

    def data(self, value: Any, name: str = "") -> Any:
        """Return data with each text as :meth:`sentence` has it, and without the values of what is named like a secret.

        Args:
            value: What JSON can hold.
            name: The key that it stands under.
        """
        if isinstance(value, Mapping):
            secret = name if is_secret_name(name) else ""
            return {self.sentence(str(key)): self.data(item, secret or str(key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.data(item, name) for item in value]
        if isinstance(value, str):
            if name in _COMMITS and _FORTY.fullmatch(value):
                return value
            return SECRET if value and is_secret_name(name) else self.sentence(value)
        return value

    def _clean(self, text: str) -> str:
        # Cut before, as patterns take their time with lines without end, and after, so that no key is cut in two.
        rows = [row[: 2 * _LONGEST_LINE] for row in printable(text).split("\n")]
        return "\n".join(row[:_LONGEST_LINE] for row in self._secrets.taken_out("\n".join(rows)).split("\n"))

    def _said(self, text: str, longest: int = _LONGEST) -> str:
        """Return what a record or an error says, up to the part that may be of the data."""
        parts, kept = text.split(": ", 9), 0
        while kept < len(parts) and not self._may_quote(": ".join(parts[: kept + 1])):
            kept += 1
        text = ": ".join([*parts[:kept], *([QUOTATION] if kept < len(parts) else [])])
        text = _QUOTED.sub(lambda found: f"{found[1]}…{found[1]}" if len(found[0].split()) > 2 else found[0], text)
        return text if len(text) <= longest else f"{text[:longest]} …"

    def _may_quote(self, text: str) -> bool:
        return bool(_DUMP.search(text)) or self._quotations.quotes(text)

    def _quoted_out(self, row: str) -> str:
        if not self._quotations.quotes(row):
            return row[: 4 * _LONGEST]
        key = re.match(r"\s*(?:- )*[\w./-]{1,100}:", row)
        return f"{key[0]} {QUOTATION}" if key and not self._quotations.quotes(key[0]) else QUOTATION

    def _lines(self, rows: list[str]) -> list[str]:
        kept: list[str] = []
        gone, before = 0, ""
        for row in rows:
            kind, shown = self._line(row.rstrip(), before)
            before = kind
            if not kind:
                gone += 1
                continue
            kept += [_left_out(gone)] if gone else []
            kept.append(shown)
            gone = 0
        return kept + ([_left_out(gone)] if gone else [])

    def _line(self, row: str, before: str) -> tuple[str, str]:
        """Return the kind of a line and what is shown of it; twice nothing where it is of none.

        Args:
            row: The line.
            before: The kind of the line before it.
        """
        if row in _ENDS or _BETWEEN.match(row) or _FIGURES.match(row) or _CARETS.match(row):
            return ("source" if before in ("frame", "source") else "plain"), row
        if found := _FRAME.match(row):
            return "frame", self._known_code(found[1]) + (found[2] or "")
        if before == "frame" and _SOURCE.match(row):
            text = row.strip()
            indent = row[: len(row) - len(row.lstrip())]
            return "source", indent + (QUOTATION if self._may_quote(text) else text)
        if found := _RECORD.match(row):
            head = found[1] if not self._quotations.quotes(found[1]) else QUOTATION
            return "record", head + found[2] + (self._said(found[3]) if found[3] else "")
        if (found := _BAR.match(row)) and not self._quotations.quotes(found[1] or ""):
            return "plain", row
        if (found := _ERROR.match(row)) or (before in ("frame", "source") and (found := _ANY_ERROR.match(row))):
            name = QUOTATION if self._quotations.quotes(found[1]) and not _ERROR.match(row) else found[1]
            return "error", f"{name}: {self._said(found[2])}" if found[2] else name
        return "", ""

    def _known_code(self, frame: str) -> str:
        """Return the head of a frame: paths of packages, of Python and of a run's programs are no conversation."""
        if re.search(r"/(?:site|dist)-packages/|/lib/python3|/runs/[\w.-]+/programs/|<frozen ", frame):
            return frame
        return f'  File "{QUOTATION}", line {frame.rpartition(" ")[2]}' if self._quotations.quotes(frame) else frame


def _left_out(count: int) -> str:
    return f"« {count} line{'s' if count > 1 else ''} of no known kind left out »"
