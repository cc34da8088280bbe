"""A run on its trainer, as modules see it."""

from __future__ import annotations

import os

import numpy
import pytest
import rundir
from ansible.module_utils.lora_forge.trainer import launching, pruning, runs, saved
from lab import events, status


def start(lab, run, secrets=None, check=False, **settings):
    return launching.start(run, lab.launch(run.name, **settings), secrets or {}, "process", check)


# --- start --------------------------------------------------------------------------------------------------------


def test_start_predicts_in_check_mode_and_changes_nothing(lab):
    run = lab.stage()
    before = sorted(os.listdir(run))
    found = start(lab, run, {"HF_TOKEN": "x"}, check=True)
    assert found["changed"] is True
    assert found["backend"] == "process"
    assert sorted(os.listdir(run)) == before


def test_the_lane_folder_is_one_for_every_user():
    mode = os.stat(launching.LANE_DIR).st_mode
    assert mode & 0o1777 == 0o1777  # writable for all, and nobody removes another's file


# --- observe and wait ---------------------------------------------------------------------------------------------


def alive_run(lab, **values):
    """Make a run without processes, whose supervisor is this process."""
    run = lab.stage()
    me = rundir.identity(os.getpid())
    noted = {"state": "running", "supervisor": me, "trainer": me, "heartbeat": rundir.uptime(), "idle": 0}
    rundir.write_json(run / "status.json", {**noted, **values})
    return run


def event(run, kind, step, **values):
    rundir.append_event(run / "metrics.jsonl", kind, step=step, planned=10, **values)


def test_observe_of_nothing(tmp_path):
    found = runs.observe(tmp_path / "none")
    assert (found.state, found.alive, found.events) == ("absent", False, [])


def test_observe_gives_only_the_events_since_the_token(lab):
    run = alive_run(lab)
    event(run, "begin", 0, uptime=rundir.uptime() - 5)
    event(run, "log", 1, loss=2.0)
    found = runs.observe(run)
    assert found.state == "running"
    assert [e["event"] for e in found.events] == ["begin", "log"]
    assert found.eta_seconds is not None
    event(run, "log", 2, loss=1.0)
    fresh = runs.observe(run, found.token)
    assert [e["step"] for e in fresh.events] == [2]
    assert fresh.progress.loss_first == 2.0
    assert runs.observe(run, fresh.token).events == []
    assert len(runs.observe(run, "999999:x").events) == 3  # a token of an earlier run of this name


@pytest.mark.parametrize(
    ("values", "state", "detail"),
    [
        ({"heartbeat": 1.0}, "stalled", "the supervisor has been silent for"),
        ({"idle": 4000}, "stalled", "no step for"),
        ({"state": "queued", "lane": "GPU-1"}, "queued", "waits for lane GPU-1"),
        ({"supervisor": None, "trainer": None}, "stopped", "the supervisor is gone"),
    ],
)
def test_observe_concludes_from_processes_and_clocks(lab, values, state, detail):
    found = runs.observe(alive_run(lab, **values))
    assert found.state == state
    assert found.detail.startswith(detail)


def test_waiting_goes_on_without_news_even_when_a_stall_grows_longer(lab, clock):
    run, began = alive_run(lab, heartbeat=clock.now() - 100), clock.now()
    before = runs.observe(run)
    found = runs.wait_for_news(run, before.token, 600)
    assert found.token == before.token
    assert found.detail != before.detail
    assert clock.now() == began + 600


@pytest.mark.parametrize("news", ["event", "state"])
def test_waiting_ends_early_on_news(lab, clock, news):
    run, began = alive_run(lab), clock.now()
    token = runs.observe(run).token

    def tell():
        if news == "event":
            event(run, "begin", 0)
        else:
            rundir.write_json(run / "status.json", {**status(run), "state": "finished"})

    clock.later(7, tell)
    found = runs.wait_for_news(run, token, 20)
    gathered = runs.SETTLE if news == "event" else 0
    assert clock.now() - began == 7 + gathered
    assert found.token != token
    assert len(found.events) == (news == "event")


