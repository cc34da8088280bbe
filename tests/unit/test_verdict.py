"""What is concluded from what was observed."""

from __future__ import annotations

import dataclasses

import pytest
import rundir
from ansible.module_utils.lora_forge.adapters.manifest import Host, Manifest
from ansible.module_utils.lora_forge.results import verdict
from ansible.module_utils.lora_forge.trainer import run_state
from ansible.module_utils.lora_forge.trainer.run_state import ListedRun, Observation, Progress


def event(kind, step, time=0.0, **values):
    return {"event": kind, "step": step, "planned": 10, "time": time, **values}


DONE = run_state.progress([event("begin", 0), event("log", 10, loss=0.5), event("end", 10, reason=None)])
NAN = run_state.progress([event("begin", 0), event("log", 10, loss="nan"), event("end", 10, reason=None)])
SHORT = run_state.progress([event("begin", 0), event("log", 5, loss=0.5), event("end", 5, reason=None)])
EARLY = run_state.progress([event("begin", 0), event("log", 5, loss=0.5), event("end", 5, reason="early stopping")])
OVER = {"state": "finished", "reason": None, "exit_code": 0}
BUT = "not proven: it says finished, but"
CRASH = {"kind": "crashed", "detail": "exit code 1: boom"}
GONE = "the supervisor is gone (killed, or the host restarted)"


