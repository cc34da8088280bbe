"""A run on its trainer, as modules see it, with real supervisors and a pretended trainer."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import stat
import time
import types

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import backend, launching, runs, stopping
from lab import PATIENCE, eventually, go_on, reached, starts, status, until


def start(lab, run, secrets=None, check=False, **settings):
    return launching.start(run, lab.launch(run.name, **settings), secrets or {}, "process", check)


# --- start --------------------------------------------------------------------------------------------------------


def test_start_attaches_to_what_is_alive_or_finished(lab):
    run = lab.stage()
    first = start(lab, run, {"HF_TOKEN": "x"}, stay_at=1)
    assert first["changed"] is True
    assert "after a reboot" in first["message"]
    assert stat.S_IMODE((run / "env").stat().st_mode) == 0o600
    again = start(lab, run)
    assert (again["changed"], again["backend"], again["attach_command"]) == (False, "process", first["attach_command"])
    go_on(run)
    until(run, "finished")
    assert not (run / "env").exists()
    assert start(lab, run)["changed"] is False
    assert runs.observe(run).state == "finished"
    assert starts(run) == [0]


def test_two_starts_at_once_make_one_supervisor(lab):
    run = lab.stage()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = [one.result() for one in [pool.submit(start, lab, run, stay_at=1) for _ in range(4)]]
    assert sorted(answer["changed"] for answer in answers) == [False, False, False, True]
    go_on(run)
    until(run, "finished")
    assert starts(run) == [0]


def test_each_launch_has_its_turn_and_what_was_cut_off_keeps_it(lab):
    first, second = lab.stage("a-1"), lab.stage("b-1")
    start(lab, first, hang_at=1)
    until(first, "running")
    start(lab, second)
    until(second, "queued")

    def turns():
        return [rundir.read_json(run / "run.json")["turn"] for run in (first, second)]

    assert turns() == [1, 2]
    os.kill(status(second)["supervisor"]["pid"], signal.SIGKILL)
    eventually(lambda: not runs.observe(second).alive)
    assert start(lab, second)["changed"]
    assert turns() == [1, 2]
    stopping.stop(second, PATIENCE)
    start(lab, second)
    assert turns() == [1, 3]


def test_a_clock_that_was_set_back_does_not_keep_a_failed_run_from_starting(lab):
    run = lab.stage()
    start(lab, run, crash_at=2)
    failed = until(run, "failed")
    rundir.write_json(run / "status.json", {**failed, "finished_at": failed["finished_at"] + 86400})
    assert start(lab, run)["changed"] is True
    until(run, "finished")


def test_start_resumes_what_was_stopped_and_what_failed(lab):
    run = lab.stage()
    start(lab, run, stay_at=3)
    reached(run, 3)
    assert stopping.stop(run, PATIENCE) is True
    assert runs.observe(run).state == "stopped"
    assert start(lab, run, crash_at=6, save_every=6)["changed"] is True
    until(run, "failed")
    assert "made to crash" in runs.observe(run).log_tail
    assert start(lab, run)["changed"] is True
    until(run, "finished")
    assert len(starts(run)) == 3


def bring(run, text):
    """Bring a file for a start, as a launch does."""
    (run / "incoming/programs").mkdir(parents=True, exist_ok=True)
    (run / "incoming/programs/.extra.py.x4Zq1k").touch()  # another command's rsync is at it
    (run / "incoming/programs/extra.py").write_text(text)


def test_what_was_brought_is_put_in_its_place_by_a_start_and_never_while_the_run_lives(lab):
    run = lab.stage()
    bring(run, "1")
    start(lab, run, stay_at=2)
    assert (run / "programs/extra.py").read_text() == "1"
    bring(run, "2")
    start(lab, run, stay_at=2, check=True)
    assert (run / "incoming/programs/extra.py").read_text() == "2"
    assert start(lab, run, stay_at=2)["changed"] is False
    assert (run / "programs/extra.py").read_text() == "1"
    reached(run, 2)
    stopping.stop(run, PATIENCE)
    bring(run, "3")
    start(lab, run)
    assert (run / "programs/extra.py").read_text() == "3"
    left = [path.name for path in (run / "incoming").rglob("*") if path.is_file()]
    assert left == [".extra.py.x4Zq1k"]
    until(run, "finished")


def test_start_takes_over_an_orphaned_trainer(lab):
    run = lab.stage()
    start(lab, run, ignore_term=1, hang_at=3)
    reached(run, 2)
    os.kill(status(run)["supervisor"]["pid"], signal.SIGKILL)
    eventually(lambda: runs.observe(run).state == "stopped")
    found = runs.observe(run)
    assert found.alive is True
    assert "its trainer still runs" in found.detail
    assert start(lab, run)["changed"] is True
    until(run, "finished")
    assert not (run / "overlap").exists()


def test_a_supervisor_that_does_not_come_up_is_reported_with_its_words(lab, monkeypatch):
    run = lab.stage()
    (run / "programs/supervisor.py").write_text("raise SystemExit('boom')")
    log = run / "supervisor.log"

    def now() -> float:
        """Return a time: the limit is passed once the process has printed its last line."""
        return time.time() if log.exists() and "boom" in log.read_text() else 0.0

    monkeypatch.setattr(launching, "time", types.SimpleNamespace(monotonic=now, sleep=time.sleep))
    with pytest.raises(UserError, match=r"did not come up within 20 s \(process\)\. boom"):
        start(lab, run)


# --- stop and remove ----------------------------------------------------------------------------------------------


def test_stop_of_what_is_not_there_or_final_is_no_change(lab):
    run = lab.stage()
    assert stopping.stop(run, 1) is False
    start(lab, run, steps=1)
    until(run, "finished")
    eventually(lambda: not runs.observe(run).alive)
    assert stopping.stop(run, 1) is False
    assert not (run / "stop").exists()


def test_stop_in_check_mode_stops_nothing(lab):
    run = lab.stage()
    start(lab, run, hang_at=1)
    assert stopping.stop(run, 1, check=True) is True
    assert not (run / "stop").exists()
    assert runs.observe(run).alive


def test_stop_makes_a_checkpoint_and_a_second_one_changes_nothing(lab):
    run = lab.stage()
    start(lab, run, {"HF_TOKEN": "x"}, save_every=8, stay_at=2)
    reached(run, 2)
    assert stopping.stop(run, PATIENCE) is True
    assert rundir.last_complete(run / "output") == 2
    assert runs.observe(run).detail.startswith("stopped: on request")
    assert not (run / "env").exists()
    assert stopping.stop(run, PATIENCE) is False


@pytest.mark.parametrize("orphan", [True, False])
def test_stop_without_a_supervisor_takes_the_secrets_and_the_orphan(lab, orphan):
    run = lab.stage()
    start(lab, run, {"HF_TOKEN": "x"}, stay_at=1, ignore_term=int(orphan))
    reached(run, 1)
    os.kill(status(run)["supervisor"]["pid"], signal.SIGKILL)
    if not orphan:
        eventually(lambda: not rundir.run_processes(run))
    assert stopping.stop(run, 0.5) is True
    assert rundir.run_processes(run) == []
    assert not (run / "env").exists()
    assert (run / "stop").exists()


def test_remove_stops_and_deletes(lab, monkeypatch):
    forgotten = []
    monkeypatch.setattr(backend, "remove_unit", forgotten.append)
    run = lab.stage()
    start(lab, run, stay_at=1)
    reached(run, 1)
    assert stopping.remove(run, PATIENCE, check=True) is True
    assert run.exists()
    pid = status(run)["trainer"]["pid"]
    assert stopping.remove(run, PATIENCE) is True
    assert not run.exists()
    assert rundir.process_start(pid) is None
    assert forgotten == [run.name]
    assert stopping.remove(run, PATIENCE) is False


# --- an exit code of 0 proves nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "words"), [("none", "adapter_model.safetensors is missing"), ("empty", "holds no tensors")]
)
def test_a_run_that_ends_without_an_adapter_failed_and_may_start_again(lab, adapter, words):
    run = lab.stage()
    start(lab, run, adapter=adapter)
    until(run, "finished")
    found = runs.observe(run)
    assert found.state == "failed"
    assert words in found.detail
    assert start(lab, run)["changed"] is True
    until(run, "finished")
    assert runs.observe(run).state == "finished"
    assert status(run)["starts"] == 2


# --- all runs of a trainer ----------------------------------------------------------------------------------------


def test_all_runs_of_a_trainer(lab):
    run = lab.stage(where=lab.root / "runs")
    launching.start(run, lab.launch(run.name, {"agent": "witness"}), {}, "process")
    until(run, "finished")
    (run.parent / "never-started").mkdir()
    (found,) = runs.observe_all(run.parents[1], [{"uuid": "GPU-1", "use": 97}])
    assert (found.run_id, found.agent, found.state) == (run.name, "witness", "finished")
    assert "events" not in found.as_dict()
    assert (found.gpu, found.gpu_busy) == (None, None)


# --- other runs of the trainer ------------------------------------------------------------------------------------


def test_a_long_poll_ends_when_another_run_of_the_trainer_is_over(lab):
    """One on a lane of its own trains on meanwhile."""
    first, second = lab.stage("witness-1"), lab.stage("mayor-1")
    start(lab, first, stay_at=3)
    start(lab, second, stay_at=2, lane="cpu 2")
    for run, step in ((first, 3), (second, 2)):
        reached(run, step)
    limits = {"stall_timeout": 1800.0, "heartbeat_timeout": PATIENCE}
    token = eventually(lambda: runs.observe(first).token)
    assert not runs.is_over(second)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        poll = pool.submit(runs.wait_for_news, first, token, 10 * PATIENCE, [second, lab.root / "none-1"], **limits)
        go_on(second)
        seen = poll.result(PATIENCE)
    assert (seen.state, seen.token) == ("running", token)
    assert runs.is_over(second)
    rundir.write_json(second / "run.json", {**rundir.read_json(second / "run.json"), "launch": "another"})
    assert not runs.is_over(second)  # the status is still that of the launch before
    go_on(first)
    until(first, "finished")
