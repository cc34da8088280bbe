"""Files of a run directory that hold anything at all: what is odd is named in its run's row, and hides no other run."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import types
from collections.abc import Iterator
from typing import Any, Callable
from unittest import mock

import pytest
import rundir
import supervisor
from ansible.module_utils.lora_forge.controller import answers
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.planning.run_record import read_record
from ansible.module_utils.lora_forge.pods import claims, spending
from ansible.module_utils.lora_forge.results import status, verdict
from ansible.module_utils.lora_forge.trainer import launching, pruning, runs, stopping
from wire import load

ME = rundir.identity(os.getpid())
STATUS = {
    "state": "failed", "reason": {"kind": "crashed", "detail": "exit code 1"}, "supervisor": {**ME, "start": 1},
    "trainer": {**ME, "start": 1}, "lane": "GPU-1", "launch": "a", "starts": 1, "first_started_at": 1e9,
    "started_at": 1e9, "finished_at": 1e9, "exit_code": 1, "resumed_from": 0, "heartbeat": 5.0, "idle": 0.1,
    "schema_version": 1, "run_id": "witness-0", "seconds": 60.5, "vain": 1, "highest": 4,
}  # fmt: skip
RUN = {
    "run_id": "witness-0", "agent": "witness", "fingerprint": "f" * 64, "rehearsal": False, "backend": "tmux",
    "hosts": ["gpu-1"], "attach_command": "tmux attach -t x", "turn": 1, "lane": "GPU-1", "command": ["axolotl"],
    "look": "ssh gpu-1", "launch": "a", "evaluates": "witness-0",
}  # fmt: skip
COMPLETE = {"step": 4, "files": {"a.bin": 1}}
EVENTS: list[dict[str, Any]] = [
    {"event": "data", "time": 1e9, "examples": 4, "tokens": 9, "longer": 0, "dropped": 0, "untrainable": 0},
    {"event": "answers", "time": 1e9, "answered": 1, "asked": 3},
    {"event": "wandb", "time": 1e9, "mode": "online", "wanted": "online", "run": "a/b/c", "url": "https://x"},
    {"event": "begin", "time": 1e9, "uptime": 5.0, "step": 0, "planned": 8, "epoch": 0.0},
    {"event": "step", "time": 1e9, "uptime": 6.0, "step": 0, "planned": 8},
    {"event": "log", "time": 1e9, "step": 4, "planned": 8, "loss": 1.5, "epoch": 0.5, "tokens_per_second": 9.5},
    {"event": "eval", "time": 1e9, "step": 4, "planned": 8, "eval_loss": 1.5},
    {"event": "end", "time": 1e9, "step": 8, "planned": 8, "reason": None, "adapter": 4},
]  # fmt: skip
MISSING = object()
ODD: list[Any] = [
    MISSING, None, True, "x", "x" * 20_000, "\udcff\x1b[2J", -1, 10**15, 10**400, 1e300, float("nan"), [], [1, None],
    {}, {"a": [1]},
]  # fmt: skip
BYTES = {
    "deep": b"[" * 100_000, "deep-object": b'{"state":' * 100_000, "no-text": b"\xff\xfe\x00", "nothing": b"",
    "half": b'{"state": "run', "digits": b'{"starts": ' + b"9" * 6000 + b"}", "list": b"[1, 2]", "number": b"7",
}  # fmt: skip


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the ways to all values in a JSON value."""
    if way:
        yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*way, key))


def changed(right: Any, way: tuple[Any, ...], odd: Any) -> Any:
    made = copy.deepcopy(right)
    here = made
    for key in way[:-1]:
        here = here[key]
    if odd is MISSING:
        del here[way[-1]]
    else:
        here[way[-1]] = odd
    return made