@pytest.mark.parametrize(
    ("status", "done", "alive", "ages", "state", "detail"),
    [
        ({}, DONE, (0, 0), (None, None), "absent", "there is no such run on this trainer"),
        (OVER, DONE, (0, 0), (9999, 9999), "finished", ""),
        (OVER, EARLY, (0, 0), (0, 0), "finished", ""),
        (OVER, NAN, (0, 0), (0, 0), "failed", f"{BUT} the last loss is nan"),
        (OVER, SHORT, (0, 0), (0, 0), "failed", f"{BUT} 5 of 10 steps were reached"),
        (OVER, run_state.progress([]), (0, 0), (0, 0), "failed",
         f"{BUT} None of None steps were reached and the last loss is None"),
        ({**OVER, "exit_code": 137}, DONE, (0, 0), (0, 0), "failed", f"{BUT} the trainer's exit code is 137"),
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
    found = run_state.conclude(status, done, supervisor, trainer, *ages, heartbeat_timeout=60, stall_timeout=1800)
    assert found == (state, detail)


def test_a_finished_run_without_weights_failed():
    found = run_state.conclude(
        OVER, DONE, False, False, 9, 9, 60, 1800, defect="adapter_model.safetensors holds no tensors"
    )
    assert found == ("failed", f"{BUT} adapter_model.safetensors holds no tensors")


# --- the verdict over all sources ---------------------------------------------------------------------------------

RUN, MARK = "witness-0123456789ab", "0123456789ab" + "0" * 52
MANIFEST = Manifest(run_id=RUN, fingerprint=MARK, host=Host("gpu-1"))
LIVES = ("queued", "running", "stalled")


def snapshot(state, trainer="gpu-1", silent_for=1.0, step=4, detail="", exit_code=None, alive=None, **more):
    return {
        "trainer": trainer,
        "state": state,
        "detail": detail,
        "alive": state in LIVES if alive is None else alive,
        "progress": run_state.Progress().as_dict()
        | {"step": step, "planned": 10, "measured": step, "last_event_at": 9.0, "began_at": 5.0},
        "status": {"exit_code": exit_code},
        "silent_for": silent_for,
        "facts": {"run_id": RUN, "fingerprint": MARK},
        "checkpoint": {"step": 2, "files": []},
        **more,
    }


def judged(*snapshots, asked=("gpu-1", "gpu-2"), **known):
    return verdict.judge(verdict.Evidence(RUN, snapshots=snapshots, asked=asked, **known))


LAUNCHED = {"trainer": "gpu-1", "state": "launched", "final": False}
MOVED = {"placement": {**LAUNCHED, "trainer": "gpu-3"}, "silent": {"gpu-3": "timed out"}}
BAD = {"trainer": "gpu-1", "state": "failed", "final": True, "detail": "tensor q is all zero"}


@pytest.mark.parametrize(
    ("snapshots", "known", "found", "detail"),
    [
        # One trainer, nothing else: its own word, as conclude() proved it.
        *[((snapshot(state),), {}, state, "") for state in (*LIVES, "stopped", "failed", "finished")],
        ((snapshot("failed", detail="crashed: boom"),), {}, "failed", "crashed: boom"),
        # No trainer has it.
        ((), {}, "absent", "no trainer has it"),
        ((), {"placement": LAUNCHED}, "absent", "it was launched on gpu-1, which has no such run any more"),
        ((), {"placement": {**LAUNCHED, "trainer": "gone"}}, "unknown", "it was launched on gone, which was not asked"),
        ((), {"placement": {"trainer": "gpu-1", "state": "failed", "final": True, "detail": "out of memory"}},
         "failed", "out of memory"),
        # A trainer that does not answer is no failure.
        ((), {"placement": LAUNCHED, "silent": {"gpu-1": "timed out"}}, "unknown",
         "gpu-1 does not answer: timed out; the last that is known: launched"),
        ((), {"placement": LAUNCHED, "silent": {"gpu-1": "timed out"}, "wandb": {"state": "running"}}, "unknown",
         "gpu-1 does not answer: timed out; the last that is known: launched; "
         "W&B says running, which alone decides nothing"),
        ((), {"placement": LAUNCHED, "silent": {"gpu-1": "timed out"}, "wandb": {"state": "crashed"}}, "unknown",
         "gpu-1 does not answer: timed out; the last that is known: launched; "
         "W&B says crashed, which alone decides nothing"),
        # Delivered and proven: whatever became of the trainer, or of W&B.
        ((snapshot("finished"),), {"manifest": MANIFEST}, "verified", ""),
        ((), {"manifest": MANIFEST}, "verified", ""),
        ((), {"manifest": MANIFEST, "silent": {"gpu-1": "timed out"}}, "verified", ""),
        # What collecting found holds, though the trainer knows nothing of it.
        ((snapshot("finished"),), {"placement": {"trainer": "gpu-1", "state": "failed", "final": True,
                                             "detail": "tensor q is all zero"}}, "failed", "tensor q is all zero"),
        # Steps stalled: the GPU tells a hang from a wait.
        ((snapshot("stalled", detail="no step for 1801 s", gpu_busy=97.0),), {}, "stalled",
         "no step for 1801 s, while its GPU is 97 % busy"),
        ((snapshot("stalled", detail="no step for 1801 s", gpu_busy=0.0),), {}, "stalled",
         "no step for 1801 s, while its GPU is 0 % busy"),
        # Moved: the trainer it lives on counts, then the one where it was placed, then the last one heard of.
        ((snapshot("running", "gpu-2"), snapshot("stopped")), {"placement": LAUNCHED}, "running", ""),
        ((snapshot("failed", "gpu-2"), snapshot("stopped")), {"placement": LAUNCHED}, "stopped", ""),
        # Moved to a trainer that does not answer: what the earlier one says is of yesterday.
        ((snapshot("stopped"),), MOVED, "unknown",
         "gpu-3 does not answer: timed out; the last that is known: launched"),
        ((snapshot("running"),), MOVED, "running", ""),
        # It ran to its end, was not collected, and is gone.
        ((), {"placement": {"trainer": "gpu-1", "state": "finished", "final": True}}, "absent",
         "it ran to its end on gpu-1, which has no such run any more"),
        # W&B agrees, lags, knows nothing or cannot be asked.
        ((snapshot("running"),), {"wandb": {"state": "running"}}, "running", ""),
        ((snapshot("running"),), {"wandb": {"error": {"kind": "server_down", "msg": "…"}}}, "running", ""),
        ((snapshot("running"),), {"wandb": {"error": {"kind": "run_not_found", "msg": "…"}}}, "running", ""),
        ((snapshot("failed", silent_for=200.0),), {"wandb": {"state": "running"}}, "failed", ""),
        ((snapshot("stopped"),), {"wandb": {"state": "finished"}}, "stopped", ""),  # SIGINT ends with exit code 0
        ((snapshot("stopped"),), {"wandb": {"state": "crashed"}}, "stopped", ""),
        # Exit code 0 with NaN, an empty adapter or too few steps: W&B told no lie about the process.
        ((snapshot("failed", exit_code=0, detail=f"{BUT} the last loss is nan"),), {"wandb": {"state": "finished"}},
         "failed", f"{BUT} the last loss is nan"),
        ((snapshot("finished", exit_code=0),), {"wandb": {"state": "finished"}, "placement": BAD}, "failed",
         "tensor q is all zero"),
        ((), {"wandb": {"state": "finished"}, "placement": BAD}, "failed", "tensor q is all zero"),
        ((snapshot("stalled"),), {"wandb": {"state": "crashed"}}, "stalled", ""),
        ((snapshot("running", step=0),), {"wandb": {"state": "crashed"}}, "running", ""),  # of the last start
        ((snapshot("queued"),), {"wandb": {"state": "crashed"}}, "queued", ""),
        # Resumed, and not at its first step yet: what was measured is the last start's.
        ((snapshot("running", status={"started_at": 100.0}),), {"wandb": {"state": "crashed"}}, "running", ""),
        ((snapshot("stopped", silent_for=900.0, alive=True),), {"wandb": {"state": "running"}}, "stopped", ""),
    ],
)  # fmt: skip
def test_judge(snapshots, known, found, detail):
    verdict_ = judged(*snapshots, **known)
    assert (verdict_.verdict, verdict_.state, verdict_.detail) == (found, found, detail)
    assert verdict_.contradictions == ()


@pytest.mark.parametrize(
    ("snapshots", "known", "state", "words"),
    [
        # W&B lies about the process.
        ((snapshot("failed", silent_for=840.0, exit_code=137),), {"wandb": {"state": "running"}}, "failed",
         "W&B says running, but the process ended 14:00 ago with exit code 137"),
        ((snapshot("stopped", silent_for=840.0),), {"wandb": {"state": "running"}}, "stopped",
         "W&B says running, but the process ended 14:00 ago"),
        ((snapshot("finished", silent_for=840.0, exit_code=0),), {"wandb": {"state": "running"}}, "finished",
         "W&B says running, but the process ended 14:00 ago"),
        ((snapshot("running"),), {"wandb": {"state": "crashed"}}, "running",
         "W&B says crashed, but the process is alive, at step 4"),
        ((snapshot("running"),), {"wandb": {"state": "finished"}}, "running",
         "W&B says finished, but the process is alive, at step 4"),
        ((snapshot("stalled"),), {"wandb": {"state": "finished"}}, "stalled",
         "W&B says finished, but the process is alive, at step 4"),
        *[((snapshot("failed", exit_code=code),), {"wandb": {"state": "finished"}}, "failed",
           "W&B says finished, but it failed") for code in (None, 1)],
        ((snapshot("finished"),), {"wandb": {"state": "crashed"}}, "finished",
         "W&B says crashed, but the training ran to its end"),
        # Files changed after the proof.
        ((snapshot("finished"),), {"manifest": MANIFEST, "defect": "a.safetensors has changed since it was verified"},
         "finished", "the adapter was verified, but a.safetensors has changed since it was verified"),
        # Two sources name different runs.
        ((snapshot("running"), snapshot("running", "gpu-2")), {}, "running",
         "it runs on gpu-1 and on gpu-2 at the same time"),
        ((snapshot("running"),), {"manifest": MANIFEST}, "verified",
         "its adapter is delivered, but it still runs on gpu-1"),
        ((snapshot("running", facts={"run_id": "mayor-1", "fingerprint": MARK}),), {}, "running",
         "gpu-1: run.json is that of mayor-1"),
        ((), {"manifest": dataclasses.replace(MANIFEST, run_id="mayor-1")}, "verified",
         "manifest.json is that of mayor-1"),
        ((snapshot("running"),), {"wandb": {"state": "running", "fingerprint": "f" * 64}}, "running",
         "W&B's run of this name has another recipe: ffffffffffff instead of 0123456789ab"),
        ((snapshot("finished", facts={"run_id": RUN, "fingerprint": "f" * 64}),), {"manifest": MANIFEST}, "verified",
         "the sources name different recipes: gpu-1 ffffffffffff, the manifest 0123456789ab"),
    ],
)  # fmt: skip
def test_sources_that_contradict_each_other(snapshots, known, state, words):
    found = judged(*snapshots, **known)
    assert (found.verdict, found.state, found.contradictions) == ("disputed", state, (words,))


def test_wandb_cannot_take_a_proof_back():
    found = judged(snapshot("finished", silent_for=9000.0), manifest=MANIFEST, wandb={"state": "crashed"})
    assert (found.verdict, found.state) == ("verified", "verified")
    assert found.contradictions == ("W&B says crashed, but the training ran to its end",)


SEVEN = ("pending", "running", "finished", "failed", "crashed", "killed", "preempted")


@pytest.mark.parametrize("state", ["queued", "running", "stalled", "stopped", "failed", "finished"])
@pytest.mark.parametrize("says", [*SEVEN, None])
@pytest.mark.parametrize("silent_for", [1.0, 9000.0])
def test_wandb_alone_never_decides(state, says, silent_for):
    wandb = {"error": {"kind": "server_down", "msg": ""}} if says is None else {"state": says}
    found = judged(snapshot(state, silent_for=silent_for), wandb=wandb)
    assert found.state == state
    assert found.verdict in (state, "disputed")
    assert (found.verdict == "disputed") == bool(found.contradictions)


BUNDLE = "playbooks/logs.yml -e role=witness -e bundle=true makes a file for whoever helps"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (judged(snapshot("failed")),
         f"playbooks/logs.yml -e role=witness, then train.yml again: resumes at step 2; {BUNDLE}"),
        (judged(snapshot("failed", checkpoint={"step": 0})),
         f"playbooks/logs.yml -e role=witness, then train.yml again; {BUNDLE}"),
        (judged(snapshot("finished"), placement=BAD),
         f"playbooks/logs.yml -e role=witness, then train.yml -e role=witness -e fresh=true trains again; {BUNDLE}"),
        (judged(snapshot("stopped")), "train.yml again: resumes at step 2"),
        (judged(snapshot("stalled")), "playbooks/logs.yml -e role=witness; playbooks/stop.yml -e role=witness, then "
         "train.yml again: resumes at step 2"),
        (judged(snapshot("finished")), "playbooks/collect.yml -e role=witness collects it"),
        (judged(snapshot("unknown")), "the same command when Slurm answers on gpu-1 again; what runs goes on"),
        (judged(manifest=MANIFEST, defect="x is missing"), "train.yml -e role=witness -e verify=true"),
        (judged(manifest=MANIFEST), ""),
        (judged(snapshot("running")), ""),
        (judged(), ""),
    ],
)  # fmt: skip
def test_what_to_do_next(found, words):
    assert verdict.next_step("witness", found) == words


