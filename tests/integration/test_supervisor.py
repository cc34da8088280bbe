"""The rules of a run on its trainer, each with real processes."""

from __future__ import annotations

import os
import signal

import pytest
import rundir
from ansible.module_utils.lora_forge.trainer import runs, stopping
from lab import (
    PATIENCE,
    alive,
    counted_steps,
    events,
    eventually,
    go_on,
    one_after_the_other,
    reached,
    starts,
    status,
    until,
)


def no_overlap(run_dir):
    return not (run_dir / "overlap").exists()


# --- the ordinary way -------------------------------------------------------------------------------------------


def test_a_run_finishes(lab):
    run = lab.make()
    assert lab.supervise(run).wait(PATIENCE) == 0
    end = status(run)
    assert (end["state"], end["reason"], end["exit_code"], end["starts"]) == ("finished", None, 0, 1)
    assert end["finished_at"] >= end["started_at"] == end["first_started_at"]
    assert counted_steps(run) == list(range(1, 9))
    assert rundir.last_complete(run / "output") == 8
    assert not (run / ".reserve").exists()


def test_the_heartbeat_moves_and_the_lane_is_told(lab):
    run = lab.make(hang_at=1, ignore_term=1)
    lab.supervise(run)
    first = until(run, "running")
    assert first["lane"] == "cpu"
    assert rundir.is_alive(first["supervisor"])
    assert rundir.is_alive(first["trainer"])
    eventually(lambda: status(run)["heartbeat"] > first["heartbeat"] + 0.5)


def test_a_finished_run_is_left_alone(lab):
    run = lab.make(steps=2)
    lab.supervise(run).wait(PATIENCE)
    before = status(run)
    assert lab.supervise(run).wait(PATIENCE) == 0
    assert status(run) == before
    assert starts(run) == [0]


def test_early_stopping_is_an_end(lab):
    run = lab.make(early_stop_at=4)
    lab.supervise(run).wait(PATIENCE)
    assert status(run)["state"] == "finished"


# --- lanes and locks --------------------------------------------------------------------------------------------


def test_two_runs_on_one_lane_queue(lab):
    first, second = lab.make("a-1", stay_at=1), lab.make("b-1", steps=2)
    lab.supervise(first)
    until(first, "running")
    lab.supervise(second)
    beat = until(second, "queued")["heartbeat"]
    eventually(lambda: status(second)["heartbeat"] > beat)  # a queued run has a pulse too
    assert status(first)["state"] == "running"
    assert starts(second) == []
    go_on(first)
    assert f"waiting for lane cpu: {first.name} has it since " in (second / "supervisor.log").read_text()
    until(second, "finished")
    assert one_after_the_other(first, second)


def test_a_run_on_two_gpus_waits_for_both_and_keeps_others_from_both(lab):
    first, both = lab.make("a-1", lane="GPU-3", stay_at=1), lab.make("b-1", lane="GPU-3,GPU-2", steps=2)
    third = lab.make("c-1", lane="GPU-2", steps=2)
    lab.supervise(first)
    until(first, "running")
    lab.supervise(both)
    log = both / "supervisor.log"
    eventually(lambda: log.exists() and "waiting for lane GPU-3,GPU-2" in log.read_text())
    lab.supervise(third)
    until(third, "queued")
    assert starts(both) == starts(third) == []
    go_on(first)
    until(third, "finished")
    assert one_after_the_other(first, both, third)


def test_a_lane_is_first_come_first_served_whoever_asks_first_for_its_lock(lab):
    holder = lab.make("a-1", lane="GPU-2", hang_at=1)
    third, second = lab.make("c-1", lane="GPU-2", turn=3, steps=2), lab.make("b-1", lane="GPU-2,GPU-1", turn=2, steps=2)
    gone = lab.make("d-1", lane="GPU-2", turn=1)
    rundir.write_json(gone / "status.json", {"state": "queued", "supervisor": {}})  # its supervisor was killed
    process = lab.supervise(holder)
    until(holder, "running")
    for run in (third, second):  # in the wrong order
        lab.supervise(run)
        log = run / "supervisor.log"
        eventually(lambda log=log: log.exists() and "waiting for lane GPU-2" in log.read_text())
    process.send_signal(signal.SIGKILL)
    os.kill(status(holder)["trainer"]["pid"], signal.SIGKILL)
    until(third, "finished")
    assert one_after_the_other(second, third)


