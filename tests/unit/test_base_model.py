"""The base model on its trainer, without a hub: what is told of it, and how its fetch is followed."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import pathlib
from typing import Any
from unittest import mock

import pytest
import rundir
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.lora_forge.controller import retry
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import base_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "Acme/Tiny"
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{pathlib.Path(path).parent.name}_fetch_model", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = load("roles/trainer/files/fetch_model.py")
plugin = load("action_plugins/fetch_model.py")


def put(folder: pathlib.Path, *names: str) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"12345")
    if base_model.INDEX in names:
        (folder / base_model.INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS))}))
    return folder


# --- a folder on the trainer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "size"),
    [
        (["config.json", "tokenizer.json", base_model.SINGLE], 5),
        (["config.json", "tokenizer.model", base_model.INDEX, *SHARDS], 10),
        (["config.json", "qwen.tiktoken", base_model.SINGLE, "consolidated.safetensors"], 5),
    ],
)
def test_a_folder_is_present(tmp_path, names, size):
    folder = put(tmp_path / "model", *names)
    found = base_model.model_state(str(folder), "", tmp_path)
    assert found == {
        "state": "present", "folder": str(folder), "described": str(folder), "bytes": size, "total_bytes": size,
        "bytes_per_second": None, "error": "", "mark": "present:20:described",
    }  # fmt: skip
    assert not base_model.start_fetch(str(folder), "", tmp_path, "/no/python", "/no/program")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "it lacks config.json, a tokenizer (tokenizer.json, tokenizer.model or the like), its weights"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], f"it lacks its weights ({base_model.SINGLE}, or"),
        (["config.json", "tokenizer.json", *SHARDS], f"or {base_model.INDEX} with its shards)"),
        (["config.json", "tokenizer.json", base_model.INDEX, SHARDS[0]], f"it lacks {SHARDS[1]}. Copy what is missing"),
        (["config.json", "tokenizer_config.json", base_model.SINGLE], "it lacks a tokenizer"),
    ],
)
def test_a_folder_that_lacks_something(tmp_path, names, words):
    folder = put(tmp_path / "model", *names)
    with pytest.raises(UserError) as failure:
        base_model.model_state(str(folder), "", tmp_path)
    assert f"the folder {folder} is no whole base model: " in str(failure.value)
    assert words in str(failure.value)


def test_a_folder_that_is_not_there_or_has_a_cut_index(tmp_path):
    with pytest.raises(UserError, match="is no folder on this trainer"):
        base_model.model_state(str(tmp_path / "model"), "", tmp_path)
    folder = put(tmp_path / "model", "config.json", "tokenizer.json", base_model.INDEX)
    (folder / base_model.INDEX).write_text('{"weight_map": {"a"')
    with pytest.raises(UserError, match=r"index\.json is no index of weights"):
        base_model.model_state(str(folder), "", tmp_path)


# --- a model of the hub -------------------------------------------------------------------------------------


def noted(home: pathlib.Path, revision: str = "", **status: Any) -> pathlib.Path:
    folder = base_model.state_dir(NAME, revision, home)
    folder.mkdir(parents=True, exist_ok=True)
    rundir.write_json(folder / "status.json", status)
    return folder


def test_each_revision_has_its_state(tmp_path):
    assert base_model.state_dir(NAME, "", tmp_path) == tmp_path / "lora-forge/Acme--Tiny--main"
    assert base_model.state_dir(NAME, "refs/pr/1", tmp_path) == tmp_path / "lora-forge/Acme--Tiny--refs--pr--1"


def test_nothing_is_absent_and_would_be_fetched(tmp_path):
    assert base_model.model_state(NAME, "", tmp_path)["state"] == "absent"
    assert base_model.start_fetch(NAME, "", tmp_path, "/no/python", "/no/program", check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_fetch_that_lives_is_followed(tmp_path):
    noted(tmp_path, state="fetching", process=rundir.identity(os.getpid()), bytes=31, total_bytes=100,
          bytes_per_second=7)  # fmt: skip
    found = base_model.model_state(NAME, "", tmp_path)
    assert (found["state"], found["bytes"], found["bytes_per_second"]) == ("fetching", 31, 7)
    assert found["mark"] == "fetching:6"
    assert not base_model.start_fetch(NAME, "", tmp_path, "/no/python", "/no/program")


def test_a_fetch_of_another_login_node_is_followed_as_long_as_it_has_a_pulse(tmp_path):
    elsewhere = {"pid": 1, "start": 2, "boot": "another"}
    status = noted(tmp_path, state="fetching", process=elsewhere, bytes=31, total_bytes=100) / "status.json"
    assert base_model.model_state(NAME, "", tmp_path)["state"] == "fetching"
    assert not base_model.start_fetch(NAME, "", tmp_path, "/no/python", "/no/program")
    written = status.stat().st_mtime - rundir.FETCH_PULSE
    os.utime(status, (written, written))
    assert base_model.model_state(NAME, "", tmp_path)["state"] == "absent"


def test_a_fetch_that_died_is_absent_with_its_bytes(tmp_path):
    gone = rundir.identity(os.getpid()) | {"start": 1}
    noted(tmp_path, state="fetching", process=gone, bytes=31, total_bytes=100)
    found = base_model.model_state(NAME, "", tmp_path)
    assert (found["state"], found["bytes"], found["error"]) == ("absent", 31, "")


@pytest.mark.parametrize("state", ["fetching", "failed"])
def test_what_is_small_comes_first_and_is_told_of(tmp_path, state):
    snapshot = tmp_path / "snapshots/c0"
    noted(tmp_path, state=state, process=rundir.identity(os.getpid()), described=str(snapshot), bytes=0, total_bytes=0)
    assert base_model.model_state(NAME, "", tmp_path)["described"] == ""
    before = base_model.model_state(NAME, "", tmp_path)["mark"]
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    found = base_model.model_state(NAME, "", tmp_path)
    assert (found["state"], found["described"], found["folder"]) == (state, str(snapshot), "")
    assert found["mark"] != before, "who waits for it hears of it"


def test_present_is_believed_as_long_as_every_file_is_whole(tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"123")
    folder = noted(tmp_path, state="present", folder=str(tmp_path), bytes=3, total_bytes=3)
    assert "no complete.json" in base_model.model_state(NAME, "", tmp_path)["error"]
    rundir.write_json(folder / rundir.COMPLETE, {"files": {str(weights): 3}})
    assert base_model.model_state(NAME, "", tmp_path)["folder"] == str(tmp_path)
    weights.write_bytes(b"1")
    found = base_model.model_state(NAME, "", tmp_path)
    assert (found["state"], found["folder"]) == ("absent", "")
    assert found["error"] == f"{weights} has 1 bytes instead of 3; it has to be fetched again"


def test_a_failure_is_told_and_tried_again(tmp_path):
    noted(tmp_path, state="failed", error="it is gated.", heartbeat=1.0)
    assert base_model.model_state(NAME, "", tmp_path)["error"] == "it is gated."
    assert base_model.start_fetch(NAME, "", tmp_path, "/no/python", "/no/program", check=True)


def test_only_a_fetch_that_goes_on_is_waited_for(tmp_path, clock):
    began = clock.now()
    assert (
        base_model.wait_for_progress(NAME, "", tmp_path, base_model.model_state(NAME, "", tmp_path)["mark"], 60)[
            "state"
        ]
        == "absent"
    )
    noted(tmp_path, state="fetching", process=rundir.identity(os.getpid()), bytes=31, total_bytes=100)
    assert base_model.wait_for_progress(NAME, "", tmp_path, "fetching:5", 60)["mark"] == "fetching:6"
    assert clock.now() == began
    assert base_model.wait_for_progress(NAME, "", tmp_path, "fetching:6", 60)["mark"] == "fetching:6"
    assert clock.now() == began + 60


# --- the program --------------------------------------------------------------------------------------------


def test_the_disk_is_measured_before(tmp_path):
    program.check_room(NAME, tmp_path, needed=10**9, free=10**9)
    with pytest.raises(program.Trouble) as trouble:
        program.check_room(NAME, tmp_path, needed=15_200_000_000, free=3_000_000_000)
    assert f"{NAME} needs 15.2 GB more in {tmp_path}, and its disk has 3.0 GB free. Free some" in str(trouble.value)


def test_a_disk_that_became_full_is_told(tmp_path):
    rundir.write_json(tmp_path / "request.json", {"model": NAME, "revision": "", "cache": str(tmp_path)})
    words = program.Fetch(tmp_path).sentence(OSError(errno.ENOSPC, "No space left on device"))
    assert words.startswith(f"the disk of {tmp_path}/hub became full. Free some space there and run")


def test_the_last_word_finds_room_on_a_full_disk(tmp_path, monkeypatch):
    rundir.write_json(tmp_path / "request.json", {"model": NAME, "revision": "", "cache": str(tmp_path)})
    fetch, write_json = program.Fetch(tmp_path), rundir.write_json
    fetch.write()

    def full(path: pathlib.Path, data: Any) -> None:
        if (tmp_path / ".reserve").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, data)

    monkeypatch.setattr(rundir, "write_json", full)
    fetch.write(state="failed", error="full")
    assert rundir.read_json(tmp_path / "status.json")["error"] == "full"


def test_the_lock_is_left_to_one_that_fetches_and_awaited_from_one_that_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "LOCK_TIMEOUT", 0.2)
    with contextlib.ExitStack() as wanted, contextlib.ExitStack() as held:
        held.enter_context(rundir.locked(tmp_path / "lock"))
        rundir.write_json(tmp_path / "status.json", {"state": "fetching", "process": rundir.identity(os.getpid())})
        assert not program.take(wanted, tmp_path)
        rundir.write_json(tmp_path / "status.json", {"state": "failed", "process": rundir.identity(os.getpid())})
        with pytest.raises(SystemExit, match="lock is held by a process that does not fetch"):
            program.take(wanted, tmp_path)
        held.close()
        assert program.take(wanted, tmp_path)


# --- following it -------------------------------------------------------------------------------------------


class Away(Exception):
    pass


def test_a_lost_connection_is_ridden_out(monkeypatch):
    told: list[str] = []
    ask = mock.Mock(side_effect=[Away("no route"), Away("no route"), "here"])
    now = iter([100.0, 100.0, 102.0, 130.0, 140.0])  # when it was asked, and when that failed
    monkeypatch.setattr(retry.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: told.append(f"{seconds:.1f} s"))
    assert retry.retry_until_connected(ask, Away, 60, told.append) == "here"
    words = "; what runs there goes on; trying again (no route)"
    assert told == [f"no connection for 0:00{words}", "2.0 s", f"no connection for 0:30{words}", "9.5 s"]


def test_a_connection_that_stays_away_is_raised(monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    for timeout, asked in ((60, 2), (-1, 1)):
        now = iter([100.0, 175.0, 177.0, 190.0])  # what was waited for in vain counts; one try is no proof
        monkeypatch.setattr(retry.time, "monotonic", lambda now=now: next(now))
        ask, told = mock.Mock(side_effect=Away), []
        with pytest.raises(Away):
            retry.retry_until_connected(ask, Away, timeout, told.append)
        assert (ask.call_count, [words[:22] for words in told]) == (asked, ["no connection for 1:15"] * (asked - 1))


def seen(state: str, done: int = 0, rate: int | None = None, **more: Any) -> dict[str, Any]:
    return {"state": state, "bytes": done, "total_bytes": 15_200_000_000, "bytes_per_second": rate, "error": "",
            "described": "", "folder": "", "mark": f"{state}:{done}", "changed": False, **more}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (seen("fetching", 3_200_000_000, 85_000_000), "  pod-1: Acme/Tiny 3.2 of 15.2 GB, 85 MB/s, eta 2:21"),
        (seen("fetching", 3_200_000_000), "  pod-1: Acme/Tiny 3.2 of 15.2 GB"),
        (seen("fetching", 3_200_000, 0, total_bytes=6_300_000), "  pod-1: Acme/Tiny 3.2 of 6.3 MB"),
        (seen("fetching", total_bytes=0), "  pod-1: Acme/Tiny is asked for at the hub"),
    ],
)
def test_a_line_of_progress(found, words):
    assert plugin.line("pod-1", NAME, found) == words


class Task:
    """The action plugin with prepared answers of its module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any):
        self.told: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.answers = list(answers)
        monkeypatch.setattr(plugin, "tell", lambda text, **about: self.told.append(text))
        monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
        self.args = {"model": NAME, "home": "/hf", "python": "/env/bin/python", "program": "/fetch_model.py",
                     "hf_token": "hush", "unreachable_timeout": 60}  # fmt: skip

    def module(self, name: str, asked: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        assert name == "base_model"
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(self, check: bool = False) -> dict[str, Any]:
        task = mock.Mock(args=self.args, check_mode=check, async_val=0)
        action = plugin.ActionModule(task, mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock())
        action._execute_module = self.module
        return action.run(task_vars={"inventory_hostname": "pod-1"})


def test_a_fetch_is_started_and_followed(monkeypatch):
    task = Task(
        monkeypatch,
        seen("fetching", changed=True),
        AnsibleConnectionFailure("no route"),
        seen("fetching", 3_200_000_000, 85_000_000),
        seen("present", 15_200_000_000, folder="/hf/hub/x"),
    )
    made = task.run()
    assert (made["changed"], made["state"], made["folder"]) == (True, "present", "/hf/hub/x")
    assert task.told == [
        "  pod-1: Acme/Tiny 0.0 of 15.2 GB",
        "  pod-1: no connection for 0:00; what runs there goes on; trying again (no route)",
        "  pod-1: Acme/Tiny 3.2 of 15.2 GB, 85 MB/s, eta 2:21",
        "  pod-1: Acme/Tiny is there",
    ]
    assert task.asked[0] == {name: value for name, value in task.args.items() if name != "unreachable_timeout"}
    follow = {"model": NAME, "home": "/hf", "wait": plugin.WAIT}
    assert task.asked[-1] == {**follow, "since": "fetching:3200000000"}


def test_a_fetch_is_followed_until_the_model_is_described_and_goes_on(monkeypatch):
    task = Task(
        monkeypatch,
        seen("fetching", total_bytes=0, changed=True),
        seen("fetching", 3_200_000_000, 85_000_000, described="/hf/hub/x"),
    )
    task.args["until"] = "described"
    made = task.run()
    assert (made["changed"], made["state"], made["described"]) == (True, "fetching", "/hf/hub/x")
    assert task.told == ["  pod-1: Acme/Tiny is asked for at the hub"]
    assert "until" not in task.asked[0]
    already = Task(monkeypatch, seen("present", described="/hf/hub/x"))
    already.args["until"] = "described"
    assert already.run()["changed"] is False


def test_what_is_there_takes_one_question_and_no_word(monkeypatch):
    task = Task(monkeypatch, seen("present"))
    assert task.run()["changed"] is False
    assert task.told == []


def test_a_failure_ends_it(monkeypatch):
    task = Task(monkeypatch, seen("fetching", changed=True), seen("failed", failed=True, msg="it is gated."))
    made = task.run()
    assert (made["failed"], made["msg"]) == (True, "it is gated.")


def test_a_fetch_that_dies_is_started_again_three_times(monkeypatch):
    task = Task(monkeypatch, *[seen(state) for state in ("fetching", "absent") * 4])
    made = task.run()
    assert made["failed"]
    assert "the fetch of Acme/Tiny was killed 4 times on pod-1" in made["msg"]
    assert ["hf_token" in asked for asked in task.asked] == [True, False] * 4
    assert task.answers == []


def test_check_mode_asks_once(monkeypatch):
    task = Task(monkeypatch, seen("absent", changed=True))
    assert task.run(check=True)["changed"]
    assert task.told == []
