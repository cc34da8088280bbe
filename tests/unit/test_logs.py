"""The logs of a run: what is read of them on the trainer, and how they are followed."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from typing import Any
from unittest import mock

import pytest
import rundir
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.lora_forge.controller import retry
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import logs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plugin = load("action_plugins/follow_log.py")


def made(folder: pathlib.Path, state: str = "running", log: bytes | None = None, alive: bool = True) -> pathlib.Path:
    """Make a run whose supervisor is this process, or one of an earlier boot."""
    run = folder / "witness-0"
    run.mkdir(exist_ok=True)
    process = rundir.identity(os.getpid()) | ({} if alive else {"boot": "an earlier one"})
    noted = {"state": state, "lane": "cpu", "supervisor": process, "heartbeat": rundir.uptime(), "idle": 0}
    rundir.write_json(run / "status.json", noted)
    if log is not None:
        (run / "train.log").write_bytes(log)
    return run


def add(run: pathlib.Path, text: bytes, name: str = "train.log") -> None:
    with (run / name).open("ab") as log:
        log.write(text)


# --- one question -------------------------------------------------------------------------------------------


def test_the_end_and_what_follows_it(tmp_path):
    run = made(tmp_path, log=b"one\ntwo\nthree\n")
    found = logs.read_log(run, lines=2)
    assert found == {"text": "two\nthree\n", "offset": 14, "state": "running", "more": False}
    assert logs.read_log(run, offset=14)["text"] == ""
    add(run, b"four\n")
    assert logs.read_log(run, offset=14, lines=0) == {**found, "text": "four\n", "offset": 19}
    assert logs.read_log(run, offset=0)["text"] == "one\ntwo\nthree\nfour\n"
    assert logs.read_log(run, lines=0) == {**found, "text": "", "offset": 19}
    assert logs.read_log(run, "supervisor")["text"] == ""
    with pytest.raises(UserError, match="lines is -1; it must be 0 or more"):
        logs.read_log(run, lines=-1)


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (b"a\rb\rc\n", "c\n"),
        (b"\r 50%|##  | 2/4\r100%|####| 4/4\n", "100%|####| 4/4\n"),
        (b"\r100%|####| 4/4\r              \r\n", "100%|####| 4/4\n"),
        (b"\r100%|####| 4/4\r              \r{'loss': 1}\n", "{'loss': 1}\n"),
        (b"a\n\r       \r\nb\n", "a\nb\n"),
        (b"a\n\nb\n", "a\n\nb\n"),
        (b"\n", "\n"),
        (b"  indented\r\n", "  indented\n"),
        (b"\x1b[1;34mwandb\x1b[0m: x\x1b[A\n", "wandb: x\n"),
        ("«é»\n".encode() + b"\xff\n", "«é»\n\ufffd\n"),
        ("line\u2028separator\x0c\n".encode(), "line\u2028separator\x0c\n"),
    ],
)
def test_what_is_worth_keeping(tmp_path, log, text):
    run = made(tmp_path, log=log)
    assert logs.read_log(run)["text"] == text
    assert logs.read_log(run, offset=0) == {"text": text, "offset": len(log), "state": "running", "more": False}


def test_a_great_log_comes_in_parts_that_end_with_a_line(tmp_path):
    rows = [f"{number:06} «{'x' * (number % 90)}»\n" for number in range(12_000)]
    log = "".join(rows).encode()
    run = made(tmp_path, "finished", log, alive=False)
    parts, found = [], {"offset": 0, "more": True}
    while found["more"]:
        found = logs.read_log(run, offset=found["offset"], seconds=30)
        assert len(found["text"].encode()) <= logs.CHUNK
        parts.append(found["text"])
    assert len(parts) == -(-len(log) // logs.CHUNK) == 3
    assert all(part.endswith("\n") for part in parts)
    assert "".join(parts) == "".join(rows)
    end = logs.read_log(run, lines=99_999)
    assert logs.CHUNK - 200 < len(end["text"].encode()) <= logs.CHUNK
    assert "".join(rows).endswith(f"\n{end['text']}")
    assert (end["offset"], end["more"]) == (len(log), False)


def test_a_line_longer_than_one_answer_is_cut(tmp_path):
    run = made(tmp_path, log=b"x" * (logs.CHUNK + 5) + b"\n")
    found = logs.read_log(run, offset=0, seconds=30)
    assert (found["offset"], found["more"]) == (logs.CHUNK, True)
    assert logs.read_log(run, offset=logs.CHUNK)["text"] == "xxxxx\n"


def test_what_was_never_started_is_an_error(tmp_path):
    with pytest.raises(UserError) as failure:
        logs.read_log(tmp_path / "witness-0")
    assert "there is no log of witness-0: nothing was ever started in" in str(failure.value)
    (tmp_path / "witness-0").mkdir()  # staged only
    with pytest.raises(UserError, match="nothing was ever started"):
        logs.read_log(tmp_path / "witness-0", "supervisor")


def test_a_queued_run_has_no_log_yet(tmp_path):
    run = made(tmp_path, "queued")
    assert logs.read_log(run) == {"text": "", "offset": 0, "state": "queued", "more": False}


def test_a_run_that_was_removed_since_is_absent(tmp_path):
    found = logs.read_log(tmp_path / "witness-0", offset=14, seconds=30)
    assert found == {"text": "", "offset": 0, "state": "absent", "more": False}


def test_a_log_that_was_replaced_is_read_from_its_start(tmp_path):
    run = made(tmp_path, log=b"new\n")
    assert logs.read_log(run, offset=14) == {"text": "new\n", "offset": 4, "state": "running", "more": False}


# --- waiting ------------------------------------------------------------------------------------------------


def test_the_end_is_not_waited_for(tmp_path, clock):
    run, began = made(tmp_path, log=b""), clock.now()
    assert logs.read_log(run, seconds=30)["text"] == ""
    add(run, b"unfinished")
    assert logs.read_log(run, seconds=30) == {"text": "", "offset": 0, "state": "running", "more": False}
    assert clock.now() == began


def test_a_line_without_its_end_comes_when_the_time_is_up_or_the_run_over(tmp_path, clock):
    run, began = made(tmp_path, log=b"whole\n 10%|#"), clock.now()
    assert logs.read_log(run)["text"] == "whole\n 10%|#\n"
    assert clock.now() == began
    found = logs.read_log(run, offset=0, seconds=30)
    assert (found["text"], found["offset"]) == ("whole\n", 6)
    began = clock.now()
    assert logs.read_log(run, offset=6, seconds=20)["text"] == " 10%|#\n"
    assert clock.now() == began + 20
    made(tmp_path, "failed", alive=False)
    assert logs.read_log(run, offset=6, seconds=30)["text"] == " 10%|#\n"
    assert clock.now() == began + 20


@pytest.mark.parametrize(
    ("news", "text", "state"),
    [
        (lambda run: add(run, b" the line\n"), "the end of the line\n", "running"),
        (lambda run: made(run.parent, "stopped", alive=False), "the end of\n", "stopped"),
    ],
)
def test_waiting_ends_early_on_news(tmp_path, clock, news, text, state):
    run, began = made(tmp_path, log=b"the end of"), clock.now()
    clock.later(7, lambda: news(run))
    found = logs.read_log(run, offset=0, seconds=30)
    assert (found["text"], found["state"]) == (text, state)
    assert 7 <= clock.now() - began < 10


def test_the_last_line_of_a_supervisor_comes_after_its_final_state(tmp_path, clock):
    run = made(tmp_path, "finished")
    add(run, b"step 12/12\n", "supervisor.log")

    def leave() -> None:
        add(run, b"finished\n", "supervisor.log")
        made(tmp_path, "finished", alive=False)

    clock.later(7, leave)
    found = logs.read_log(run, "supervisor", offset=0, seconds=30)
    assert found["text"] == "step 12/12\nfinished\n"


# --- following it from the controller -------------------------------------------------------------------------


def said(text: str, offset: int = 0, state: str = "running", more: bool = False) -> dict[str, Any]:
    return {"text": text, "offset": offset, "state": state, "more": more, "changed": False}


class Task:
    """The action plugin with prepared answers of its module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any, **args: Any):
        self.told: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.answers = list(answers)
        monkeypatch.setattr(plugin, "tell", lambda text, **about: self.told.append(text))
        monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
        self.args = {"run_dir": "/runs/witness-0", "log": "train", "lines": 50, "follow": True, "agent": "witness",
                     "prefix": False, "unreachable_timeout": 60, **args}  # fmt: skip

    def module(self, name: str, asked: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        assert name == "training_log"
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(self) -> dict[str, Any]:
        task = mock.Mock(args=self.args, check_mode=False, async_val=0)
        action = plugin.ActionModule(task, mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock())
        action._execute_module = self.module
        found = action.run(task_vars={})
        assert self.answers == []
        return found


@pytest.mark.parametrize("follow", [False, "false"])  # as -e follow=false has it
def test_the_end_takes_one_question(monkeypatch, follow):
    task = Task(monkeypatch, said("one\n\ntwo\n", 9), follow=follow)
    assert task.run() == {"changed": False, "state": "running"}
    assert task.told == ["one\n\ntwo"]
    assert task.asked == [{"run_dir": "/runs/witness-0", "log": "train", "lines": 50, "wait": 0}]


def test_following_goes_on_until_the_run_is_over_and_all_is_read(monkeypatch):
    task = Task(
        monkeypatch,
        said("one\n", 4),
        AnsibleConnectionFailure("no route"),
        said("", 4, "stalled"),
        said("two\n", 8),
        said("three\n", 14, "finished", more=True),
        said("four\n", 19, "finished"),
    )
    assert task.run() == {"changed": False, "state": "finished"}
    assert task.told == [
        "one",
        "  witness  no connection for 0:00; what runs there goes on; trying again (no route)",
        "two",
        "three",
        "four",
        "  witness  witness-0 is finished",
    ]
    assert [asked.get("offset") for asked in task.asked] == [None, 4, 4, 4, 8, 14]
    assert {asked["wait"] for asked in task.asked} == {plugin.WAIT}


@pytest.mark.parametrize("state", ["failed", "stopped", "absent"])
def test_other_ends_are_told_and_are_no_failure_of_the_reader(monkeypatch, state):
    task = Task(monkeypatch, said("one\n", 4, state))
    assert "failed" not in task.run()
    assert task.told[-1] == f"  witness  witness-0 is {state}"


def test_several_runs_are_told_apart(monkeypatch):
    task = Task(monkeypatch, said("one\n\ntwo\n", 9), follow=False, prefix=True)
    task.run()
    assert task.told == ["witness  one\nwitness\nwitness  two"]


def test_an_empty_log_is_told_once(monkeypatch):
    task = Task(monkeypatch, said("", 0, "queued"), said("", 0, "queued"), said("", 0, "stopped"))
    task.run()
    assert task.told == [
        "  witness  train.log of witness-0 is empty so far; the run is queued",
        "  witness  witness-0 is stopped",
    ]


def test_no_lines_of_a_log_is_no_empty_log(monkeypatch):
    task = Task(monkeypatch, said("", 9), lines=0, follow=False)
    task.run()
    assert task.told == []


def test_an_error_of_the_module_ends_it(monkeypatch):
    task = Task(monkeypatch, {"failed": True, "msg": "nothing was ever started"})
    assert task.run() == {"failed": True, "msg": "nothing was ever started"}
    assert task.told == []


@pytest.mark.parametrize("name", ["train", "supervisor"])
def test_a_pipe_in_the_place_of_a_log_is_told_and_not_waited_for(tmp_path, name):
    run = made(tmp_path)
    os.mkfifo(run / f"{name}.log")
    with pytest.raises(OSError, match="no regular file"):
        logs.read_log(run, name)