def test_who_is_launched_again_comes_last_and_nobody_waits_for_it(lab):
    """A run that failed, and had come before the one that waits, is launched again meanwhile."""
    again, waiting = lab.make("a-1", lane="GPU-2", turn=1, steps=2), lab.make("c-1", lane="GPU-2", turn=3, steps=2)
    rundir.write_json(again / "status.json", {"state": "failed", "supervisor": {}})
    holder = lab.make("b-1", lane="GPU-2", turn=2, hang_at=1)
    process = lab.supervise(holder)
    until(holder, "running")
    lab.supervise(waiting)
    until(waiting, "queued")
    spec = rundir.read_json(again / "run.json")
    rundir.write_json(again / "run.json", {**spec, "turn": 4, "launch": "the second one"})
    lab.supervise(again)
    until(again, "queued")
    process.send_signal(signal.SIGKILL)
    os.kill(status(holder)["trainer"]["pid"], signal.SIGKILL)
    until(again, "finished")
    assert one_after_the_other(waiting, again)


def test_other_lanes_do_not_wait(lab):
    first, second = lab.make("a-1", hang_at=1), lab.make("b-1", lane="GPU-2", steps=2)
    lab.supervise(first)
    until(first, "running")
    lab.supervise(second)
    until(second, "finished")


def test_a_queued_run_can_be_stopped(lab):
    first, second = lab.make("a-1", hang_at=1), lab.make("b-1")
    lab.supervise(first)
    until(first, "running")
    waiting = lab.supervise(second)
    until(second, "queued")
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(PATIENCE) == 0
    assert status(second)["reason"]["detail"] == "while it waited for its lane"


def test_the_lane_stays_taken_while_an_orphaned_trainer_lives(lab):
    first, second = lab.make("a-1", ignore_term=1, hang_at=2), lab.make("b-1", steps=2)
    process = lab.supervise(first)
    reached(first, 1)
    process.kill()
    process.wait()
    orphan = status(first)["trainer"]
    lab.supervise(second)
    beat = until(second, "queued")["heartbeat"]
    eventually(lambda: status(second)["heartbeat"] > beat + 0.5)
    assert status(second)["state"] == "queued"
    assert rundir.is_alive(orphan)
    os.kill(orphan["pid"], signal.SIGKILL)
    until(second, "finished")


def test_two_supervisors_make_one_trainer(lab):
    run = lab.make(steps=20)
    both = [lab.supervise(run) for _ in range(4)]
    assert [process.wait(PATIENCE) for process in both] == [0, 0, 0, 0]
    assert starts(run) == [0]
    assert status(run)["state"] == "finished"
    assert no_overlap(run)


# --- what dies ------------------------------------------------------------------------------------------------


def test_a_killed_trainer_resumes_from_the_last_whole_checkpoint(lab):
    run = lab.make(steps=9, save_every=4, stay_at=6)
    lab.supervise(run)
    reached(run, 6)
    os.kill(status(run)["trainer"]["pid"], signal.SIGKILL)
    go_on(run)
    end = until(run, "finished")
    assert end["starts"] == 2
    assert starts(run) == [0, 4]
    assert end["resumed_from"] == events(run, "begin")[1]["step"] == 4
    assert counted_steps(run) == list(range(1, 10))
    assert no_overlap(run)


def test_a_killed_supervisor_takes_its_trainer_along_with_a_checkpoint(lab):
    run = lab.make(save_every=8, stay_at=3)
    process = lab.supervise(run)
    reached(run, 3)
    trainer = status(run)["trainer"]
    process.kill()
    eventually(lambda: not rundir.is_alive(trainer))
    assert [stop["step"] for stop in events(run, "stop")] == [3]
    assert rundir.last_complete(run / "output") == 3
    lab.supervise(run)
    assert until(run, "finished")["resumed_from"] == 3
    assert counted_steps(run) == list(range(1, 9))


