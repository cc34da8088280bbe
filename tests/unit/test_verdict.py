"""What is concluded from what was observed."""

from __future__ import annotations

import pytest
import rundir
from ansible.module_utils.lora_forge import verdict


def event(kind, step, time=0.0, **values):
    return {"event": kind, "step": step, "planned": 10, "time": time, **values}


DONE = verdict.progress([event("begin", 0), event("log", 10, loss=0.5), event("end", 10, reason=None)])
NAN = verdict.progress([event("begin", 0), event("log", 10, loss="nan"), event("end", 10, reason=None)])
CRASH = {"kind": "crashed", "detail": "exit code 1: boom"}
GONE = "the supervisor is gone (killed, or the host restarted)"


@pytest.mark.parametrize(
    ("status", "done", "alive", "ages", "state", "detail"),
    [
        ({}, DONE, (0, 0), (None, None), "absent", "there is no such run on this trainer"),
        ({"state": "finished", "reason": None}, DONE, (0, 0), (9999, 9999), "finished", ""),
        ({"state": "finished"}, NAN, (0, 0), (0, 0), "failed", "the last loss is nan"),
        ({"state": "failed", "reason": CRASH}, DONE, (0, 0), (0, 0), "failed", "crashed: exit code 1: boom"),
        ({"state": "stopped", "reason": {"kind": "stopped", "detail": "on request"}}, DONE, (0, 0), (0, 0), "stopped",
         "stopped: on request"),
        ({"state": "running"}, DONE, (0, 0), (0, 0), "stopped", f"{GONE}; the same command resumes"),
        ({"state": "queued"}, DONE, (0, 0), (0, 0), "stopped", f"{GONE}; the same command resumes"),
        ({"state": "running"}, DONE, (0, 1), (0, 0), "stopped",
         f"{GONE}; its trainer still runs, and the next start takes it over; the same command resumes"),
        ({"state": "running"}, DONE, (1, 1), (61, 0), "stalled", "the supervisor has been silent for 61 s"),
        ({"state": "queued"}, DONE, (1, 0), (61, 0), "stalled", "the supervisor has been silent for 61 s"),
        ({"state": "running"}, DONE, (1, 1), (1, 1801), "stalled", "no step for 1801 s"),
        ({"state": "running"}, DONE, (1, 1), (60, 1800), "running", ""),
        ({"state": "running"}, NAN, (1, 1), (1, None), "running", ""),
        ({"state": "stopping"}, DONE, (1, 1), (1, 9999), "running", ""),
        ({"state": "queued", "lane": "GPU-1"}, DONE, (1, 0), (1, 9999), "queued", "waits for lane GPU-1"),
    ],
)  # fmt: skip
def test_conclude(status, done, alive, ages, state, detail):
    supervisor, trainer = map(bool, alive)
    found = verdict.conclude(status, done, supervisor, trainer, *ages, heartbeat_timeout=60, stall_timeout=1800)
    assert found == (state, detail)


def test_progress_of_nothing():
    found = verdict.progress([])
    assert (found["ended"], found["measured"]) == (False, 0)
    assert {value for key, value in found.items() if key not in ("ended", "measured")} == {None}
    assert verdict.eta_seconds(found) is None


@pytest.mark.parametrize(
    ("newest", "measured"),
    [
        ([event("begin", 2), event("log", 5, loss=1.0), event("eval", 6, eval_loss=1.0)], 3),
        ([event("begin", 4)], 0),  # what was measured before a resume says nothing of this start
    ],
)
def test_measured_are_the_steps_since_the_newest_begin(newest, measured):
    before = [event("begin", 0), event("log", 4, loss=2.0)]
    assert verdict.progress(before)["measured"] == 4
    assert verdict.progress([*before, *newest])["measured"] == measured


def test_progress_sums_up():
    found = verdict.progress(
        [
            {"event": "data", "time": 1, "examples": 10, "tokens": 100, "longer": 2, "dropped": 1, "untrainable": 0},
            {"event": "data", "time": 2, "examples": 4, "tokens": 40, "longer": 0, "dropped": 0, "untrainable": 1},
            event("begin", 0, 10),
            event("log", 2, 14, loss=2.0, tokens_per_second=50.0, epoch=0.2),
            event("eval", 2, 15, eval_loss=2.2),
            event("save", 2, 16),
            event("log", 4, 20, loss=1.0, tokens_per_second=60.0, epoch=0.4),
            event("eval", 4, 21, eval_loss=1.2),
        ]
    )
    assert (found["step"], found["planned"], found["epoch"]) == (4, 10, 0.4)
    assert (found["loss_first"], found["loss"], found["eval_first"], found["eval_loss"]) == (2.0, 1.0, 2.2, 1.2)
    assert (found["tokens_per_second"], found["seconds_per_step"], found["last_event_at"]) == (60.0, 2.5, 21)
    assert found["data"] == {"examples": 14, "tokens": 140, "longer": 2, "dropped": 1, "untrainable": 1}
    assert verdict.eta_seconds(found) == 15.0


def test_progress_takes_back_what_a_resume_took_back():
    history = [
        event("begin", 0, 0),
        event("log", 2, 2, loss=2.0),
        event("save", 2, 2),
        event("log", 4, 4, loss="nan"),
        event("eval", 4, 4, eval_loss=9.0),
        event("end", 4, 4, reason="early stopping"),
        event("begin", 2, 100),
    ]
    found = verdict.progress(rundir.surviving(history))
    assert (found["step"], found["loss"], found["eval_loss"], found["ended"]) == (2, 2.0, None, False)
    assert found["end_reason"] is None
    history += [event("log", 3, 105, loss=1.5)]
    assert verdict.progress(rundir.surviving(history))["seconds_per_step"] == 5.0  # of the newest start


@pytest.mark.parametrize(
    ("value", "finite"), [(1, True), (0.5, True), ("nan", False), (float("inf"), False), (None, False)]
)
def test_finite(value, finite):
    assert verdict.finite(value) is finite
