"""Words and figures as people read them, and JSON as it is compared. Pure functions."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Optional


def duration(seconds: float) -> str:
    """Write seconds as 0:34 or 1:02:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(number: float) -> str:
    """Write a figure in two or three digits: 950, 1.5 k, 21 k, 3.2 M."""
    if number >= 999_500:
        return f"{number / 1e6:.1f} M" if number < 9.95e6 else f"{number / 1e6:.0f} M"
    if number >= 10_000:
        return f"{number / 1000:.0f} k"
    return f"{number / 1000:.1f} k" if number >= 1000 else f"{number:.0f}"


def pair(name: str, first: Any, last: Any) -> str:
    """Write a figure at the beginning and at the end; NaN and infinity are logged as text."""
    known = [figure for figure in (first, last) if figure is not None]
    return f"{name} " + " → ".join(
        f"{figure:.4g}" if isinstance(figure, (int, float)) else str(figure) for figure in known
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """Ask «did you mean …?» of the best match; return nothing where there is none."""
    match = difflib.get_close_matches(str(word), known)
    return f"; did you mean «{match[0]}»?" if match else ""


def printable(text: str, longest: Optional[int] = None) -> str:
    """Leave out what would move a terminal's cursor, colour it, or turn the direction of writing; keep line ends.

    Args:
        text: What is shown to people. A part of it may come from a trainer.
        longest: Letters of a line; of a longer one the end is left out. None to cut nothing.
    """
    text = str(text)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text)
    if longest is None or len(text) <= longest:
        return text
    return "\n".join(line if len(line) <= longest else f"{line[:longest]} …" for line in text.split("\n"))


def shown(text: str, longest: int) -> str:
    """Make a text of somebody else fit to be shown: :func:`printable`, and of no more than some letters.

    Args:
        text: The text.
        longest: How many letters of it are shown. Of a longer one the middle is left out: it ends with the reason.
    """
    half = longest // 2
    if len(text) > longest:
        text = f"{text[:half]} … {text[-half:]}"
    return printable(text)


def canonical(data: Any) -> str:
    """Write JSON with sorted keys and normalised numbers (1.0 is 1), so that equal recipes read equal."""
    return json.dumps(_normal(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _normal(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _normal(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_normal(item) for item in data]
    if isinstance(data, float) and data.is_integer():
        return int(data)
    return data


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lay out rows under their columns, numbers to the right.

    Args:
        columns: The headings.
        rows: As many cells each; anything ``str`` takes.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells)]
    numeric = [bool(cells) and all(cell[:1].isdigit() or cell == "–" for cell in column) for column in zip(*cells)]
    numeric = numeric or [False] * len(columns)

    def line(row: Sequence[str]) -> str:
        parts = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric)]
        return ("  " + "  ".join(parts)).rstrip()

    return [line(columns), *map(line, cells)]