def test_a_leftover_that_ignores_sigterm_is_killed_before_the_next_start(lab):
    run = lab.make(ignore_term=1, stay_at=3)
    process = lab.supervise(run)
    reached(run, 3)
    leftover = status(run)["trainer"]
    process.kill()
    process.wait()
    assert rundir.is_alive(leftover)
    lab.supervise(run)
    eventually(lambda: not rundir.is_alive(leftover))
    go_on(run)
    until(run, "finished")
    assert len(starts(run)) == 2
    assert no_overlap(run)


def test_a_worker_in_a_session_of_its_own_does_not_outlive_a_resume(lab):
    run = lab.make(worker="daemon", crash_at=3, crash_once=1)
    lab.supervise(run)
    until(run, "finished")
    workers = [int(line) for line in (run / "workers.txt").read_text().split()]
    assert len(workers) == 2
    assert not alive(workers[0])


def test_workers_of_a_crashed_trainer_go_with_it(lab):
    run = lab.make(worker="child", crash_at=1)
    lab.supervise(run)
    until(run, "failed")
    (worker,) = (run / "workers.txt").read_text().split()
    assert not alive(int(worker))


@pytest.mark.parametrize("harm", ["truncated", "missing file", "no complete.json", "cut complete.json"])
def test_a_checkpoint_that_is_not_whole_is_set_aside(lab, harm, seen):
    run = lab.make(steps=8, save_every=3, crash_at=7)
    lab.supervise(run)
    until(run, "failed")
    newest = run / "output" / "checkpoint-6"
    weights, complete = newest / "adapter_model.safetensors", newest / rundir.COMPLETE
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif harm == "missing file":
        weights.unlink()
    elif harm == "no complete.json":
        complete.unlink()
    else:
        complete.write_bytes(complete.read_bytes()[:20])
    lab.change(run, steps=8)
    lab.supervise(run)
    assert until(run, "finished")["resumed_from"] == 3
    assert len(list((run / "output").glob("incomplete-checkpoint-6-*"))) == 1
    assert counted_steps(run) == list(range(1, 9))
    seen(f"the newest checkpoint is not whole: {harm}", "here, process", "set aside; resumed at step 3, finished")


def aside(run):
    return [path.name for path in (run / "output").glob("incomplete-*")]


def test_a_checkpoint_that_the_training_dies_on_is_set_aside(lab, seen):
    """A power cut leaves NULs in a file of the right size, and nothing but reading it shows that."""
    run = lab.make(steps=8, save_every=3, crash_at=7)
    lab.supervise(run)
    until(run, "failed")
    assert aside(run) == []  # the checkpoint was read, and a step begun
    weights = run / "output/checkpoint-6/adapter_model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    lab.change(run, steps=8)
    assert lab.supervise(run).wait(PATIENCE) == 0
    assert status(run)["state"] == "finished"
    assert starts(run) == [0, 6, 3]
    (name,) = aside(run)
    assert name.startswith("incomplete-checkpoint-6-")
    assert "checkpoint-6 may be damaged: the training died on it" in (run / "supervisor.log").read_text()
    assert counted_steps(run) == list(range(1, 9))
    seen(
        "weights of the newest checkpoint are NULs of the right size",
        "here, process",
        "set aside after one start; resumed at step 3 from the one before, finished",
    )


def test_checkpoints_are_put_back_where_the_training_dies_without_them_too(lab):
    run = lab.make(steps=8, save_every=3, crash_at=7)
    lab.supervise(run)
    until(run, "failed")
    lab.change(run, steps=8, broken=1)
    lab.supervise(run).wait(PATIENCE)
    end = status(run)
    assert (end["state"], end["reason"]["kind"]) == ("failed", "crashed")
    assert "ImportError" in end["reason"]["detail"]
    assert [step for step, _ in rundir.checkpoints(run / "output")] == [3, 6]
    assert aside(run) == []


def test_starts_that_bring_nothing_new_come_to_an_end(lab, seen):
    run = lab.make(save_every=2, crash_at=3, forget=1)
    lab.supervise(run)
    end = until(run, "failed")
    assert (starts(run), end["reason"]["kind"]) == ([0] * 6, "crashed")
    words = ("5 starts in a row came to no checkpoint after step 2", "made to crash", "train.log", "the same command")
    assert all(word in end["reason"]["detail"] for word in words)
    seen(
        "each start dies before it saves anything new",
        "here, process",
        f"{len(starts(run))} starts, then failed, with the last error and what to do",
    )