def test_progress_of_nothing():
    found = run_state.progress([])
    assert (found.ended, found.measured) == (False, 0)
    assert {value for key, value in found.as_dict().items() if key not in ("ended", "measured")} == {None}
    assert run_state.eta_seconds(found) is None


def test_a_run_that_is_over_tells_how_many_of_its_cases_are_answered():
    trained = [event("begin", 0), event("log", 10, loss=0.5), event("end", 10, reason=None)]
    told = [{"event": "answers", "time": 1.0, "answered": done, "asked": 40} for done in (0, 12)]
    assert run_state.answering(run_state.progress(trained)) == ""
    assert run_state.answering(run_state.progress(trained + told[:1])) == "answering: 0 of 40 questions"
    assert run_state.answering(run_state.progress(trained + told)) == "answering: 12 of 40 questions"
    again = run_state.progress([*trained, *told, event("begin", 8)])  # it trains again, from a checkpoint
    assert (run_state.answering(again), again.asked) == ("", None)


@pytest.mark.parametrize(
    ("newest", "measured"),
    [
        ([event("begin", 2), event("log", 5, loss=1.0), event("eval", 6, eval_loss=1.0)], 3),
        ([event("begin", 4)], 0),  # what was measured before a resume says nothing of this start
    ],
)
def test_measured_are_the_steps_since_the_newest_begin(newest, measured):
    before = [event("begin", 0), event("log", 4, loss=2.0)]
    assert run_state.progress(before).measured == 4
    assert run_state.progress([*before, *newest]).measured == measured