def write(run: pathlib.Path, name: str, data: Any) -> None:
    lines = data if name == "metrics.jsonl" else [data]
    (run / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def make(run: pathlib.Path) -> pathlib.Path:
    """Make a run directory as a supervisor leaves it."""
    checkpoint = run / "output/checkpoint-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "a.bin").write_text("x")
    for name, data in {"status.json": STATUS, "run.json": RUN, "metrics.jsonl": EVENTS}.items():
        write(run, name, data)
    write(checkpoint, "complete.json", COMPLETE)
    return run


def told(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return what the controller takes of what trainer_info would say of the runs of a root."""
    listed = runs.observe_all(root, [{"uuid": "GPU-1", "use": 1}])
    answer = json.loads(json.dumps({"changed": False, "runs": [run.as_dict() for run in listed], "gpus": []}))
    held = answers.hold("trainer_info", answer, "host")
    assert "msg" not in held, held["msg"]
    return {run["run_id"]: run for run in held["runs"]}


def look(root: pathlib.Path) -> str:
    """Look at everything as a trainer's modules and supervisors do, and return what is said of the odd run."""
    odd = root / "runs/odd-0"
    found = told(root)
    assert found["good-0"]["detail"] == "crashed: exit code 1"
    others = {"odd-0": runs.progress_of(odd).as_dict()}
    seen = {"changed": False, "others": others, "over": [], **runs.observe(odd, "1:x").as_dict()}
    held = answers.hold("training_run_info", json.loads(json.dumps(seen)), "host")
    assert "msg" not in held, held["msg"]
    pruning.prune_plan(odd, 1)
    launching._next_turn(launching._noted_runs(odd.parent).values())
    stopping.stop(odd, 0, check=True)
    waiting = supervisor.Supervisor(root / "runs/good-0")
    waiting.spec["turn"] = 9
    for folder in waiting.launched_before():
        supervisor.in_queue(folder)
    owner = supervisor.Supervisor(odd)
    assert owner.status["starts"] + 1 > 0
    owner.began_at(0)
    owner.ended_well(0, 0)
    return str(found.get("odd-0", {"detail": "not listed"})["detail"])


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr(rundir, "run_processes", lambda *_: [])
    monkeypatch.setattr(runs.rundir, "run_processes", lambda *_: [])
    make(tmp_path / "runs/good-0")
    return tmp_path


def test_all_that_is_read_of_these_files_is_made_odd_here():
    assert STATUS.keys() == rundir._STATUS.keys()
    assert RUN.keys() == rundir._RUN.keys() | {"command"}
    assert {key for event in EVENTS for key in event} > {*rundir._NUMBERS, *rundir._COUNTS}


@pytest.mark.parametrize(
    ("name", "right"),
    [("status.json", STATUS), ("run.json", RUN), ("metrics.jsonl", EVENTS),
     ("output/checkpoint-4/complete.json", COMPLETE)],
)  # fmt: skip
def test_whatever_stands_in_a_field_costs_no_run_its_row(root, name, right, seen):
    wrong, run = [], make(root / "runs/odd-0")
    for way in places(right):
        values = [changed(right, way, odd) for odd in ODD]
        if name == "metrics.jsonl":
            values = [[line for value in values for line in value]]
        for value in values:
            write(run, name, value)
            try:
                look(root)
            except Exception as error:  # whatever it is; all are to be seen at once
                wrong.append(f"{name} {way}: {type(error).__name__} {error}"[:300])
    assert wrong == []
    seen(
        f"any of {len(ODD)} odd values in any field of {name}",
        "run directory",
        "its row says which file; the others are whole",
    )


PUT: dict[str, Callable[[pathlib.Path], Any]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    **{name: (lambda path, data=data: path.write_bytes(data)) for name, data in BYTES.items()},
}


@pytest.mark.parametrize("put", PUT)
@pytest.mark.parametrize("name", ["status.json", "run.json", "metrics.jsonl", "train.log", "stop"])
def test_what_is_no_such_file_is_named_in_the_row(root, name, put):
    run = make(root / "runs/odd-0")
    (run / name).unlink(missing_ok=True)
    PUT[put](run / name)
    detail = look(root)
    if name in ("status.json", "run.json") or (name == "metrics.jsonl" and put in ("folder", "pipe", "device")):
        assert name in detail


def test_what_another_user_closed_costs_no_other_run_its_row(root, monkeypatch):
    def closed(path: pathlib.Path) -> None:
        if path.name == "output" and path.parent.name == "odd-0":
            raise PermissionError(13, "Permission denied", str(path))

    make(root / "runs/odd-0")
    monkeypatch.setattr(runs.rundir, "last_complete", lambda path: closed(path) or 0)
    assert told(root).keys() == {"good-0", "odd-0"}
    assert "Permission denied" in told(root)["odd-0"]["detail"]


def test_a_folder_that_is_no_run_of_ours_is_passed_over(root, seen):
    for name in (".hidden", "a b", "\x1b[2J", "-x"):
        make(root / "runs" / name)
    assert told(root).keys() == {"good-0"}
    seen("folders with odd names among the runs of a host", "run directory", "passed over; the runs are listed")


def test_a_fault_of_ours_is_told_as_that_and_not_as_a_host_that_is_silent(monkeypatch):
    failed = mock.Mock()
    with report_errors(types.SimpleNamespace(fail_json=lambda **answer: failed(answer))):
        {}["steps"]
    answer = {"failed": True, **failed.call_args.args[0]}
    action = load("action_plugins/trainer_info").ActionModule(*[mock.Mock()] * 5, shared_loader_obj=None)
    action.host = "gpu-1"
    monkeypatch.setattr(action, "run_module", lambda *_: answers.hold("trainer_info", answer, "gpu-1"))
    said = verdict.silence("gpu-1", action.act({})["silent"])
    assert said.startswith("gpu-1: its answer to trainer_info is an error: KeyError: 'steps' (test_odd_files.py, line ")
    assert "fault of lora-forge" in said


NOW = 1.9e9
CLAIM = {
    "name": "lora-forge-ab12cd-pod-1-123456", "owner": "ab12cd", "host": "pod-1", "runs": ["witness-0"], "attempt": 1,
    "made_at": NOW - 9000, "wanted_at": NOW - 9000, "state": "ready", "pod_id": "p1", "usd_per_hour": 1.0,
    "asked_at": NOW - 8000, "deadline": NOW + 3600, "released_at": None, "billed_usd": None, "extra_usd": 0.0,
}  # fmt: skip
RELEASED = CLAIM | {"pod_id": "p2", "released_at": NOW - 100, "billed_usd": 2.0}
RECORD = {
    "trainer": "gpu", "lane": 0, "state": "launched", "final": False, "detail": "", "noted_at": NOW - 50,
    "hosts": {"gpu": {"at": NOW - 3, "started": True}}, "failures": {"gpu": {"at": NOW - 2, "message": "x"}},
    "notified": {"failed": NOW - 1}, "telling": {"stalled": "0a1b"}, "delivered_at": 0.0, "rendezvous": "r",
}  # fmt: skip
LOGGED = {"mode": "offline", "run": "a/b/c", "url": "https://x"}
NOTED = {"runs": [{"run_id": "witness-0", "trainer": "gpu", "agent": "witness", "logged": LOGGED}], "made_at": NOW}
SWEEP = {"runs": [{"run_id": "witness-0", "variant": {"lora_r": 8}, "label": "x"}], "agent": "witness", "made_at": NOW}
COST = {"run_id": "witness-1", "agent": "witness", "cost": {"usd": 1.0, "pods": ["p2"], "usd_by_clock": 1.0}}


def look_here(root: pathlib.Path) -> None:
    """Look at everything on the controller that a status and the watching of a pod look at."""
    ordered, caps, output = claims.Claims(root / "pods"), spending.Caps(5.0, 9.0), root / "output"
    snapshots = {"gpu": {"silent": "it is off", "changed": False}}
    status.ask_wandb(output, snapshots)
    asked = {"output": str(output), "pods": str(root / "pods"), "agents": None, "wandb": False, "busy": [],
             "outside": [], "checkout": str(pathlib.Path(__file__).resolve().parents[2]),
             "display": "table"}  # fmt: skip
    load("library/training_status").answer(asked | {"snapshots": snapshots}, True)
    record = read_record(output, "witness-0")
    record.failures_of(["gpu"], 0), record.hosts_of(["gpu"], 0), record.is_settled("failed")
    for claim in ordered.list_all():
        claims.active_runs(claim, NOW)
        assert not claim.deadline or claims.retention_notice(claim)
    claims.fetch_bills(ordered, lambda pod: 2.5, NOW, check=False)
    spending.quote(ordered, caps, 2.0, NOW, frozenset())
    for name in ("open", "closed"):
        spending.renew(ordered, name, NOW + 7200, NOW + 3600, caps, NOW)
    claims.list_account_pods([{"name": CLAIM["name"], "id": "p1", "status": "RUNNING"}], ordered.list_all(), "x", NOW)


@pytest.mark.parametrize(
    "name",
    ["pods/claims/open.json", "pods/claims/closed.json", "pods/spending.json", "output/runs/witness-0.json",
     "output/status.json", "output/sweeps/s.json", "output/adapters/witness/witness-1/manifest.json"],
)  # fmt: skip
def test_whatever_stands_in_a_file_of_the_controller_ends_no_command(root, name):
    (root / "pods").mkdir()
    (root / "pods/owner").write_text("ab12cd\n")
    files: dict[str, dict[str, Any]] = {
        "pods/claims/open.json": CLAIM | {"output": str(root / "output")},
        "pods/claims/closed.json": RELEASED | {"output": str(root / "output")},
        "pods/spending.json": {"claims": [RELEASED | {"name": "x"}], "caps": {"day": 5.0, "month": 9.0}},
        "output/runs/witness-0.json": RECORD,
        "output/status.json": NOTED,
        "output/sweeps/s.json": SWEEP,
        "output/adapters/witness/witness-1/manifest.json": COST,
    }

    def reset() -> None:
        for path, right in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            write(root, path, right)

    reset()
    look_here(root)
    wrong = []
    for way in places(files[name]):
        for odd in ODD[::2]:
            if (isinstance(odd, str) and way[-1] in ("host", "output")) or way == ("runs", 0):
                continue  # a name of a file
            reset()
            write(root, name, changed(files[name], way, odd))
            try:
                look_here(root)
            except Exception as error:  # whatever it is; all are to be seen at once
                wrong.append(f"{way} {str(odd)[:40]!r}: {type(error).__name__} {error}"[:300])
    assert wrong == []