def test_deaths_of_supervisor_and_host_count_and_a_new_launch_begins_anew(lab):
    run = lab.make(steps=2)
    spec = rundir.read_json(run / "run.json")
    rundir.write_json(run / "status.json", {"state": "running", "launch": spec["launch"], "vain": 5})
    lab.supervise(run)
    assert "5 starts in a row came to no checkpoint" in until(run, "failed")["reason"]["detail"]
    assert starts(run) == []
    lab.change(run, steps=2)
    lab.supervise(run)
    assert until(run, "finished")["vain"] <= 1


def test_the_time_of_a_training_is_that_of_all_its_starts(lab):
    run = lab.make(stay_at=3)
    process = lab.supervise(run)
    reached(run, 3)
    process.send_signal(signal.SIGTERM)
    first = until(run, "stopped")["seconds"]
    assert first > 0
    rundir.write_json(run / "status.json", {**status(run), "seconds": first + 1000})  # as of a long one
    go_on(run)
    lab.supervise(run)
    assert until(run, "finished")["seconds"] > first + 1000


# --- crashes and their reasons --------------------------------------------------------------------------------

PYDANTIC = "pydantic_core._pydantic_core.ValidationError: 1 validation error for AxolotlInputConfig"


@pytest.mark.parametrize(
    ("last_words", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory"),
        (PYDANTIC, "configuration"),
        ("DeprecationWarning: `old_key` is no longer supported", "configuration"),
        ("expected_adapter.Refused: the LoRA targets reach into a tower", "configuration"),
        ("OSError: [Errno 28] No space left on device", "disk full"),
        ("RuntimeError: something else", "crashed"),
        ("/lib/x.py:3: DeprecationWarning: a library is old\nRuntimeError: something else", "crashed"),
    ],
)
def test_a_crash_without_progress_gives_up_with_a_reason(lab, last_words, kind):
    run = lab.make(crash_at=1, crash_say=last_words)
    lab.supervise(run)
    end = until(run, "failed")
    assert end["reason"]["kind"] == kind
    assert last_words.splitlines()[-1] in end["reason"]["detail"]
    assert (end["exit_code"], starts(run)) == (1, [0])


SURVIVED = "Traceback (most recent call last):\n  File x\nValueError: no dataset card: config.json"


def test_a_failure_that_was_survived_before_does_not_name_the_kind(lab):
    """What is taken for a wrong configuration is not tried again."""
    last = "Traceback (most recent call last):\n  File x\nRuntimeError: NCCL error"
    run = lab.make(say=SURVIVED, crash_at=5, crash_once=1, crash_say=last)
    lab.supervise(run)
    assert until(run, "finished")["starts"] == 2
    run = lab.make("witness-1", say=SURVIVED, hang_at=1)
    lab.supervise(run)
    eventually(lambda: events(run, "begin"))
    os.kill(status(run)["trainer"]["pid"], signal.SIGKILL)
    assert until(run, "failed")["reason"]["kind"] == "killed"


CLOSED = "Traceback (most recent call last):\n  File x\ntorch.distributed.elastic.rendezvous.api.RendezvousClosedError"


def test_a_gang_that_was_just_breaking_up_is_met_again(lab):
    run = lab.make(crash_at=1, crash_once=1, crash_say=CLOSED)
    lab.supervise(run)
    assert until(run, "finished")["starts"] == 2


@pytest.mark.soak
def test_a_gang_that_never_meets_again_is_given_up(lab):
    run = lab.make(crash_at=1, crash_say=CLOSED)
    lab.supervise(run)
    end = until(run, "failed")
    assert (end["reason"]["kind"], end["starts"]) == ("closed meeting", 5)


def test_a_killed_trainer_without_progress_gives_up(lab):
    run = lab.make(hang_at=1)
    lab.supervise(run)
    eventually(lambda: events(run, "begin"))
    os.kill(status(run)["trainer"]["pid"], signal.SIGKILL)
    end = until(run, "failed")
    assert end["reason"]["kind"] == "killed"
    assert "SIGKILL" in end["reason"]["detail"]
    assert end["exit_code"] == -9


