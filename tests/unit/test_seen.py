"""The page of faults: each row is its test's, and a command that runs a few tests leaves the rows of all others."""

from __future__ import annotations

import pathlib

import pytest
import seen
from seen import Row

KILLED, CUT = "e2e/test_a.py::test_kills", "integration/test_b.py::test_cuts"


@pytest.fixture(autouse=True)
def tests(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Provide a folder of tests in place of the real one."""
    folder = tmp_path / "tests"
    for name, text in {
        "e2e/test_a.py": "def test_stops(): ...\n\ndef test_kills(): ...\n",
        "integration/test_b.py": "def test_cuts(): ...\n",
    }.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(seen, "TESTS", folder)
    monkeypatch.setenv("LORA_FORGE_SANDBOX", str(tmp_path))
    monkeypatch.setenv(seen.VARIABLE, "docs/faults.md")
    seen._tests.cache_clear()
    yield folder
    seen._tests.cache_clear()


def page() -> list[tuple[str, ...]]:
    """Return what the page says: fault and words of each row."""
    rows = seen.rows((seen.TESTS.parent / "docs/faults.md").read_text())
    return [(row.fault, row.words) for row in rows]


def test_a_test_that_ran_again_replaces_its_rows_and_no_others() -> None:
    seen.note(
        [Row("cut", "pod", "kept", CUT), Row("kill", "vm", "resumed at 2", KILLED), Row("hup", "vm", "no", KILLED)]
    )
    seen.publish()
    assert page() == [("kill", "resumed at 2"), ("hup", "no"), ("cut", "kept")], "in the order of files and tests"
    seen.note([Row("kill", "vm", "resumed at 4", KILLED)])
    seen.publish()
    assert page() == [("kill", "resumed at 4"), ("cut", "kept")]
    seen.publish()
    assert page() == [("kill", "resumed at 4"), ("cut", "kept")], "nothing was noted"


def test_one_set_of_parameters_leaves_the_rows_of_the_others() -> None:
    seen.note([Row("kill -9", "vm", "1", KILLED, False), Row("kill -15", "vm", "2", KILLED, False)])
    seen.publish()
    seen.note([Row("kill -15", "vm", "3", KILLED, False)])
    seen.publish()
    assert page() == [("kill -9", "1"), ("kill -15", "3")]


def test_two_commands_at_once_write_what_both_saw(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.note([Row("kill", "vm", "resumed", KILLED)])
    with monkeypatch.context() as other:
        (tmp_path / "other").mkdir()
        other.setenv("LORA_FORGE_SANDBOX", str(tmp_path / "other"))
        seen.note([Row("cut", "pod", "kept", CUT)])
        seen.publish()
        assert page() == [("cut", "kept")]
    seen.publish()
    assert page() == [("kill", "resumed"), ("cut", "kept")]


def test_rows_of_a_test_that_is_gone_go(tests: pathlib.Path) -> None:
    seen.note([Row("kill", "vm", "resumed", KILLED), Row("cut", "pod", "kept", CUT)])
    seen.publish()
    (tests / "e2e/test_a.py").unlink()
    seen._tests.cache_clear()
    seen.note([Row("cut", "pod", "kept again", CUT)])
    seen.publish()
    assert page() == [("cut", "kept again")]


def test_words_with_a_bar_or_a_line_break_stay_one_cell() -> None:
    row = Row("a|b", "vm", "one\n two", KILLED)
    seen.note([row])
    seen.publish()
    assert page() == [("a|b", "one two")]


def test_nothing_is_noted_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(seen.VARIABLE)
    seen.note([Row("kill", "vm", "resumed", KILLED)])
    assert not seen.notes().exists()


def test_the_page_is_as_tests_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    seen._tests.cache_clear()
    written = (seen.TESTS.parent / "docs/faults.md").read_text()
    rows = seen.rows(written)
    assert rows
    assert seen.table(seen.merged(rows, [])) == written, "edited by hand, or a row's test is gone: make faults"
