"""The last lines of a training: what is there, what is not, and why."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Dataset, Losses, Manifest, Merit, Steps
from ansible.module_utils.lora_forge.evaluation import scores
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, update_record
from ansible.module_utils.lora_forge.results import summary
from ansible.module_utils.lora_forge.text import short
from delivered import GATE, deliver, planned
from planned import planned_run
from wire import load


def crew(run_id="crew-1", **changes):
    return planned(run_id, **{"name": "crew lora_r 8", "trainer": "gpu-2", **changes})


RUN = crew()


def record(launched=(), delivered_at=0.0, at=1.0, **failures):
    """Return the record of crew-1; hosts are named with _ for -."""
    failed = {host.replace("_", "-"): {"at": at, "message": message} for host, message in failures.items()}
    hosts = {host: {"at": at, "started": True} for host in launched}
    return RunRecord("crew-1", failures=failed, hosts=hosts, delivered_at=delivered_at)


def test_why_a_run_is_not_there():
    def said(known):
        return summary.not_ready_lines(RUN, known)

    assert said(record(gpu_2="out of memory\nlook there")) == [
        "crew lora_r 8 is not ready: crew-1 on gpu-2: out of memory"
    ]
    lost = [
        "crew lora_r 8 is not ready: crew-1 on gpu-2: gpu-2 was lost on the way; the same command goes on, "
        "-e move=gpu-2 goes elsewhere"
    ]
    assert said(record()) == lost
    assert summary.not_ready_lines(crew(planned_at=2.0), record(gpu_2="in an earlier command")) == lost


def test_several_runs_are_counted_where_some_are_not_verified():
    runs = [RUN, crew("crew-2"), crew("crew-3")]
    assert summary.tally_lines(runs, []) == []
    assert "1 of 3 are verified, 1 train. " in summary.tally_lines(runs, ["crew-2"], 1)[-1]
    assert summary.tally_lines(runs[:1], ["crew-1"]) == []
    assert summary.tally_lines(runs, ["crew-2"])[-1].startswith(
        "2 of 3 are verified. The same command goes on with the others"
    )


def test_rates_in_few_digits():
    figures = (950, 1500, 21_000, 999_499, 999_500, 3_240_000, 12_000_000)
    assert [short(one) for one in figures] == ["950", "1.5 k", "21 k", "999 k", "1.0 M", "3.2 M", "12 M"]


GANG = crew(trainer="gpu-1", hosts=["gpu-1", "gpu-2"])


def test_of_a_gang_the_host_that_failed_is_named():
    known = record(gpu_1="crew-1 is stopped: on request", gpu_2="no GPU")
    assert summary.failure_reason(GANG, known) == "gpu-2: no GPU"
    assert summary.failure_reason(GANG, record(gpu_2="gpu-2: no answer")) == "gpu-2: no answer"
    assert summary.failure_reason(GANG, record(gpu_1="no GPU")) == "no GPU"
    refused = record(gpu_1="no GPU").failed_on("gpu-2", "crew-1 is not started: no GPU", 1.0, refused=True)
    assert summary.failure_reason(GANG, refused) == "no GPU"


def test_what_nobody_waits_for_trains_where_it_was_launched_and_not_elsewhere():
    assert summary.is_under_way(GANG, record(["gpu-1", "gpu-2"]))
    assert not summary.is_under_way(GANG, record(["gpu-1"]))
    assert not summary.is_under_way(GANG, record(["gpu-1", "gpu-2"], gpu_2="no GPU"))
    assert summary.is_under_way(RUN, record(["gpu-2"]))
    assert not summary.is_under_way(RUN, record())
    assert not summary.is_under_way(crew(planned_at=2.0), record(["gpu-2"]))
    assert not summary.is_under_way(crew(hosts=()), record()), "delivered by a host that this inventory has not"


def summed(output, runs, check, **given):
    module = load("library/lora_adapter_summary")
    options = {name: one.get("default") for name, one in module.ARGUMENTS.items()}
    plain = [run.as_dict() for run in runs]
    return module.answer({**options, "output": str(output), "checkout": "/", "runs": plain, **given}, check)


def answer(output, state, check=False, **given):
    found = summed(output, [crew(state=state)], check, **given)
    return found["not_verified"], found["show"]["lines"][-1]


def test_a_damaged_adapter_is_not_ready_because_its_manifest_is_there(tmp_path):
    folder = tmp_path / "adapters/crew/crew-1"
    folder.mkdir(parents=True)
    manifest = {
        "run_id": "crew-1", "loss": {"first": 2.0, "last": 1.0, "eval_first": None, "eval_last": None},
        "steps": {"reached": 1, "planned": 1}, "duration_s": 1, "cost": {"usd": 0}, "starts": 1, "rehearsal": False,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert answer(tmp_path, "ready")[0] == []
    assert answer(tmp_path, "to train")[0] == ["crew-1"]
    update_record(tmp_path, "crew-1", lambda known, now: known.failed_on("gpu-2", "no connection", now))
    not_verified, said = answer(tmp_path, "to train")
    assert (not_verified, said) == (["crew-1"], "crew lora_r 8 is not ready: crew-1 on gpu-2: no connection")
    assert "would be trained" in answer(tmp_path, "to train", check=True)[1]
    update_record(tmp_path, "crew-1", lambda known, now: record(delivered_at=now))
    assert answer(tmp_path, "to train")[0] == []


def test_what_was_lost_without_a_word_is_named_for_whoever_tells(tmp_path):
    assert [run["run_id"] for run in summed(tmp_path, [RUN], False)["lost"]] == ["crew-1"]
    update_record(tmp_path, "crew-1", lambda known, now: known.failed_on("gpu-2", "no connection", now))
    assert summed(tmp_path, [RUN], False)["lost"] == []


@pytest.fixture
def sweep(tmp_path):
    """Make two runs of a sweep, and what delivers one of them, the better one first."""

    def deliver(rank, loss):
        recipe, data = {"base_model": "m", "sequence_len": 64}, (Dataset(use="val", sha256="v"),)
        manifest = Manifest(
            run_id=f"crew-{rank}", verdict="verified", rehearsal=False, loss=Losses(eval_last=loss), recipe=recipe,
            datasets=data, evaluation=promotion.evaluation(recipe, data, loss), files=(),
        )  # fmt: skip
        folder = tmp_path / f"adapters/crew/crew-{rank}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest.as_dict()))

    return [crew(f"crew-{rank}", variant={"lora_r": rank}, state="ready") for rank in (8, 16)], deliver


def test_the_best_of_a_sweep_is_known_when_all_of_it_is_there(tmp_path, sweep):
    runs, deliver = sweep
    deliver(8, 0.9)
    assert summed(tmp_path, runs, False)["best"] == []
    deliver(16, 0.95)
    assert summed(tmp_path, runs, False)["best"] == [{"agent": "crew", "run_id": "crew-8"}]
    damaged = [crew("crew-8", variant={"lora_r": 8}), runs[1]]
    assert summed(tmp_path, damaged, False)["best"] == []


def test_the_gate_looks_at_the_best_of_a_sweep_where_that_is_wanted(tmp_path, sweep):
    runs, deliver = sweep
    latest = tmp_path / "adapters/crew/latest"
    deliver(8, 0.9)
    lines = summed(tmp_path, runs, False, promote_best=True)["show"]["lines"]
    assert lines[-1] == "  latest was left alone: not every variant is verified, so the best one is not known"
    deliver(16, 0.95)
    ranked = "  crew: by eval loss"
    assert summed(tmp_path, runs, False)["show"]["lines"] == [ranked]
    predicted = summed(tmp_path, runs, True, promote_best=True)
    assert (predicted["changed"], predicted["show"]["lines"]) == (True, [ranked, "  latest would point to crew-8"])
    assert not latest.is_symlink()
    moved = summed(tmp_path, runs, False, promote_best=True)
    assert (moved["changed"], moved["show"]["lines"]) == (True, [ranked, "  latest points to crew-8"])
    assert [row[2] for row in moved["show"]["rows"]] == ["crew-8", "crew-16"]
    assert latest.readlink().name == "crew-8"
    again = summed(tmp_path, runs, False, promote_best=True)
    assert (again["changed"], again["show"]["lines"]) == (False, [ranked, "  latest points to crew-8 already"])
    assert [row[2] for row in again["show"]["rows"]] == ["crew-8 *", "crew-16"]


@pytest.mark.parametrize(("adapter", "told"), [(6, True), (8, False), (None, False)])
def test_an_adapter_that_is_not_of_the_last_step_is_told(tmp_path, adapter, told):
    manifest = Manifest(
        run_id="crew-1", steps=Steps(8, 8, adapter), loss=Losses(2.0, 1.0, 2.0, 1.5, 1.25), starts=1, rehearsal=False
    )
    lines = summary.ready_lines(RUN, manifest, tmp_path, True, "")
    assert ("  the adapter is that of step 6, the best evaluated one: eval 1.25" in lines) is told


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ("localhost", "name your GPU host: ansible-playbook -i inventory/ssh.yml train.yml -e role=crew"),
        ("cluster", "run the same command without run_profile=rehearsal and trainer_lock=trainer-cpu"),  # it was named
    ],
)
def test_how_a_rehearsal_becomes_a_training(tmp_path, trainer, words):
    lines = summary.ready_lines(crew(trainer=trainer), Manifest(run_id="crew-1", rehearsal=True), tmp_path, True, "")
    assert lines[-1] == f"  This was a rehearsal with a tiny random model. For the real one, {words}"


def test_a_run_that_was_never_launched_does_not_train(tmp_path):
    not_verified, said = answer(tmp_path, "to train", detached=True)
    assert not_verified == ["crew-1"]
    assert "gpu-2 was lost on the way" in said
    update_record(tmp_path, "crew-1", lambda known, now: known.on_host("gpu-2", True, now))
    assert answer(tmp_path, "to train", detached=True) == (
        [], "crew lora_r 8 is launched on gpu-2; train.yml with the same options watches and collects it",
    )  # fmt: skip


def test_what_was_delivered_and_never_decided_on_goes_through_the_gate_and_what_is_left_of_it_goes(tmp_path):
    deliver(tmp_path, "crew", "crew-1")
    left = [tmp_path / "incoming/crew-1", tmp_path / "runs/crew-1/output", tmp_path / "adapters/crew/.crew-1.partial"]
    for folder in left:
        folder.mkdir(parents=True)
    given = {"output": str(tmp_path), "checkout": "/", "runs": [crew(state="ready").as_dict()], "detached": False,
             "promote_best": False, **GATE}  # fmt: skip
    answer = load("library/lora_adapter_summary").answer
    latest = tmp_path / "adapters/crew/latest"
    assert (answer(given, True)["changed"], latest.is_symlink(), left[0].exists()) == (True, False, True)
    found = answer(given, False)
    assert (found["changed"], found["show"]["lines"][-1]) == (True, "  latest points to crew-1")
    assert (latest.readlink().name, [folder.exists() for folder in left]) == ("crew-1", [False] * 3)
    assert answer(given, False)["changed"] is False


@pytest.fixture
def finished(tmp_path):
    """Leave runs as a command leaves them that dies between their delivery and its notification."""

    def leave(*runs):
        for run in runs:
            if not (tmp_path / f"adapters/crew/{run.run_id}").exists():
                deliver(tmp_path, "crew", run.run_id)
            update_record(tmp_path, run.run_id, lambda known, now: known.launched("gpu-2", 0, now))
            update_record(tmp_path, run.run_id, lambda known, now: known.ended("finished", "gpu-2", now))
        return tmp_path

    return leave


def settle(output, run_id, *events):
    for event in events:
        update_record(output, run_id, lambda known, now, event=event: known.settled(event, now))


def test_what_a_command_that_died_told_nobody_is_told_by_the_next_one(finished):
    run = crew(state="ready", trainer="gpu-1")  # where it would be trained now
    output = finished(run)
    assert summed(output, [run], True)["untold"] == []
    [untold] = summed(output, [run], False)["untold"]
    assert (untold["run"]["run_id"], untold["run"]["trainer"]) == ("crew-1", "gpu-2")
    assert untold["events"] == {"finished": "latest points to it"}
    manifest = store.read_manifest(output / "adapters/crew/crew-1")
    assert (untold["progress"]["step"], untold["progress"]["loss"]) == (manifest.steps.reached, manifest.loss.last)
    settle(output, "crew-1", "finished")
    assert summed(output, [run], False)["untold"] == []
    finished(run)  # launched, and delivered, once more
    assert len(summed(output, [run], False)["untold"]) == 1
    lacks = json.dumps(manifest.as_dict() | {"files": [{"path": "train.log", "sha256": "a" * 64, "bytes": 1}]})
    (output / "adapters/crew/crew-1/manifest.json").write_text(lacks)
    assert summed(output, [run], False)["untold"] == []


def test_an_adapter_that_nobody_noted_as_finished_here_owes_nothing(tmp_path):
    deliver(tmp_path, "crew", "crew-1")
    run = crew(state="ready")
    assert summed(tmp_path, [run], False, promote_by="human")["untold"] == []
    update_record(tmp_path, "crew-1", lambda known, now: known.launched("gpu-2", 0, now))
    assert summed(tmp_path, [run], False, promote_by="human")["untold"] == []


def test_that_somebody_has_to_decide_is_told_though_the_rest_was(finished):
    run = crew(state="ready")
    output = finished(run)
    told = summed(output, [run], False, promote_by="human")["untold"][0]["events"]
    assert list(told) == ["finished", "decision"]
    settle(output, "crew-1", "finished")
    assert summed(output, [run], False, promote_by="human")["untold"][0]["events"] == {"decision": told["decision"]}
    assert told["decision"].endswith("playbooks/promote.yml -e role=crew -e run_id=crew-1")
    promotion.promote_by_hand(output / "adapters/crew", "crew-1")
    assert summed(output, [run], False, promote_by="human")["untold"] == []  # somebody has decided


def test_that_somebody_has_to_decide_on_the_best_of_a_sweep_is_told(finished):
    runs = [crew(f"crew-{rank}", variant={"lora_r": rank}, state="ready") for rank in (8, 16)]
    output = finished(*runs)
    for run in runs:
        settle(output, run.run_id, "finished")
    assert summed(output, runs, False, promote_by="human")["untold"] == []
    found = summed(output, runs, False, promote_by="human", promote_best=True)
    best = [one["run_id"] for one in found["best"]]
    assert [(one["run"]["run_id"], list(one["events"])) for one in found["untold"]] == [(best[0], ["decision"])]
    settle(output, best[0], "decision")
    assert summed(output, runs, False, promote_by="human", promote_best=True)["untold"] == []


def test_of_a_sweep_nothing_is_promoted_that_was_not_decided_on(tmp_path):
    deliver(tmp_path, "crew", "crew-1")
    given = {"output": str(tmp_path), "checkout": "/", "runs": [crew(state="ready", variant={"lora_r": 8}).as_dict()],
             "detached": False, "promote_best": False, **GATE}  # fmt: skip
    assert load("library/lora_adapter_summary").answer(given, False)["changed"] is False
    assert not (tmp_path / "adapters/crew/latest").is_symlink()


def test_a_folder_in_the_place_of_latest_is_told_of_and_the_rest_is_summed_up(tmp_path):
    deliver(tmp_path, "crew", "crew-1")
    (tmp_path / "adapters/crew/latest").mkdir()
    given = {"output": str(tmp_path), "checkout": "/", "runs": [crew(state="ready").as_dict()], "detached": False,
             "promote_best": False, **GATE}  # fmt: skip
    found = load("library/lora_adapter_summary").answer(given, False)
    assert "latest is no symbolic link" in found["show"]["warnings"][0]
    assert "crew is ready already" in found["show"]["lines"][0]


# --- merit


def score(right, cases=20):
    return scores.score([(1.0, number < right) for number in range(cases)])


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (None, []),
        (Merit(cases=20, score=score(17), base=score(3)), ["  cases  17 of 20 (64 to 95 %)   base 3 of 20"]),
        (
            Merit(cases=20, score=score(17), base=score(3), against="crew-old", than=score(8),
                  over_promoted=scores.Comparison(20, ("a",) * 9, (), 0.0039, "better", 400)),
            ["  cases  17 of 20 (64 to 95 %)   base 3 of 20   crew-old 8 of 20: better (p 0.0039)"],
        ),
        (
            Merit(cases=5, score=score(4, 5), against="crew-old", than=score(5, 5), broken=("force",),
                  over_promoted=scores.Comparison(5, (), ("stuck",), 1.0, "cannot tell", 194)),
            [
                "  cases  4 of 5 (38 to 96 %)   crew-old 5 of 5: "
                "cannot tell with 5 cases; about 194 would tell 10 points",
                "  from right to wrong: stuck", "  it does what is forbidden in: force",
            ],
        ),
        (
            Merit(cases=3, unanswered=3, unchecked=1),
            ["  cases  –   3 of 3 not answered   1 not checked, for want of a judge"],
        ),
        (
            Merit(cases=20, score=score(17), unjudged=4, why_unjudged="m-1 at judge.example does not answer"),
            ["  cases  17 of 20 (64 to 95 %)",
             "  4 checks of answers have no verdict: m-1 at judge.example does not answer"],
        ),
    ],
)  # fmt: skip
def test_how_an_adapter_does_on_its_cases_is_said(given, lines):
    assert summary.merit_lines(given) == lines


def test_who_decides_reads_scores_and_the_command():
    over = scores.Comparison(20, ("a",) * 9, ("b",), 0.0215, "better", 400)
    merit = Merit(cases=20, score=score(17), base=score(3), against="crew-old", than=score(9), over_promoted=over)
    assert summary.decision_text(Manifest(merit=merit), "latest stays. By hand: …") == (
        "cases 17 of 20 (64 to 95 %), base 3 of 20, crew-old 9 of 20: better (p 0.021); from right to wrong: b. "
        "latest stays. By hand: …"
    )
    assert summary.decision_text(Manifest(), "By hand: …") == "it was asked no cases. By hand: …"


def test_where_answers_are_missing_the_command_is_said_that_asks_for_them():
    run, home = planned_run(state="ready"), pathlib.Path("output/adapters/witness")
    missing = Manifest(merit=Merit(cases=3, unanswered=3))
    lines = summary.ready_lines(run, missing, home, True, "")
    command = f"ansible-playbook playbooks/evaluate.yml -e run_id={run.run_id}"
    since = "such as cases that were written or changed since"
    assert lines[-1] == f"  to ask what is not answered, {since}: {command}"
    trained = summary.ready_lines(planned_run(state="to train"), missing, home, True, "")
    assert f"  to ask what is not answered: {command}" in trained
    assert summary.ready_lines(run, Manifest(merit=Merit(cases=3)), home, True, "")[1:] == ["  cases  –"]