def test_progress_sums_up():
    found = run_state.progress(
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
    assert (found.step, found.planned, found.epoch) == (4, 10, 0.4)
    assert (found.loss_first, found.loss, found.eval_first, found.eval_loss) == (2.0, 1.0, 2.2, 1.2)
    assert (found.tokens_per_second, found.seconds_per_step, found.last_event_at) == (60.0, 2.5, 21)
    assert found.data == {"examples": 14, "tokens": 140, "longer": 2, "dropped": 1, "untrainable": 1}
    assert run_state.eta_seconds(found) == 15.0


def test_progress_knows_the_newest_wandb_run_and_keeps_the_steps():
    found = run_state.progress(
        [
            {"event": "wandb", "time": 1, "mode": "offline", "run": "e/p/r", "url": None},
            event("begin", 0, 2),
            event("log", 3, 3, loss=1.0),
            {"event": "wandb", "time": 4, "mode": "online", "run": "e/p/r", "url": "http://w/e/p/r"},
        ]
    )
    assert found.wandb == {"mode": "online", "run": "e/p/r", "url": "http://w/e/p/r"}
    assert (found.step, found.planned, found.loss) == (3, 10, 1.0)


def test_a_progress_comes_back_as_it_was_from_the_answer_of_a_module():
    assert Progress.from_dict({**DONE.as_dict(), "of_another_version": 1}) == DONE
    assert Progress.from_dict({}) == Progress()


def test_an_observation_comes_back_as_it_was_from_the_answer_of_a_module():
    seen = Observation(state="running", progress=DONE, events=[event("begin", 0)], token="9:x", silent_for=1.0)
    answer = seen.as_dict()
    assert answer["progress"] == DONE.as_dict()
    assert "log_tail" not in answer
    assert Observation.from_dict({**answer, "changed": False}) == seen
    failed = dataclasses.replace(seen, state="failed", log_tail="boom")
    assert failed.as_dict()["log_tail"] == "boom"
    assert Observation.from_dict(failed.as_dict()) == failed


def test_one_of_all_runs_comes_without_what_is_long():
    listed = ListedRun(state="failed", progress=DONE, events=[{}], token="x", log_tail="boom", run_id="a-1", agent="a")
    answer = listed.as_dict()
    assert not {"events", "token", "log_tail"} & answer.keys()
    assert {"run_id", "agent", "gpu", "gpu_busy", "facts", "checkpoint"} <= answer.keys()
    assert ListedRun.from_dict(answer) == ListedRun(state="failed", progress=DONE, run_id="a-1", agent="a")


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
    found = run_state.progress(rundir.surviving_events(history))
    assert (found.step, found.loss, found.eval_loss, found.ended) == (2, 2.0, None, False)
    assert found.end_reason is None
    history += [event("log", 3, 105, loss=1.5)]
    assert run_state.progress(rundir.surviving_events(history)).seconds_per_step == 5.0  # of the newest start


@pytest.mark.parametrize(
    ("value", "finite"), [(1, True), (0.5, True), ("nan", False), (float("inf"), False), (None, False)]
)
def test_finite(value, finite):
    assert run_state.finite(value) is finite


# --- progress, closer ---------------------------------------------------------------------------------------------


def test_all_that_is_known_of_a_progress():
    found = run_state.progress(
        [
            {"event": "data", "time": 1, "examples": 10, "tokens": 100},
            {"event": "data", "time": 2, "examples": 10, "tokens": 100, "longer": 9},  # tokenised again
            {"event": "data", "time": 3, "examples": 10, "tokens": 50, "dropped": "2"},
            {"event": "wandb", "time": 4},
            event("begin", 3, 10),
            event("log", 3, 11, loss=3.0),
            event("log", 7, 18, loss=2.0, epoch=0.5),
            event("eval", 7, 19, eval_loss=2.5),
            event("eval", 8, 20, eval_loss=2.4),
            event("end", 9, 22),
        ]
    )
    assert found.as_dict() == {
        "step": 9,
        "planned": 10,
        "epoch": 0.5,
        "loss_first": 3.0,
        "loss": 2.0,
        "eval_first": 2.5,
        "eval_loss": 2.4,
        "tokens_per_second": None,
        "seconds_per_step": 2.0,
        "began_at": 10,
        "last_event_at": 22,
        "end_reason": None,
        "wandb": {"mode": None, "run": None, "url": None},
        "data": {"examples": 20, "tokens": 150, "longer": 9, "dropped": 2, "untrainable": 0},
        "ended": True,
        "measured": 6,
        "adapter_step": 9,
        "eval_adapter": None,
        "answered": None,
        "asked": None,
    }


@pytest.mark.parametrize(
    ("said", "step", "loss"), [(4, 4, 2.0), (6, 6, 2.5), (None, 6, 2.5), ([], 6, 2.5), (5, 5, None)]
)
def test_which_adapter_is_delivered_is_what_the_end_says(said, step, loss):
    evaluated = [event("eval", 4, 5, eval_loss=2.0), event("eval", 6, 7, eval_loss=2.5)]
    found = run_state.progress([event("begin", 0, 0), *evaluated, event("end", 6, 8, adapter=said)])
    assert (found.adapter_step, found.eval_adapter) == (step, loss)
    assert (found.step, found.eval_loss) == (6, 2.5)


def test_a_pace_is_measured_between_logs_and_not_where_it_evaluates_or_saves():
    begun = [event("begin", 0, 0), event("log", 2, 4, loss=1.0)]
    for kind in ("eval", "save"):
        assert run_state.progress([*begun, event(kind, 4, 100, eval_loss=1.0)]).seconds_per_step == 2.0
    assert run_state.progress([event("log", 2, 4, loss=1.0)]).measured == 0  # nobody knows when it began
    assert run_state.progress([*begun, event("end", 4, 6, reason=run_state.EARLY)]).end_reason == run_state.EARLY


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 12.0), ({"planned": None}, None), ({"seconds_per_step": None}, None), ({"seconds_per_step": 0.0}, None),
        ({"step": 10}, 0.0), ({"step": 12}, 0.0),
    ],
)  # fmt: skip
def test_how_long_it_still_takes(changes, seconds):
    assert run_state.eta_seconds(Progress(**{"step": 4, "planned": 10, "seconds_per_step": 2.0, **changes})) == seconds