def test_a_crash_after_progress_resumes_and_the_same_one_again_gives_up(lab):
    run = lab.make(crash_at=5)
    lab.supervise(run)
    end = until(run, "failed")
    assert end["reason"]["kind"] == "crashed"
    assert starts(run) == [0, 4]


def test_progress_counts_from_where_a_gang_went_back_to(lab):
    run = lab.make(steps=12, save_every=2, crash_at=7, back_to=2)
    lab.supervise(run)
    until(run, "failed")
    assert starts(run) == [0, 2, 6]


def test_several_processes_that_have_not_begun_have_nothing_to_save(lab):
    run = lab.make(processes=2, hang_first=1, worker="daemon", stop_timeout=3600)
    process = lab.supervise(run)
    eventually((run / "workers.txt").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert status(run)["state"] == "stopped"
    assert not alive(int((run / "workers.txt").read_text()))


def test_an_old_librarys_warning_is_no_configuration_error(lab):
    run = lab.make(crash_at=5, crash_once=1, say="/lib/x.py:3: DeprecationWarning: a library is old")
    lab.supervise(run)
    assert until(run, "finished")["starts"] == 2


def test_a_command_that_is_not_there_fails_with_its_name(lab):
    run = lab.make()
    rundir.write_json(run / "run.json", {**rundir.read_json(run / "run.json"), "command": ["/no/such/python"]})
    lab.supervise(run)
    end = until(run, "failed")
    assert end["reason"]["kind"] == "environment"
    assert "/no/such/python" in end["reason"]["detail"]


def test_exit_0_without_the_planned_steps_is_not_finished(lab):
    run = lab.make(exit0_at=3)
    lab.supervise(run)
    assert until(run, "failed", "finished")["reason"]["detail"] == "exit code 0, but the training never ended"


def test_the_end_of_an_earlier_start_is_not_believed(lab):
    run = lab.make(stay_at=3)
    process = lab.supervise(run)
    reached(run, 3)
    process.send_signal(signal.SIGTERM)
    until(run, "stopped")
    lab.change(run, exit0_resumed=1)
    lab.supervise(run)
    assert until(run, "failed", "finished")["reason"]["detail"] == "exit code 0, but the training never ended"


def test_sigterm_from_somebody_else_is_an_interruption(lab):
    run = lab.make(stay_at=3)
    lab.supervise(run)
    reached(run, 3)
    os.kill(status(run)["trainer"]["pid"], signal.SIGTERM)
    assert until(run, "stopped")["reason"]["kind"] == "interrupted"


def test_a_lane_file_that_was_tidied_away_leaves_nobody_waiting_for_ever(lab):
    first, second = lab.make("a-1", stay_at=1), lab.make("b-1", steps=2)
    lab.supervise(first)
    until(first, "running")
    lab.supervise(second)
    until(second, "queued")
    lock = lab.root / "lora-forge-cpu.lock"
    lock.rename(lab.root / "gone")  # the holder has the old file locked, and the second waits for that one
    third = lab.make("c-1", steps=2)
    lab.supervise(third)
    until(third, "finished")  # it made a new file; that is why the holder keeps the file young
    go_on(first)
    until(first, "finished")
    until(second, "finished")
    assert lock.exists()


@pytest.mark.parametrize("place", ["link", "folder"])
def test_what_is_no_lane_is_named(lab, place, seen):
    run, path = lab.make(), lab.root / "lora-forge-cpu.lock"
    if place == "link":
        path.symlink_to(lab.root / "elsewhere")
    else:
        path.mkdir()
    assert lab.supervise(run).wait(PATIENCE) == 0
    end = status(run)
    assert (end["state"], end["reason"]["kind"]) == ("failed", "environment")
    assert (
        f"the lane's lock cannot be taken: {'Too many' if place == 'link' else 'Is a dir'}" in end["reason"]["detail"]
    )
    assert str(path) in end["reason"]["detail"]
    assert end["reason"]["detail"] in (run / "supervisor.log").read_text()
    assert not (lab.root / "elsewhere").exists()
    seen(
        f"the lane's lock is a {place}",
        "here, process",
        "failed: environment, with the path; nothing was made through it",
    )


def test_a_run_whose_lock_cannot_be_had_says_so(lab, seen):
    run = lab.make()
    (run / "supervisor.lock").mkdir()
    assert lab.supervise(run).wait(PATIENCE) == 0
    detail = f"the run's lock cannot be taken: Is a directory: {run}/supervisor.lock"
    assert status(run)["reason"] == {"kind": "environment", "detail": detail}
    seen("the run's lock is a folder", "here, process", "failed: environment, with the path")


@pytest.mark.parametrize("broken", ["supervisor.lock", "run.json"])
def test_a_run_that_is_over_stays_so_whatever_a_power_cut_left_of_it(lab, broken):
    """As systemd starts it after a reboot: perhaps the locks of a network volume are not there yet."""
    run = lab.make(steps=2)
    lab.supervise(run).wait(PATIENCE)
    before = status(run)
    assert before["state"] == "finished"
    (run / broken).unlink()
    if broken == "run.json":
        rundir.write_json(run / "status.json", before := {**before, "launch": "a"})
        (run / broken).touch()
    else:
        (run / broken).mkdir()
    assert lab.supervise(run).wait(PATIENCE) == 0
    assert status(run) == before


def test_a_run_whose_files_were_cut_to_nothing_says_so(lab):
    run = lab.make()
    (run / "run.json").write_bytes(b"")
    assert lab.supervise(run).wait(PATIENCE) == 0
    assert "its run.json is empty or damaged" in status(run)["reason"]["detail"]


def test_what_a_killed_supervisor_was_writing_is_tidied_up(lab):
    run = lab.make(steps=1)
    (run / ".status.json.4711").write_bytes(b"{")
    lab.supervise(run)
    until(run, "finished")
    assert list(run.glob(".status.json.*")) == []


# --- an evaluation, whose steps are answers -----------------------------------------------------------------------

ASKS = """
import os, pathlib, rundir, signal, sys, time
answers, metrics, most = pathlib.Path("answers.jsonl"), pathlib.Path("metrics.jsonl"), 6
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
done = len(rundir.read_lines(answers)[0])
rundir.append_event(metrics, "begin", step=done, planned=most)
while done < most:
    rundir.append_line(answers, {"key": str(done)})
    done += 1
    rundir.append_event(metrics, "answers", step=done, planned=most, answered=done, asked=most)
    if done == int(os.environ.get("DIES_AT", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    while done == int(os.environ.get("STAYS_AT", 0)) and not pathlib.Path("go").exists():
        time.sleep(0.02)
rundir.append_event(metrics, "end", step=done, planned=most)
"""


def evaluation(lab, **env):
    run = lab.make("witness-0-eval-1")
    (run / rundir.PROGRAMS / "asks.py").write_text(ASKS)
    command = [lab.python, f"{rundir.PROGRAMS}/asks.py"]
    spec = rundir.read_json(run / "run.json") | {"command": command, "env": env, "evaluates": "witness-0"}
    rundir.write_json(run / "run.json", spec)
    return run


def test_an_evaluation_that_is_killed_goes_on_with_the_answer_it_had_reached(lab):
    run = evaluation(lab, DIES_AT="4")
    lab.supervise(run).wait(PATIENCE)
    end = status(run)
    assert (end["state"], end["starts"]) == ("finished", 2)
    assert [event["step"] for event in events(run, "begin")] == [0, 4]
    assert [line["key"] for line in rundir.read_lines(run / "answers.jsonl")[0]] == list("012345")
    seen = runs.observe(run)
    assert (seen.state, seen.detail, seen.progress.step) == ("finished", "", 6)


def test_an_evaluation_that_is_stopped_says_how_many_answers_it_has(lab):
    run = evaluation(lab, STAYS_AT="2")
    lab.supervise(run)
    eventually(lambda: len(events(run, "answers")) == 2)
    assert stopping.stop(run, PATIENCE)
    end = until(run, "stopped")
    assert end["reason"]["detail"] == "on request; 2 answers"
    assert runs.observe(run).state == "stopped"
