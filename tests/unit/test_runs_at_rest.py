"""A run on its trainer without a supervisor: what is seen, waited for, killed and kept. The clock is the test's own."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import stat
import subprocess
import threading
from typing import Any, Callable

import pytest
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import backend, launching, pruning, runs, saved, stopping
from wire import Rivals


class Clock:
    """A clock that goes on by sleeping alone. It reports each sleep to who wants to know, and endless waiting too.

    Attributes:
        now: Seconds since the machine was started.
        then: Called with the time after each sleep.
    """

    def __init__(self) -> None:
        self.now = 50_000.0
        self.then: Callable[[float], Any] = lambda now: None
        self.asked = 0

    def monotonic(self) -> float:
        self.asked += 1
        assert self.asked < 10_000, "somebody waits without sleeping"
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 60_000.0, "somebody sleeps without end"
        self.then(self.now)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for waiting in (runs, launching, stopping):
        monkeypatch.setattr(waiting, "time", made)
    monkeypatch.setattr(rundir, "uptime", made.monotonic)
    return made


@pytest.fixture
def run(tmp_path):
    """Make a run directory."""
    path = tmp_path / "runs" / "witness-0"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def process(run):
    """Provide a starter of idle processes, of the run or not, deaf to SIGTERM or not; they are killed at the end."""
    started = []

    def starter(of_the_run: bool = True, deaf: bool = False) -> subprocess.Popen[bytes]:
        env = {"PATH": os.environ["PATH"], **({rundir.MARKER: str(run)} if of_the_run else {})}
        deafen = (lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)) if deaf else None
        started.append(subprocess.Popen(["sleep", "3600"], env=env, preexec_fn=deafen))
        return started[-1]

    yield starter
    for one in started:
        one.kill()
        one.wait()


@pytest.fixture
def sent(monkeypatch):
    """Note every signal that is sent, with its process."""
    signals: list[tuple[int, int]] = []
    kill = os.kill

    def noted(pid: int, number: int) -> None:
        kill(pid, number)
        signals.append((pid, number))

    monkeypatch.setattr(os, "kill", noted)
    return signals


ME = rundir.identity(os.getpid())
GONE = {"pid": 1, "start": 1, "boot": rundir.boot_id()}
EARLIER = {**ME, "boot": "an earlier one"}


def say(run: pathlib.Path, **values: Any) -> None:
    """Write status.json as the supervisor does, for a run that this very process supervises, at a step."""
    noted = {"state": "running", "supervisor": ME, "trainer": ME, "heartbeat": 50_000.0, "idle": 0, "starts": 1}
    rundir.write_json(run / "status.json", {**noted, **values})


def tell(run: pathlib.Path, kind: str, **values: Any) -> None:
    rundir.append_event(run / "metrics.jsonl", kind, **{"step": 1, "planned": 10, **values})


def weights(
    run: pathlib.Path, header: Any = None, data: bytes = b"12345678", name: str = saved.WEIGHTS
) -> pathlib.Path:
    """Write a safetensors file by hand."""
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} if header is None else header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = run / "output" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


# --- what is seen -------------------------------------------------------------------------------------------------


def test_everything_that_is_seen_of_a_run(run, clock):
    say(run, heartbeat=49_990.0)
    rundir.write_json(
        run / "run.json", {"run_id": "witness-0", "agent": "witness", "backend": "tmux", "env": {"A": "b"}}
    )
    tell(run, "begin", step=0, uptime=100.0)
    tell(run, "log", step=4, loss=2.0, uptime=140.0)
    seen = runs.observe(run).as_dict()
    events = seen.pop("events")
    progress = seen.pop("progress")
    token = seen.pop("token")
    assert seen == {
        "state": "running",
        "detail": "",
        "status": rundir.read_json(run / "status.json"),
        "alive": True,
        "eta_seconds": 60.0,
        "checkpoint": {"step": 0, "files": []},
        "facts": {
            "run_id": "witness-0",
            "agent": "witness",
            "fingerprint": None,
            "rehearsal": None,
            "backend": "tmux",
            "attach_command": None,
            "hosts": None,
            "processes": None,
        },
        "silent_for": 10.0,
    }
    assert [event["event"] for event in events] == ["begin", "log"]
    assert (progress["step"], progress["loss"]) == (4, 2.0)
    assert token.partition(":")[0] == str((run / "metrics.jsonl").stat().st_size)


def test_nothing_is_seen_of_what_is_not_there(run):
    seen = runs.observe(run)
    assert (seen.state, seen.alive, seen.silent_for, seen.eta_seconds) == ("absent", False, None, None)
    assert runs.observe(run, "").events == []


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"heartbeat": 50_000.0 - 60}, "running"),
        ({"heartbeat": 50_000.0 - 61}, "stalled"),
        ({"idle": 1800}, "running"),
        ({"idle": 1801}, "stalled"),
        ({"idle": 1795, "heartbeat": 50_000.0 - 5}, "running"),
        ({"idle": 1795, "heartbeat": 50_000.0 - 6}, "stalled"),
    ],
)
def test_silence_and_idleness_become_a_stall(run, clock, values, state):
    say(run, **values)
    assert runs.observe(run).state == state
    assert runs.observe(run, stall_timeout=9999, heartbeat_timeout=9999).state == "running"


def test_a_run_without_a_word_on_its_idleness_is_not_idle(run, clock):
    say(run)
    status = rundir.read_json(run / "status.json")
    del status["idle"]
    rundir.write_json(run / "status.json", status)
    assert runs.observe(run, stall_timeout=0.5).state == "running"
    del status["heartbeat"]
    rundir.write_json(run / "status.json", status)
    assert runs.observe(run, stall_timeout=0.0, heartbeat_timeout=0.0).silent_for is None


def test_after_a_reboot_the_last_word_is_as_old_as_the_boot(run, clock):
    clock.now = 40.0
    say(run, heartbeat=9000.0, supervisor=EARLIER, trainer=EARLIER)
    assert runs.observe(run).silent_for == 40.0
    say(run, heartbeat=9000.0, supervisor=None, trainer=None)
    assert runs.observe(run).silent_for == 40.0


@pytest.mark.parametrize(
    ("backend_name", "stop", "state"),
    [("systemd", False, "running"), ("systemd", True, "stopped"), ("tmux", False, "stopped")],
)
def test_systemd_starts_again_what_nobody_asked_to_stop(run, clock, backend_name, stop, state):
    say(run, supervisor=GONE, trainer=GONE)
    rundir.write_json(run / "run.json", {"backend": backend_name})
    if stop:
        (run / "stop").touch()
    assert runs.observe(run).state == state


def test_what_systemd_cannot_start_is_not_waited_for(run, clock, monkeypatch):
    monkeypatch.setattr(backend, "restart_fault", lambda run_id: "systemd cannot start it: python is gone")
    say(run, supervisor=GONE, trainer=GONE)
    rundir.write_json(run / "run.json", {"backend": "systemd"})
    seen = runs.observe(run)
    assert seen.state == "stopped"
    assert "systemd cannot start it: python is gone; the same command resumes" in seen.detail
    say(run, state="failed", supervisor=GONE, trainer=GONE, reason={"kind": "crashed", "detail": "x"})
    assert runs.observe(run).detail == "crashed: x"


@pytest.mark.parametrize("content", [b"", bytes(300), b'{"state": "run'])
def test_a_run_whose_status_was_cut_to_nothing_is_not_absent(run, clock, content):
    (run / "status.json").write_bytes(content)
    seen = runs.observe(run)
    assert seen.state == "stopped"
    assert "status.json is no JSON" in seen.detail
    assert "the same command resumes" in seen.detail
    assert [one.run_id for one in runs.observe_all(run.parents[1], [])] == ["witness-0"]


def test_who_has_the_lane_is_named_and_since_when(run, clock):
    say(run, state="queued", lane="GPU-1,GPU-2")
    assert runs.observe(run).detail == "waits for lane GPU-1,GPU-2"
    for name, values in {
        "a-1": {"lane": "GPU-3"}, "b-1": {"lane": "GPU-2", "supervisor": GONE, "trainer": GONE},
        "c-1": {"lane": "GPU-2", "state": "queued"}, "d-1": {"lane": "GPU-2", "started_at": 1_764_000_000.0},
    }.items():  # fmt: skip
        (run.parent / name).mkdir()
        say(run.parent / name, **values)
    words = "waits for lane GPU-1,GPU-2: d-1 has it since 2025-11-24 16:00 UTC"
    assert runs.observe(run).detail == words
    say(run.parent / "d-1", lane="GPU-2", started_at="x")
    assert runs.observe(run).detail == words.partition(" since")[0]


@pytest.mark.parametrize(("supervisor", "trainer", "alive"), [(ME, GONE, True), (GONE, ME, True), (GONE, GONE, False)])
def test_a_run_is_alive_with_either_process(run, supervisor, trainer, alive):
    say(run, supervisor=supervisor, trainer=trainer)
    assert runs.observe(run).alive is alive


def test_only_what_is_new_is_told(run, clock):
    say(run)
    tell(run, "begin", step=0)
    first = runs.observe(run).token
    tell(run, "log", loss=1.0)
    assert [event["event"] for event in runs.observe(run, first).events] == ["log"]
    size = (run / "metrics.jsonl").stat().st_size
    assert runs.observe(run, f"{size}:x").events == []
    for token in (f"{size + 1}:x", "0:x", ":x", "-1:x", ""):  # of another file, or none
        assert len(runs.observe(run, token).events) == 2, token


def test_a_token_changes_with_what_is_news_and_not_with_a_growing_number(run, clock):
    say(run, heartbeat=49_900.0)
    tokens = [runs.observe(run).token]
    clock.now += 10
    assert runs.observe(run).token == tokens[0]  # «the supervisor has been silent for 110 s»
    for change in ({}, {"starts": 2}, {"state": "queued", "lane": "GPU-1"}):
        say(run, heartbeat=clock.now, **change)
        tokens.append(runs.observe(run).token)
    tell(run, "begin")
    tokens.append(runs.observe(run).token)
    assert len(set(tokens)) == len(tokens)
    assert {len(token.partition(":")[2]) for token in tokens} == {12}


def test_there_is_an_end_in_sight_only_while_it_runs(run, clock):
    tell(run, "begin", step=0, uptime=100.0)
    tell(run, "log", step=4, loss=2.0, uptime=140.0)
    say(run, idle=99_999)
    assert runs.observe(run).state == "stalled"
    assert runs.observe(run).eta_seconds is None


def test_a_failure_brings_the_end_of_its_log(run, clock):
    say(run, state="failed", supervisor=GONE, trainer=GONE, reason={"kind": "crash", "detail": "x"})
    assert runs.observe(run).log_tail is None
    (run / "train.log").write_bytes(b"\xff" + b"a" * runs.LOG_TAIL + b"b")
    assert runs.observe(run).log_tail == "a" * (runs.LOG_TAIL - 1) + "b"
    (run / "train.log").write_bytes(b"short \xff")
    assert runs.observe(run).log_tail == "short \ufffd"
    say(run)
    assert runs.observe(run).log_tail is None


def test_a_run_that_says_finished_is_held_against_its_weights(run, clock):
    done = {"state": "finished", "supervisor": GONE, "trainer": GONE, "exit_code": 0}
    say(run, **done)
    tell(run, "begin", step=0)
    tell(run, "log", step=10, loss=1.0)
    tell(run, "end", step=10)
    assert "adapter_model.safetensors is missing" in runs.observe(run).detail
    weights(run)
    assert (runs.observe(run).state, runs.observe(run).detail) == ("finished", "")


def test_every_run_of_a_trainer_with_its_gpu(tmp_path, clock):
    gpus = [{"uuid": "GPU-1", "use": 93}, {"uuid": "GPU-2", "use": 7}]
    lanes = {"mayor-1": "GPU-2", "witness-1": "GPU-9,GPU-1", "crew-1": "cpu", "deacon-1": "GPU-1"}
    for name, lane in lanes.items():
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        say(run, lane=lane, **({"state": "stopped"} if name == "deacon-1" else {}))
    rundir.write_json(tmp_path / "runs/crew-1/run.json", {"agent": "gastown"})
    (tmp_path / "runs/staged-1").mkdir()
    seen = runs.observe_all(tmp_path, gpus)
    assert [(run.run_id, run.agent, run.gpu and run.gpu["uuid"], run.gpu_busy) for run in seen] == [
        ("crew-1", "gastown", None, None),
        ("deacon-1", "deacon", "GPU-1", None),  # it holds none any more
        ("mayor-1", "mayor", "GPU-2", 7),
        ("witness-1", "witness", "GPU-1", 93),
    ]
    for run in seen:
        assert not {"events", "log_tail", "token"} & set(run.as_dict())
        assert run.status["lane"] == lanes[run.run_id]
    say(tmp_path / "runs/mayor-1", lane="GPU-2", idle=100)
    states = [run.state for run in runs.observe_all(tmp_path, gpus, stall_timeout=50)]
    assert states == ["running", "stopped", "stalled", "running"]
    say(tmp_path / "runs/mayor-1", lane="GPU-2", idle=1801)
    assert [run.state for run in runs.observe_all(tmp_path, gpus)][2] == "stalled"


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (None, b"12345678", None),
        (None, b"1234567", "w is cut off"),
        (None, b"123456789", "w is cut off"),
        ({"__metadata__": {"format": "pt"}}, b"", "w holds no tensors"),
        ({"b": {"data_offsets": [4, 8]}, "a": {"data_offsets": [0, 4]}, "__metadata__": {}}, b"12345678", None),
        ({}, b"", "w holds no tensors"),
        ([], b"", "w cannot be read"),
        ({"a": 7}, b"", "w cannot be read"),
        ({"a": {}}, b"", "w cannot be read"),
        (b"{", b"", "w cannot be read"),
        (b"\xff", b"", "w cannot be read"),
    ],
)
def test_weights_at_first_sight(run, header, data, said):
    assert saved.weights_defect(weights(run, header, data, "w")) == said


def test_weights_whose_header_would_be_too_long(run, monkeypatch):
    path = weights(run, name="w")
    monkeypatch.setattr(saved, "MAX_HEADER", int.from_bytes(path.read_bytes()[:8], "little"))
    assert saved.weights_defect(path) is None
    monkeypatch.setattr(saved, "MAX_HEADER", saved.MAX_HEADER - 1)
    assert saved.weights_defect(path) == "w cannot be read"
    assert saved.weights_defect(run / "nothing") == "nothing is missing"
    assert saved.weights_defect(run) == "witness-0 cannot be read"  # a folder


def checkpoint(run: pathlib.Path, step: int, whole: bool = True) -> pathlib.Path:
    path = run / "output" / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    (path / "b.bin").write_bytes(b"12345")
    (path / "deep/a.bin").write_bytes(b"123")
    if whole:
        rundir.mark_complete(path, step)
    return path


def test_the_newest_checkpoint_that_is_whole(run):
    assert saved.newest_checkpoint(run) == {"step": 0, "files": []}
    for step, whole in ((5, True), (10, True), (15, False)):
        checkpoint(run, step, whole)
    names = ("b.bin", "deep/a.bin", rundir.COMPLETE)
    assert saved.newest_checkpoint(run) == {"step": 10, "files": [f"output/checkpoint-10/{name}" for name in names]}


# --- what is waited for -------------------------------------------------------------------------------------------


def test_without_news_the_wait_is_as_long_as_was_said(run, clock):
    say(run)
    token = runs.observe(run).token
    assert runs.wait_for_news(run, token, 30, heartbeat_timeout=1e9, stall_timeout=1e9).token == token
    assert clock.now == 50_030.0


def test_news_of_a_run_that_goes_on_bring_what_follows_soon(run, clock):
    say(run)
    token = runs.observe(run).token

    def later(now: float) -> None:
        if now in (50_003.0, 50_004.0, 50_006.0):
            tell(run, "log", step=int(now - 50_000), loss=1.0)

    clock.then = later
    seen = runs.wait_for_news(run, token, 30)
    assert [event["step"] for event in seen.events] == [3, 4]
    assert clock.now == 50_005.0


def test_news_just_before_the_time_is_up_prolong_nothing(run, clock):
    say(run)
    token = runs.observe(run).token
    clock.then = lambda now: tell(run, "begin") if now == 50_002.0 else None
    assert len(runs.wait_for_news(run, token, 3).events) == 1
    assert clock.now == 50_003.0


@pytest.mark.parametrize(
    ("values", "until"),
    [
        ({"state": "queued", "lane": "x"}, 50_002.0),
        ({"starts": 2}, 50_002.0),
        ({"state": "stopped"}, 50_000.0),
        ({"idle": 9999}, 50_000.0),
    ],
)
def test_news_of_what_waits_or_runs_are_gathered_and_others_told_at_once(run, clock, values, until):
    say(run)
    token = runs.observe(run).token
    say(run, **values)
    assert runs.wait_for_news(run, token, 30).token != token
    assert clock.now == until


def test_the_limits_hold_while_one_waits(run, clock):
    say(run, idle=100)
    assert runs.wait_for_news(run, "", 30, stall_timeout=50.0).state == "stalled"
    assert runs.wait_for_news(run, "", 30, heartbeat_timeout=-1.0).detail.startswith("the supervisor")


# --- start --------------------------------------------------------------------------------------------------------

LAUNCH = {"command": ["true"], "environment": {"A": 1}, "stop_timeout": 20, "processes": 2, "prepared": "/prepared"}


@pytest.fixture
def supervisor(run, monkeypatch):
    """Provide a backend whose supervisor says at once that it is there. It holds what it was started with."""
    started: list[Any] = []

    def starter(choice: backend.Choice, run_id: str, run_dir: pathlib.Path, stop_timeout: int) -> str:
        started.append((choice.backend, run_id, run_dir, stop_timeout))
        noted = rundir.read_json(run_dir / "run.json")
        assert "attach_command" not in noted  # it is not known yet
        say(run_dir, launch=noted["launch"], supervisor=GONE, trainer=GONE)
        return "tail -f it"

    monkeypatch.setattr(backend, "probe_host", lambda wanted: backend.Host(False, False, False, False, False))
    monkeypatch.setattr(backend, "start", starter)
    return started


def launch(run: pathlib.Path, secrets: Any = None, check: bool = False, **changes: Any) -> dict[str, Any]:
    return launching.start(run, launching.Launch.from_dict({**LAUNCH, **changes}), secrets or {}, "process", check)


def test_a_launch_leaves_everything_that_a_supervisor_needs(run, clock, supervisor):
    (run / "stop").touch()
    (run / "env").write_text("OLD=1\n")
    message = backend.choose("process", backend.probe_host("process")).message
    assert launch(run, {"WANDB_API_KEY": "k", "HF_TOKEN": "t"}, facts={"agent": "witness"}) == {
        "changed": True,
        "backend": "process",
        "attach_command": "tail -f it",
        "message": message,
    }
    assert supervisor == [("process", "witness-0", run, 20)]
    noted = rundir.read_json(run / "run.json")
    assert len(noted.pop("launch")) == 32
    assert noted == {
        "run_id": "witness-0",
        "agent": "witness",
        "lane": "cpu",
        "command": ["true"],
        "env": {"A": "1"},
        "stop_timeout": 20,
        "processes": 2,
        "answer_command": [],
        "prepared": "/prepared",
        "schema_version": rundir.SCHEMA_VERSION,
        "lane_dir": launching.LANE_DIR,
        "backend": "process",
        "turn": 1,
        "attach_command": "tail -f it",
    }
    assert (run / "env").read_text() == "HF_TOKEN=t\nWANDB_API_KEY=k\n"
    assert stat.S_IMODE((run / "env").stat().st_mode) == 0o600
    assert not (run / "stop").exists()


def several(*paths: pathlib.Path, within: float = 30, check: bool = False) -> list[dict[str, Any]]:
    asked = [{**LAUNCH, "run_dir": str(path)} for path in paths]
    return launching.start_all(asked, {paths[0].name: {"HF_TOKEN": "t", "EMPTY": ""}}, "process", within, check)


@pytest.fixture
def three(run) -> list[pathlib.Path]:
    made = [run.parent / name for name in ("c-1", "a-1", "b-1")]
    for path in made:
        path.mkdir()
    return made


def test_runs_that_are_started_together_have_turns_in_their_order(three, clock, supervisor):
    assert [answer["changed"] for answer in several(*three, check=True)] == [True] * 3
    assert supervisor == []
    assert [(answer["run_id"], answer["changed"]) for answer in several(*three)] == [
        ("c-1", True), ("a-1", True), ("b-1", True)
    ]  # fmt: skip
    assert [rundir.read_json(path / "run.json")["turn"] for path in three] == [1, 2, 3]
    assert [(path / "env").exists() for path in three] == [True, False, False]
    assert (three[0] / "env").read_text() == "HF_TOKEN=t\n"
    for path in three:
        say(path)
    assert [answer["changed"] for answer in several(*three)] == [False] * 3


def test_what_goes_wrong_with_one_keeps_no_other_from_its_start(three, clock, supervisor, monkeypatch):
    (three[0] / "run.json").mkdir()
    write = launching._write_secrets

    def broken(path: pathlib.Path, secrets: Any) -> None:
        if path.parent == three[1]:
            raise KeyError("ours")
        write(path, secrets)

    monkeypatch.setattr(launching, "_write_secrets", broken)
    first, second, third = several(*three)
    assert (first["changed"], second["changed"], third["changed"]) == (False, False, True)
    assert first["refused"].startswith("Is a directory")
    assert "KeyError: 'ours' (test_runs_at_rest.py, line " in second["refused"]
    assert "a fault of lora-forge" in second["refused"]
    assert [one[1] for one in supervisor] == ["b-1"]


def test_one_that_does_not_come_up_leaves_the_others_to_the_next_call(three, clock, supervisor, monkeypatch):
    starter = backend.start
    monkeypatch.setattr(
        backend, "start", lambda choice, run_id, *rest: run_id == "c-1" or starter(choice, run_id, *rest)
    )
    told = several(*three, within=10)
    assert [answer["run_id"] for answer in told] == ["c-1"]
    assert "did not come up within 20 s" in told[0]["refused"]
    assert [answer["changed"] for answer in several(*three[1:], within=0)] == [True], "the first one always is begun"


def test_without_secrets_an_old_file_of_them_goes(run, clock, supervisor):
    (run / "env").write_text("OLD=1\n")
    launch(run, lane_dir="/elsewhere")
    assert not (run / "env").exists()
    assert rundir.read_json(run / "run.json")["lane_dir"] == "/elsewhere"


def test_every_launch_has_a_mark_of_its_own(run, clock, supervisor):
    marks = []
    for _ in range(2):
        launch(run)
        marks.append(rundir.read_json(run / "run.json")["launch"])
    assert marks[0] != marks[1]


def test_turns_are_counted_over_all_runs_of_a_trainer(run, clock, supervisor):
    for name, noted in (("a", {"turn": 7}), ("b", {}), ("c", {"turn": None})):
        (run.parent / name).mkdir()
        rundir.write_json(run.parent / name / "run.json", noted)
    launch(run)
    assert rundir.read_json(run / "run.json")["turn"] == 8


@pytest.mark.parametrize(("state", "turn"), [("queued", 3), ("running", 3), ("stopped", 10), ("failed", 10)])
def test_who_was_cut_off_keeps_its_turn(run, clock, supervisor, state, turn):
    (run.parent / "other").mkdir()
    rundir.write_json(run.parent / "other/run.json", {"turn": 9})
    rundir.write_json(run / "run.json", {"turn": 3})
    say(run, state=state, supervisor=GONE, trainer=GONE)
    launch(run)
    assert rundir.read_json(run / "run.json")["turn"] == turn


def test_two_launches_at_once_do_not_get_one_turn(tmp_path, clock, supervisor, monkeypatch):
    """The second one counts when the first one has noted its own."""
    paths = [tmp_path / "runs" / name for name in ("a-1", "b-1")]
    for path in paths:
        path.mkdir(parents=True)
    noting, rivals = threading.Event(), Rivals(monkeypatch)
    write = rundir.write_json

    def note(path: pathlib.Path, data: Any, *rest: Any) -> None:
        if path.name == "run.json" and path.parent.name == "a-1" and not noting.is_set():
            noting.set()
            rivals.meet()
        write(path, data, *rest)

    monkeypatch.setattr(rundir, "write_json", note)
    first = threading.Thread(target=launch, args=(paths[0],))
    first.start()
    assert noting.wait(60)
    launch(paths[1])
    first.join()
    assert [rundir.read_json(path / "run.json")["turn"] for path in paths] == [1, 2]


@pytest.mark.parametrize("key", ["attach_command", "look"])  # as runs of earlier versions have it
def test_what_lives_or_is_done_is_attached_to(run, clock, supervisor, key):
    rundir.write_json(run / "run.json", {"backend": "tmux", key: "tmux attach"})
    there = {"changed": False, "backend": "tmux", "attach_command": "tmux attach", "message": ""}
    for values in ({}, {"state": "queued", "lane": "x"}, {"idle": 99_999}, {"supervisor": GONE, "state": "failed"}):
        say(run, **values)
        assert launch(run) == launch(run, check=True) == there, values
    say(run, state="finished", supervisor=GONE, trainer=GONE, exit_code=0)
    tell(run, "begin", step=0)
    tell(run, "log", step=10, loss=1.0)
    weights(run)
    assert launch(run) == there
    assert supervisor == []


def test_a_prediction_names_the_backend_and_touches_nothing(run, clock, supervisor):
    (run / "stop").touch()
    message = backend.choose("process", backend.probe_host("process")).message
    predicted = {"changed": True, "backend": "process", "attach_command": "", "message": message}
    assert launch(run, {"A": "b"}, check=True) == predicted
    assert [path.name for path in run.iterdir()] == ["stop"]
    say(run, state="stopped")  # its supervisor is about to go
    assert launch(run, check=True)["changed"] is True
    assert clock.now == 50_000.0


@pytest.mark.parametrize(
    "values", [{"state": "stopped"}, {"state": "stopping"}, {"state": "failed"}, {"state": "finished", "exit_code": 1}]
)
def test_a_supervisor_that_is_about_to_go_is_waited_for(run, clock, supervisor, values):
    say(run, **values)

    def go(now: float) -> None:
        if now > 50_001.0:
            say(run, supervisor=GONE, trainer=GONE, state="stopped")

    clock.then = go
    assert launch(run)["changed"] is True
    assert len(supervisor) == 1


def test_and_no_longer_than_its_trainer_may_take(run, clock, supervisor):
    say(run, state="failed")
    assert launch(run)["changed"] is False
    assert clock.now == pytest.approx(50_025.0, abs=0.1)  # 5 s more than stop_timeout


@pytest.mark.parametrize("log", [None, "x" * 999 + "\nboom"])
def test_a_supervisor_that_does_not_come_up(run, clock, supervisor, monkeypatch, log):
    monkeypatch.setattr(backend, "start", lambda *given: "tail -f it")
    say(run, launch="an earlier one", supervisor=GONE, trainer=GONE)
    if log:
        (run / "supervisor.log").write_text(log)
    with pytest.raises(UserError) as error:
        launch(run)
    said = f"the supervisor of witness-0 did not come up within 20 s (process). {log[-1000:] if log else ''}"
    assert str(error.value) == said
    assert clock.now == pytest.approx(50_020.0, abs=0.2)


def test_a_supervisor_that_takes_its_time(run, clock, supervisor, monkeypatch):
    monkeypatch.setattr(backend, "start", lambda *given: "tail -f it")

    def come(now: float) -> None:
        if now > 50_019.0:
            say(run, launch=rundir.read_json(run / "run.json")["launch"])

    clock.then = come
    assert launch(run)["changed"] is True


# --- stop and remove ----------------------------------------------------------------------------------------------


def test_what_died_by_itself_is_stopped_for_good(run, clock):
    say(run, supervisor=GONE, trainer=GONE)
    (run / "env").write_text("A=b\n")
    assert stopping.stop(run, 5, check=True) is True
    assert sorted(path.name for path in run.iterdir()) == ["env", "status.json"]
    assert stopping.stop(run, 5) is True
    assert sorted(path.name for path in run.iterdir()) == ["status.json", "stop"]
    assert stopping.stop(run, 5) is False


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_what_ended_is_not_stopped(run, clock, state):
    say(run, state=state, supervisor=GONE, trainer=GONE)
    assert stopping.stop(run, 5) is False
    assert not (run / "stop").exists()


def test_what_was_never_started_is_not_stopped(run, clock):
    assert stopping.stop(run, 5) is False
    assert list(run.iterdir()) == []


def test_a_stop_during_a_launch_finds_what_was_launched(run, clock, monkeypatch, process, sent):
    """Before, it said that nothing runs, and then it was there."""
    rivals, answers = Rivals(monkeypatch), []
    told = process(of_the_run=False)
    other = threading.Thread(target=lambda: answers.append(stopping.stop(run, 5)))

    def starter(choice: backend.Choice, run_id: str, run_dir: pathlib.Path, stop_timeout: int) -> str:
        other.start()
        rivals.meet()  # the stop has come as far as the lock
        say(run, launch=rundir.read_json(run / "run.json")["launch"], supervisor=rundir.identity(told.pid))
        return "tail -f it"

    monkeypatch.setattr(backend, "probe_host", lambda wanted: backend.Host(False, False, False, False, False))
    monkeypatch.setattr(backend, "start", starter)
    clock.then = lambda now: (told.pid, signal.SIGTERM) in sent and told.wait(60)
    launch(run)
    other.join(60)
    assert answers == [True]
    assert told.wait(60) == -signal.SIGTERM
    assert (run / "stop").exists()


def test_a_launch_that_does_not_end_is_named_to_who_would_stop_it(run, clock, monkeypatch):
    monkeypatch.setattr(stopping, "LAUNCH_WITHIN", -5.0)
    with rundir.locked(run / "launch.lock"), pytest.raises(UserError, match="a launch of witness-0 has been under way"):
        stopping.stop(run, 5)


@pytest.mark.parametrize(
    ("held", "what"), [("witness-0/launch.lock", "another launch of witness-0"), ("", "a launch of another run")]
)
def test_a_launch_that_waits_for_another_one_names_it_and_comes_to_an_end(run, clock, monkeypatch, held, what):
    monkeypatch.setattr(launching, "LAUNCH_WITHIN", -1e6)
    monkeypatch.setattr(backend, "probe_host", lambda wanted: backend.Host(False, False, False, False, False))
    lock = run.parent / held
    words = rf"^{what} has been under way for .* s, and holds {lock}\. «fuser {lock}» tells its process"
    with rundir.locked(lock), pytest.raises(UserError, match=words):
        launch(run)
    assert not (run / "run.json").exists()


def test_a_supervisor_is_told_and_its_secrets_go(run, clock, process, sent):
    told, trainer = process(of_the_run=False), process(of_the_run=False)
    say(run, supervisor=rundir.identity(told.pid), trainer=rundir.identity(trainer.pid))
    (run / "env").write_text("A=b\n")
    assert stopping.stop(run, 5, check=True) is True
    assert told.poll() is None
    assert not (run / "stop").exists()
    clock.then = lambda now: (told.pid, signal.SIGTERM) in sent and told.wait(60)
    assert stopping.stop(run, 5) is True
    assert told.wait(60) == -signal.SIGTERM
    assert trainer.poll() is None  # its supervisor stops it, with a checkpoint
    assert (run / "stop").exists()
    assert not (run / "env").exists()


def test_a_trainer_without_a_supervisor_is_told_itself(run, clock, process, sent):
    trainer = process()
    say(run, supervisor=GONE, trainer=rundir.identity(trainer.pid))
    (run / "env").write_text("A=b\n")
    clock.then = lambda now: (trainer.pid, signal.SIGTERM) in sent and trainer.wait(60)
    assert stopping.stop(run, 5) is True
    assert trainer.wait(60) == -signal.SIGTERM
    assert not (run / "env").exists()


def test_a_trainer_that_does_not_hear_is_killed_once_its_time_is_up(run, clock, process, sent):
    trainer = process(deaf=True)
    say(run, supervisor=GONE, trainer=rundir.identity(trainer.pid))
    lived: list[float] = []

    def look(now: float) -> None:
        if (trainer.pid, signal.SIGKILL) in sent:
            trainer.wait(60)
        elif trainer.poll() is None:
            lived.append(now)

    clock.then = look
    assert stopping.stop(run, 5) is True
    assert trainer.wait(60) == -signal.SIGKILL
    assert max(lived) >= 50_004.9


def test_what_is_left_of_a_trainer_is_killed_at_once(run, clock, process, sent):
    workers = [process(deaf=True), process(deaf=True)]
    say(run, supervisor=GONE, trainer=GONE)
    clock.then = lambda now: [one.wait(60) for one in workers if (one.pid, signal.SIGKILL) in sent]
    assert stopping.stop(run, 1000) is True
    assert [worker.wait(60) for worker in workers] == [-signal.SIGKILL] * 2
    assert clock.now < 50_030.0


def test_while_its_supervisor_lives_nothing_is_killed(run, clock, process):
    told, worker = process(of_the_run=False, deaf=True), process(deaf=True)
    say(run, supervisor=rundir.identity(told.pid), trainer=GONE)
    with pytest.raises(UserError, match=r"^witness-0 still runs 35 s after it was told to stop$"):
        stopping.stop(run, 5)
    assert worker.poll() is None
    assert clock.now == pytest.approx(50_035.0, abs=0.3)


def test_a_run_that_is_removed_is_stopped_first(run, clock, process, sent, monkeypatch):
    forgotten: list[str] = []
    monkeypatch.setattr(backend, "remove_unit", forgotten.append)
    worker = process(deaf=True)
    say(run, supervisor=GONE, trainer=rundir.identity(worker.pid))
    assert stopping.remove(run, 5, check=True) is True
    assert (run.exists(), worker.poll(), forgotten) == (True, None, [])
    clock.then = lambda now: (worker.pid, signal.SIGKILL) in sent and worker.wait(60)
    assert stopping.remove(run, 5) is True
    assert (run.exists(), worker.wait(60), forgotten) == (False, -signal.SIGKILL, ["witness-0"])
    assert stopping.remove(run, 5) is stopping.remove(run, 5, check=True) is False
    assert forgotten == ["witness-0"]


# --- which checkpoints are kept, and why ----------------------------------------------------------------------------


def test_every_checkpoint_with_why_it_stays_or_goes(run):
    for step, loss in ((10, 2.0), (20, 1.0), (30, "nan"), (40, 1.0)):
        tell(run, "eval", step=step, eval_loss=loss)
    tell(run, "log", step=41, loss=0.1)
    paths = {step: checkpoint(run, step, step != 35) for step in (5, 10, 25, 35, 40, 45)}
    aside = run / "output/incomplete-checkpoint-7-1"
    (aside / "deep").mkdir(parents=True)
    (aside / "deep/a.bin").write_bytes(b"1234")
    rows, reason = pruning.prune_plan(run, 2)
    assert reason is None
    size = 8 + (paths[5] / rundir.COMPLETE).stat().st_size

    def row(step: int, loss: Any, keep: bool, why: str, bytes_: int = size + 1) -> dict[str, Any]:
        return {"path": str(paths[step]), "step": step, "eval_loss": loss, "bytes": bytes_, "keep": keep, "why": why}

    assert rows == [
        row(5, None, False, "", size),
        row(10, 2.0, False, "number 4 by eval loss"),
        row(25, 1.0, False, "number 3 by eval loss"),
        row(35, 1.0, False, f"no {rundir.COMPLETE}: its writing was cut off", 8),
        row(40, 1.0, True, "number 2 by eval loss"),
        row(45, 1.0, True, "the newest whole one"),
        {"path": str(aside), "step": None, "eval_loss": None, "bytes": 4, "keep": False, "why": "set aside: not whole"},
    ]


def test_without_an_evaluation_only_the_newest_whole_one_stays(run):
    for step in (1, 2):
        checkpoint(run, step)
    assert [(row["step"], row["keep"], row["why"]) for row in pruning.prune_plan(run, 5)[0]] == [
        (1, False, ""),
        (2, True, "the newest whole one"),
    ]


def test_the_checkpoint_whose_adapter_is_the_best_so_far_stays(run):
    """Evaluated at 100 only: by their loss alone the later ones would go before it."""
    for step in (100, 130, 160, 195):
        folder = checkpoint(run, step)
    rundir.append_event(run / "metrics.jsonl", "begin", step=0, planned=200)
    rundir.append_event(run / "metrics.jsonl", "eval", step=100, planned=200, eval_loss=0.5)
    rundir.write_json(folder / "trainer_state.json", {"best_global_step": 100})
    rundir.mark_complete(folder, 195)
    rows, _ = pruning.prune_plan(run, 2)
    assert [(row["step"], row["keep"], row["why"]) for row in rows] == [
        (100, True, "the best evaluated one"),
        (130, False, "number 3 by eval loss"),
        (160, True, "number 2 by eval loss"),
        (195, True, "the newest whole one"),
    ]


def test_nothing_is_pruned_where_nothing_is(run):
    assert pruning.prune_plan(run, 1) == ([], None)
    checkpoint(run, 3, whole=False)
    assert [row["keep"] for row in pruning.prune_plan(run, 1)[0]] == [False]


def test_a_run_with_any_process_is_not_pruned(run, process):
    checkpoint(run, 3)
    say(run, supervisor=GONE)
    assert pruning.prune_plan(run, 1)[1] is None
    process()
    assert pruning.prune_plan(run, 1) == ([], "it is alive")


def test_a_run_whose_supervisor_lives_is_not_pruned(run):
    checkpoint(run, 3)
    say(run)
    assert pruning.prune_plan(run, 1) == ([], "it is alive")


def test_a_failed_second_attempt_among_all_runs_comes_without_its_log(tmp_path, clock):
    run = tmp_path / "runs/witness-0a-2"
    run.mkdir(parents=True)
    say(run, state="failed", supervisor=GONE, trainer=GONE)
    (run / "train.log").write_text("boom")
    assert runs.observe(run).log_tail == "boom"
    [seen] = runs.observe_all(tmp_path, [])
    assert (seen.run_id, seen.agent, seen.state) == ("witness-0a-2", "witness", "failed")
    assert "log_tail" not in seen.as_dict()


def test_who_waits_is_told_only_what_is_new(run, clock):
    say(run)
    tell(run, "begin", step=0)
    token = runs.observe(run).token
    clock.then = lambda now: tell(run, "log", loss=1.0) if now == 50_001.0 else None
    assert [event["event"] for event in runs.wait_for_news(run, token, 30).events] == ["log"]


@pytest.mark.parametrize(("check", "word"), [(True, "would be freed"), (False, "freed")])
def test_what_is_shown_of_checkpoints(check, word):
    rows = [
        {"path": "/r/output/checkpoint-4", "step": 4, "eval_loss": 7.51, "bytes": 5_240_000, "keep": False, "why": "n"},
        {"path": "/r/output/checkpoint-6", "step": 6, "eval_loss": 7.5, "bytes": 5_240_000, "keep": True, "why": "b"},
        {"path": "/r/output/x", "step": None, "eval_loss": None, "bytes": 10_000, "keep": False, "why": "w"},
    ]
    shown = pruning.prune_table("witness-0", rows, None, check)
    assert shown["rows"] == [
        ["checkpoint-4", 4, "7.5100", 5.2, "goes", "n"],
        ["checkpoint-6", 6, "7.5000", 5.2, "stays", "b"],
        ["x", "–", "–", 0.0, "goes", "w"],
    ]
    assert len(shown["columns"]) == 6
    assert shown["lines"] == [f"  witness-0: 5.2 MB {word}"]


def test_what_is_shown_of_a_run_whose_checkpoints_are_left_alone():
    shown = pruning.prune_table("witness-0", [], "it is alive", False)
    assert (shown["rows"], shown["lines"]) == ([], ["  witness-0: left alone: it is alive"])


# --- what was brought for a start -------------------------------------------------------------------------------------


def lay(folder: pathlib.Path, text: str, step: int = 0) -> None:
    """Lay out what a launch brings; with a step also a whole checkpoint, and the events before it."""
    (folder / "programs").mkdir(parents=True, exist_ok=True)
    (folder / "programs/gang.py").write_text(text)
    (folder / "axolotl.yml").write_text(text)
    if step:
        (folder / f"output/checkpoint-{step}").mkdir(parents=True)
        (folder / f"output/checkpoint-{step}/a.bin").write_text(text)
        (folder / "metrics.jsonl").write_text(text)
        rundir.mark_complete(folder / f"output/checkpoint-{step}", step)


def read(run: pathlib.Path, *names: str) -> list[str]:
    return [(run / name).read_text() if (run / name).exists() else "" for name in names]


FIRST = ("axolotl.yml", "programs/gang.py", "metrics.jsonl")


@pytest.mark.parametrize(("starts", "found"), [(True, ["new", "new", "new"]), (False, ["old", "old", "old"])])
def test_what_was_brought_comes_to_its_place_with_a_start_alone(run, starts, found):
    lay(run, "old", 3)
    lay(run / "incoming", "new", 4)
    launching._receive(run, starts)
    assert read(run, *FIRST) == found
    assert rundir.last_complete(run / "output") == (4 if starts else 3)
    assert not [path for path in (run / "incoming").rglob("*") if path.is_file()]
    launching._receive(run, starts)
    assert read(run, *FIRST) == found


@pytest.mark.parametrize("step", [2, 3])
def test_a_checkpoint_that_was_brought_counts_only_where_the_run_has_no_later_one(run, step):
    lay(run, "old", 3)
    lay(run / "incoming", "new", step)
    launching._receive(run, True)
    assert read(run, *FIRST) == ["new", "new", "old"]
    assert read(run, "output/checkpoint-3/a.bin", "output/checkpoint-2/a.bin") == ["old", ""]


def test_half_a_checkpoint_that_was_brought_takes_no_events_along(run):
    lay(run / "incoming", "new", 4)
    (run / "incoming/output/checkpoint-4/a.bin").write_text("ne")
    launching._receive(run, True)
    assert read(run, *FIRST) == ["new", "new", ""]
    assert not (run / "output").exists()


def test_what_another_command_is_bringing_just_now_is_left_to_it(run):
    lay(run / "incoming", "new")
    on_its_way = [run / "incoming/programs/.gang.py.x4Zq1k", run / "incoming/.rsync-partial/b.bin"]
    on_its_way[1].parent.mkdir()
    for path in on_its_way:
        path.touch()
    launching._receive(run, True)
    assert sorted(path for path in (run / "incoming").rglob("*") if path.is_file()) == sorted(on_its_way)


def test_a_link_to_what_is_there_already_is_nothing_new(run):
    lay(run, "same")
    (run / "incoming").mkdir()
    os.link(run / "axolotl.yml", run / "incoming/axolotl.yml")
    before = (run / "axolotl.yml").stat().st_ino
    launching._receive(run, True)
    assert ((run / "axolotl.yml").stat().st_ino, list((run / "incoming").iterdir())) == (before, [])