@pytest.mark.parametrize(
    ("loss", "eval_loss", "words"),
    [
        (None, None, ""),
        (1.0, 2.0, ""),
        ("nan", None, "its loss is nan at step 4; it goes on, and would end as failed"),
        ("nan", "inf", "its loss is nan at step 4; it goes on, and would end as failed"),
        (1.0, "inf", "its eval loss is inf; it goes on, and latest moves to no adapter of such a loss"),
    ],
)
def test_losses_that_will_not_do_are_told_while_it_trains(loss, eval_loss, words):
    assert run_state.loss_warning(Progress(loss=loss, eval_loss=eval_loss, step=4)) == words


def test_everything_that_speaks_against_a_run_is_told():
    done = run_state.progress([event("log", 5, loss="nan")])
    assert run_state.unproven_reasons({"exit_code": None}, done, "the file is cut off") == [
        "the trainer's exit code is None",
        "5 of 10 steps were reached",
        "the last loss is nan",
        "the file is cut off",
    ]
    begun = dataclasses.replace(DONE, step=0, planned=None)
    assert run_state.unproven_reasons({"exit_code": 0}, begun) == ["0 of None steps were reached"]
    assert run_state.unproven_reasons({"exit_code": 0}, dataclasses.replace(DONE, step=1, planned=None)) == []
    assert run_state.unproven_reasons({"exit_code": 0}, dataclasses.replace(DONE, step=11)) == []
    assert run_state.unproven_reasons({"exit_code": 0}, dataclasses.replace(DONE, step=9, end_reason="stopped")) == [
        "9 of 10 steps were reached"
    ]