# --- an exit code of 0 proves nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, (12).to_bytes(8, "little") + b'{"a": "b"}  '])
def test_weights_that_are_no_weights(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert saved.weights_defect(tmp_path / "a.safetensors") == "a.safetensors cannot be read"


def test_weights_that_were_cut_off(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    save_file({"lora_B": numpy.ones((4, 4))}, path)
    assert saved.weights_defect(path) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert saved.weights_defect(path) == "a.safetensors is cut off"


# --- prune --------------------------------------------------------------------------------------------------------


def checkpoint(run, step, whole=True):
    path = run / "output" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "a.bin").write_bytes(b"12345")
    if whole:
        rundir.mark_complete(path, step)


def kept(run, keep):
    rows, reason = pruning.prune_plan(run, keep)
    assert reason is None
    assert all(row["bytes"] >= 5 and row["why"] for row in rows)
    return [row["step"] for row in rows if row["keep"]]


def test_prune_keeps_the_best_by_eval_loss_and_the_newest_whole_one(lab):
    run = lab.stage()
    for step, loss in ((2, 3.0), (4, 1.0), (7, 2.0), (8, "nan")):
        event(run, "eval", step, eval_loss=loss)
    for step in (3, 5, 7, 9):  # judged by the evaluations at 2, 4, 7 and 7
        checkpoint(run, step)
    checkpoint(run, 10, whole=False)
    aside = run / "output" / "incomplete-checkpoint-4-1-1"
    aside.mkdir()
    (aside / "a.bin").write_bytes(b"12345")
    assert kept(run, 1) == [5, 9]
    assert kept(run, 2) == [5, 9]  # of equal ones the newer is the better
    assert kept(run, 3) == [5, 7, 9]
    assert kept(run, 0) == [9]
    rows, _ = pruning.prune_plan(run, 9)
    assert [row["path"].rpartition("/")[2] for row in rows if not row["keep"]] == ["checkpoint-10", aside.name]
    assert [row["eval_loss"] for row in rows] == [3.0, 1.0, 2.0, 2.0, 2.0, None]


def test_prune_takes_back_evaluations_that_a_resume_took_back(lab):
    run = lab.stage()
    for kind, step, loss in (
        ("begin", 0, None),
        ("eval", 2, 2.0),
        ("eval", 4, 0.1),
        ("begin", 2, None),
        ("eval", 4, 3.0),
    ):
        event(run, kind, step, **({} if loss is None else {"eval_loss": loss}))
    for step in (2, 4, 6):
        checkpoint(run, step)
    assert kept(run, 1) == [2, 6]


def test_prune_leaves_an_alive_run_alone(lab):
    run = alive_run(lab)
    checkpoint(run, 2)
    assert pruning.prune_plan(run, 1) == ([], "it is alive")
    assert events(run) == []


@pytest.mark.parametrize(
    ("supervisor", "uptime", "state"),
    [
        ({"boot": "an earlier one"}, 30.0, "running"),
        ({"boot": "an earlier one"}, 300.0, "stopped"),
        ({}, 1030.0, "running"),
        ({}, 1300.0, "stopped"),
    ],
)
def test_systemd_is_waited_for_after_a_death_or_a_reboot(lab, monkeypatch, supervisor, uptime, state):
    run = lab.stage()
    gone = {"pid": 1, "start": 1, "boot": rundir.boot_id(), **supervisor}
    noted = {"state": "running", "supervisor": gone, "trainer": gone, "heartbeat": 1000.0, "idle": 0}
    rundir.write_json(run / "status.json", noted)
    rundir.write_json(run / "run.json", {"backend": "systemd"})
    monkeypatch.setattr(runs.rundir, "uptime", lambda: uptime)
    found = runs.observe(run)
    assert found.state == state
    assert ("systemd starts it again" in found.detail) is (state == "running")
    rundir.write_json(run / "run.json", {"backend": "tmux"})
    assert runs.observe(run).state == "stopped"
