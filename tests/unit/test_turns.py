"""Taking turns on the controller: one of several commands has the files of a run, the others wait and say so."""

from __future__ import annotations

import pathlib
import threading

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning.turns import run_files, turn


def test_who_has_waited_long_enough_is_told_whom_it_waited_for(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    path = tmp_path / "runs/.witness-2.files.lock"
    path.parent.mkdir()
    with rundir.locked(path):
        with pytest.raises(UserError, match=r"another command fetches or delivers witness-2, .* «fuser .*files\.lock»"):
            with run_files(tmp_path, "witness-2", said.append, patience=0.01):
                raise AssertionError("two have it")
        assert [line.strip().partition(":")[0] for line in said] == ["another command fetches or delivers witness-2"]
    with run_files(tmp_path, "witness-2", said.append), run_files(tmp_path, "witness-2", said.append):
        with pytest.raises(BlockingIOError), rundir.locked(path, 0):
            raise AssertionError("two have it")
    with rundir.locked(path, 0):
        assert len(said) == 1


def test_who_waits_has_its_turn_as_soon_as_the_other_one_is_done(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    done = threading.Event()

    def hold() -> None:
        with rundir.locked(tmp_path / "lock"):
            held.set()
            done.wait(60)

    held = threading.Event()
    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    with turn(tmp_path / "lock", "fetches it", lambda words: (said.append(words), done.set())[0], patience=60):
        with pytest.raises(BlockingIOError), rundir.locked(tmp_path / "lock", 0):
            raise AssertionError("two have it")
    other.join(60)
    assert said == ["  another command fetches it: waiting for it, 1:00 at most"]


def test_a_turn_that_nobody_else_has_is_taken_without_a_word_and_given_back_after_an_error(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "new/lock"
    with pytest.raises(ZeroDivisionError), turn(path, "fetches it", pytest.fail, patience=0):
        raise ZeroDivisionError
    with rundir.locked(path, 0):
        with pytest.raises(UserError, match="another command fetches it, and has not ended within"):
            with turn(path, "fetches it", patience=0):
                raise AssertionError("two have it")