def test_several_reasons_stand_in_one_sentence():
    found = run_state.conclude({**OVER, "exit_code": 1}, SHORT, False, False, 9, 9, 60, 1800, defect="x is missing")
    assert found[1] == f"{BUT} the trainer's exit code is 1 and 5 of 10 steps were reached and x is missing"


@pytest.mark.parametrize(
    ("comes_back", "age", "state"),
    [
        (True, 89.9, "running"), (True, run_state.RESTART_WITHIN, "stopped"), (True, None, "stopped"),
        (False, 1.0, "stopped"),
    ],
)  # fmt: skip
def test_how_long_systemd_is_waited_for(comes_back, age, state):
    found = run_state.conclude({"state": "running"}, DONE, False, False, age, age, 60, 1800, comes_back=comes_back)
    assert found[0] == state
    if state == "running":
        assert found[1] == "its supervisor is gone (killed, or the host restarted); systemd starts it again"


@pytest.mark.parametrize("comes_back", [True, False])
def test_systemd_is_not_waited_for_where_it_cannot_start_anything(comes_back):
    state, detail = run_state.conclude(
        {"state": "running"},
        DONE,
        False,
        False,
        1.0,
        1.0,
        60,
        1800,
        comes_back=comes_back,
        fault="systemd gave it up",
    )
    assert state == "stopped"
    assert ("and systemd gave it up" in detail) is comes_back
    assert "the same command resumes" in detail


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_an_end_without_a_reason(state):
    assert run_state.conclude({"state": state}, DONE, True, True, 9999, 9999, 60, 1800) == (state, "")


def test_ages_that_nobody_knows_are_no_stall():
    assert run_state.conclude({"state": "running"}, DONE, True, True, None, None, 60, 1800) == ("running", "")


