"""What tests saw of the faults that they bring about: noted while they run, and a row each in docs/faults.md.

    LORA_FORGE_FAULTS=docs/faults.md .venv/bin/pytest tests/integration/test_deaths.py

A row belongs to its test, which its last column names. A test that passes again replaces its rows; those of tests that
did not run, or failed, stay until their test is gone.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Callable, NamedTuple

import rundir

TESTS = pathlib.Path(__file__).resolve().parent
VARIABLE = "LORA_FORGE_FAULTS"  # the page to be written, from the checkout; without it nothing is noted
HEAD = """\
# Faults

What was done to a training, where, and what was seen. The tests that the last column names wrote it (`make faults`).
Those of `e2e/` have real Axolotl, SSH, systemd, tmux and rsync, containers as hosts, and a simulated RunPod; those of
`integration/` real supervisors and commands with a pretended trainer; those of `hostile/` real playbooks with hosts
that lie or fall silent; those of `unit/` call what decides. In every case: no step was lost beyond the last whole
checkpoint, no run was trained twice at a time, nothing was promoted that was not verified, and no pod was left rented
that its checkout did not know of.

| fault | where | what was seen | test |
|---|---|---|---|
"""
Seen = Callable[[str, str, str], None]


class Row(NamedTuple):
    """A row of the page.

    Attributes:
        fault: What was done.
        where: On which host, or to what.
        words: What was seen.
        test: The test, as ``e2e/test_pods.py::test_a_thing``.
        whole: Whether these are all rows of the test, and not those of one set of its parameters.
    """

    fault: str
    where: str
    words: str
    test: str
    whole: bool = True


def notes() -> pathlib.Path:
    """Return the file with what the tests of one command saw, in all its processes: in their sandbox."""
    return pathlib.Path(os.environ["LORA_FORGE_SANDBOX"]) / "seen.jsonl"


def note(rows: list[Row]) -> None:
    """Note what a test saw, where somebody wants to know."""
    if os.environ.get(VARIABLE) and rows:
        with notes().open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def publish() -> None:
    """Write into the page what was noted since the last time. Several commands may do so at the same time."""
    wanted = os.environ.get(VARIABLE)
    if not wanted or not notes().exists():
        return
    noted = [Row(*json.loads(line)) for line in notes().read_text(encoding="utf-8").splitlines()]
    page = TESTS.parent / wanted
    page.parent.mkdir(parents=True, exist_ok=True)
    with rundir.locked(page.parent):
        before = page.read_text(encoding="utf-8") if page.exists() else ""
        page.write_text(table(merged(rows(before), noted)), encoding="utf-8")
    notes().unlink()


def rows(page: str) -> list[Row]:
    """Read the rows of a page."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| ")]
    return [Row(*(cell.strip().strip("`").replace(r"\|", "|") for cell in row)) for row in cells[1:] if len(row) == 4]


def merged(before: Iterable[Row], noted: Iterable[Row]) -> list[Row]:
    """Put what was seen in the place of what the same tests had seen before.

    Args:
        before: The rows that there are.
        noted: New ones, in the order in which they were noted; of the same fault of a test the last one counts.

    Returns:
        The rows of tests that are there, in the order of the tests.
    """
    new = {(row.test, row.fault): row for row in noted}
    replaced = {row.test for row in new.values() if row.whole}
    kept = {(row.test, row.fault): row for row in before if row.test not in replaced}
    known = [row for row in {**kept, **new}.values() if place(row.test)]
    return sorted(known, key=lambda row: place(row.test) or ("", 0))


def table(content: Iterable[Row]) -> str:
    """Write the page."""

    def line(row: Row) -> str:
        fault, where, words = (" ".join(cell.split()).replace("|", r"\|") for cell in row[:3])
        return f"| {fault} | {where} | {words} | `{row.test}` |\n"

    return HEAD + "".join(map(line, content))


def place(test: str) -> tuple[str, int] | None:
    """Tell where a test stands: its file and line; None where there is no such test any more."""
    file, _, name = test.partition("::")
    line = _tests(file).get(name)
    return None if line is None else (file, line)


@functools.cache
def _tests(file: str) -> dict[str, int]:
    path = TESTS / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return {node.name: node.lineno for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