# --- judge, closer ------------------------------------------------------------------------------------------------


def test_the_snapshot_that_counts():
    late = snapshot("failed", "gpu-2", detail="late") | {
        "progress": {**snapshot("failed")["progress"], "last_event_at": 99.0}
    }
    never = snapshot("failed", "gpu-1", detail="never") | {
        "progress": {**snapshot("failed")["progress"], "last_event_at": None}
    }
    for snapshots in ((late, never), (never, late)):
        found = judged(*snapshots)
        assert (found.trainer, found.detail, found.snapshot) == ("gpu-2", "late", late)
    assert judged(late, never, placement=LAUNCHED).snapshot == never
    assert judged(late, snapshot("queued"), placement={**LAUNCHED, "trainer": "gpu-2"}).trainer == "gpu-1"


@pytest.mark.parametrize(
    ("known", "trainer"),
    [
        ({}, None),
        ({"manifest": MANIFEST}, "gpu-1"),
        ({"manifest": dataclasses.replace(MANIFEST, host=Host())}, None),
        ({"manifest": MANIFEST, "placement": {**LAUNCHED, "trainer": "gpu-2"}}, "gpu-2"),
    ],
)
def test_where_a_run_is_or_was(known, trainer):
    found = judged(**known)
    assert (found.trainer, found.snapshot) == (trainer, {})


def test_what_was_moved_to_a_silent_trainer_and_is_final_is_known():
    known = {"placement": {**BAD, "trainer": "gpu-3"}, "silent": {"gpu-3": "timed out"}}
    found = judged(snapshot("stopped"), **known)
    assert (found.state, found.trainer) == ("stopped", "gpu-1")


def test_an_end_that_was_noted_stands_where_nobody_has_the_run():
    for placement, detail in ((BAD, "tensor q is all zero"), ({**BAD, "detail": None}, "")):
        assert (judged(placement=placement).state, judged(placement=placement).detail) == ("failed", detail)
    bare = {"trainer": "gpu-1", "state": "failed", "final": True}
    assert judged(snapshot("finished"), placement=bare).detail == "its adapter was not verified"
    gone = {"trainer": "gone", "state": "finished", "final": True}
    assert (judged(placement=gone).state, judged(placement=gone).detail) == ("finished", "")
    silent = judged(placement={"trainer": "gpu-9"}, silent={"gpu-9": "refused"})
    assert silent.detail == "gpu-9 does not answer: refused"


def test_a_silent_trainer_and_a_wandb_that_cannot_be_asked():
    found = judged(placement=LAUNCHED, silent={"gpu-1": "x"}, wandb={"error": {"kind": "server_down", "msg": "…"}})
    assert found.detail == "gpu-1 does not answer: x; the last that is known: launched"
    assert found.contradictions == ()


def test_every_contradiction_is_told():
    other = {"run_id": "mayor-1", "fingerprint": "f" * 64}
    found = judged(
        snapshot("running", "gpu-2", facts=other),
        snapshot("queued", "gpu-1", facts={}),
        manifest=dataclasses.replace(MANIFEST, run_id="crew-1"),
        defect="x is missing",
        wandb={"state": "running", "fingerprint": "e" * 64},
    )
    assert found.verdict == "disputed"
    assert found.contradictions == (
        "the adapter was verified, but x is missing",
        "it runs on gpu-1 and on gpu-2 at the same time",
        "gpu-2: run.json is that of mayor-1",
        "manifest.json is that of crew-1",
        "the sources name different recipes: gpu-2 ffffffffffff, the manifest 0123456789ab",
        "W&B's run of this name has another recipe: eeeeeeeeeeee instead of 0123456789ab",
    )


def test_a_recipe_that_only_a_manifest_knows_is_held_against_wandb():
    found = judged(manifest=MANIFEST, wandb={"state": "finished", "fingerprint": "e" * 64})
    assert found.contradictions == ("W&B's run of this name has another recipe: eeeeeeeeeeee instead of 0123456789ab",)
    assert found.verdict == "verified"
    assert judged(manifest=MANIFEST, wandb={"state": "finished", "fingerprint": MARK}).contradictions == ()
    assert (
        judged(snapshot("running", facts={}), wandb={"state": "running", "fingerprint": "e" * 64}).contradictions == ()
    )


@pytest.mark.parametrize("says", ["running", "pending", "preempting"])
@pytest.mark.parametrize("state", ["stopped", "failed", "finished"])
def test_wandb_may_be_six_minutes_behind_an_end(state, says):
    assert judged(snapshot(state, silent_for=verdict.WANDB_LAG), wandb={"state": says}).contradictions == ()
    late = judged(snapshot(state, silent_for=verdict.WANDB_LAG + 1, exit_code=0), wandb={"state": says})
    assert late.contradictions == (f"W&B says {says}, but the process ended 6:01 ago",)
    unknown = judged(snapshot(state, silent_for=None), wandb={"state": says})
    assert unknown.contradictions == (f"W&B says {says}, but the process ended",)


def test_wandb_runs_on_where_the_adapter_is_delivered_and_nobody_has_the_run():
    found = judged(manifest=MANIFEST, wandb={"state": "running"})
    assert found.contradictions == ("W&B says running, but the process ended",)
    assert judged(snapshot("running"), manifest=MANIFEST, wandb={"state": "running"}).contradictions == (
        "its adapter is delivered, but it still runs on gpu-1",
    )


@pytest.mark.parametrize("says", ["failed", "crashed", "killed"])
def test_wandb_saw_a_failure_where_the_training_ran_to_its_end(says):
    found = judged(snapshot("finished", exit_code=0), wandb={"state": says})
    assert found.contradictions == (f"W&B says {says}, but the training ran to its end",)
    assert judged(snapshot("stopped"), wandb={"state": says}).contradictions == ()


@pytest.mark.parametrize(
    ("began_at", "started_at", "told"), [(5.0, 5.0, True), (5.0, 6.0, False), (None, None, True), (None, 1.0, False)]
)
def test_an_end_of_an_earlier_start_is_no_lie_until_the_new_one_trains(began_at, started_at, told):
    seen = snapshot("running", status={"started_at": started_at})
    seen["progress"]["began_at"] = began_at
    assert bool(judged(seen, wandb={"state": "failed"}).contradictions) is told


def test_a_verdict_of_a_sample_of_states_names_what_to_do():
    assert verdict.next_step("mayor", judged(snapshot("stopped", checkpoint=None))) == "train.yml again"
    assert verdict.next_step("mayor", judged(snapshot("queued"))) == ""
    both = judged(snapshot("failed"), placement=BAD)
    assert verdict.next_step("mayor", both).startswith(
        "playbooks/logs.yml -e role=mayor, then train.yml again: resumes at step 2; playbooks/logs.yml -e role=mayor"
    )


def test_data_that_is_counted_late_takes_no_step_back():
    late = {"event": "data", "time": 30, "examples": 4, "tokens": 40}
    found = run_state.progress([event("begin", 0), event("log", 4, 8, loss=1.0), late])
    assert (found.step, found.planned, found.last_event_at) == (4, 10, 30)


def test_a_verified_run_asks_for_nothing_whatever_its_trainer_says():
    assert verdict.next_step("mayor", judged(snapshot("finished"), manifest=MANIFEST)) == ""


def test_a_proof_that_no_longer_holds_is_told_as_a_contradiction_and_nowhere_else():
    found = judged(manifest=MANIFEST, defect="x is missing")
    assert (found.state, found.detail) == ("finished", "")
    assert found.contradictions == ("the adapter was verified, but x is missing",)


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("Connection refused", "gpu-1 does not answer: Connection refused"),
        ("gpu-1 did not answer within 3 s", "gpu-1 did not answer within 3 s"),
        ("its answer to trainer_info does not fit: runs", "gpu-1: its answer to trainer_info does not fit: runs"),
    ],
)
def test_a_trainer_that_answers_badly_is_not_called_silent(why, said):
    assert verdict.silence("gpu-1", why) == said


@pytest.mark.parametrize("jump", [7200.0, -14400.0])
def test_a_time_of_day_that_is_set_changes_no_pace(jump, seen):
    begun = {**event("begin", 0, 10), "uptime": 500.0}
    logged = {**event("log", 4, 30 + jump, loss=1.0), "uptime": 520.0}
    assert run_state.progress([begun, logged]).seconds_per_step == 5.0
    without = {**logged, "uptime": None}  # of an earlier lora-forge
    assert run_state.progress([begun, without]).seconds_per_step >= 0
    seen(
        f"the host's clock is set by {jump / 3600:+.0f} h in mid-run",
        "unit",
        "the pace and the time left are as before",
    )
