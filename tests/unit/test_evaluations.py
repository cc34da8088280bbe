"""Evaluations of adapters that are delivered: what is planned, what a trainer gets, what the answers lead to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import pytest
import rundir
from ansible.module_utils.lora_forge.adapters import merit, promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Cost, DeliveredFile, Host, Losses, Manifest, Steps
from ansible.module_utils.lora_forge.agents import agent_of, evaluated_by
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation.answers import UNLOADABLE, Answer
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import evaluations, found_runs, launch, plan_table, questions
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from ansible.module_utils.lora_forge.planning.launch import TrainerOptions
from ansible.module_utils.lora_forge.planning.run_record import update_record
from ansible.module_utils.lora_forge.pods import claims, costs
from ansible.module_utils.lora_forge.pods.claims import Claim
from ansible.module_utils.lora_forge.results import status
from ansible.module_utils.lora_forge.trainer import run_state
from delivered import GATE
from wire import load

OLD, NEW = "witness-00000000aaaa", "witness-00000000bbbb"
RECIPE = {"base_model": "Qwen/Qwen3-8B", "model_revision": "c0ffee", "load_in_4bit": True, "lora_r": 8}


class Desk:
    """A checkout with an agent and its cases, an output folder with adapters, and trainers."""

    def __init__(self, home: pathlib.Path):
        self.home, self.output = home, home / "output"
        self.adapters = self.output / "adapters/witness"
        (home / "configs/agents").mkdir(parents=True)
        for name in ("witness", "mayor"):
            (home / f"configs/agents/{name}.yml").write_text("{}\n")
        self.trainers = [Trainer("gpu-1", eval_dir=str(home / "eval")), Trainer("gpu-2", eval_dir=str(home / "eval"))]
        self.write(*["yes"] * 8)

    def write(self, *expected: str, asks: str = "question") -> None:
        rows = [
            {"messages": [{"role": "user", "content": f"{asks} {number}"}], "expect": [{"equals": one}],
             "max_new_tokens": 64}
            for number, one in enumerate(expected)
        ]  # fmt: skip
        (self.home / "eval").mkdir(exist_ok=True)
        (self.home / "eval/witness.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def deliver(self, run_id: str, at: float = 0.0, **changes: Any) -> pathlib.Path:
        folder = self.output / "adapters" / agent_of(run_id) / run_id
        folder.mkdir(parents=True)
        files = {store.WEIGHTS: run_id, "adapter_config.json": "{}", "tokenizer.json": "{}", "trainer_state.json": "{}",
                 "wandb/run-1/run-1.wandb": ""}  # fmt: skip
        rows = []
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            rows.append(DeliveredFile(name, hashlib.sha256(text.encode()).hexdigest(), len(text)))
        known: dict[str, Any] = {
            "run_id": run_id, "agent": "witness", "verdict": "verified", "rehearsal": False, "recipe": RECIPE,
            "base_model": "Qwen/Qwen3-8B", "files": tuple(rows), "host": Host("gpu-1"), "finished_at": 1e9 + at,
            "loss": Losses(2.0, 1.0, None, None), "steps": Steps(3, 3),
        }  # fmt: skip
        (folder / store.MANIFEST).write_text(json.dumps(Manifest(**{**known, **changes}).as_dict()))
        return folder

    def promote(self, run_id: str) -> None:
        promotion.promote(self.adapters, run_id, promotion.Gate())

    def plan(self, wanted: Any = "witness", trainers: list[Trainer] | None = None, **options: Any) -> list[PlannedRun]:
        known = Agents(self.home)
        made = evaluations.make(self.home, self.output, wanted, trainers or self.trainers, known, **options)
        return list(made.runs)

    def models(self, run: PlannedRun) -> dict[str, str]:
        manifest = store.read_manifest(self.adapters / run.evaluates)
        assert manifest is not None
        return questions.delivered_candidate(run, manifest, self.adapters).models

    def answer(self, run: PlannedRun, **texts: str) -> None:
        """Keep the same answer of a model to all that it is asked."""
        made = questions.cases_of(run, self.home)
        assert made is not None
        kept = questions.kept_answers(self.output)
        for who, text in texts.items():
            kept.add(self.models(run)[who], [Answer(case.key, text) for case in made.cases])

    def evaluate(self, *runs: PlannedRun, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {"output": str(self.output), "checkout": str(self.home), "runs": [run.as_dict() for run in runs],
                 "detached": False, "promote": False, **GATE, **options}  # fmt: skip
        answer: dict[str, Any] = load("library/lora_adapter_evaluation").answer(given, check)
        return answer

    @property
    def latest(self) -> str:
        return promotion.points_to(self.adapters / "latest")


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr("os.fsync", lambda file: None)
    return Desk(tmp_path)


def states(runs: list[PlannedRun]) -> list[tuple[str, str, int]]:
    return [(run.evaluates, run.state, run.estimate.steps) for run in runs]


# --- what is planned


def test_without_an_adapter_it_is_said_how_to_get_one(desk):
    with pytest.raises(UserError, match=r"witness has no adapter in .*train\.yml -e role=witness"):
        desk.plan()
    with pytest.raises(UserError, match="nothing to evaluate"):
        desk.plan(None)


def test_without_cases_it_is_said_where_they_are_looked_for(desk):
    desk.deliver(NEW)
    (desk.home / "eval/witness.jsonl").unlink()
    with pytest.raises(UserError, match=r"witness has no cases: there is no .*eval/witness\.jsonl"):
        desk.plan()


def test_of_all_agents_those_are_left_out_that_have_nothing(desk):
    desk.deliver(NEW)
    desk.deliver("mayor-00000000aaaa", agent="mayor")
    made = evaluations.make(desk.home, desk.output, None, desk.trainers, Agents(desk.home))
    assert [run.agent for run in made.runs] == ["witness"]
    assert "mayor has no cases" in made.warnings[0]
    with pytest.raises(UserError, match="mayor has no cases"):
        desk.plan("witness,mayor")


def test_what_is_matched_by_words_alone_is_said_once(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    row = {"system": "x", "user": "y", "expected_behaviors": ["escalates to the mayor"], "scenario": "stuck"}
    (desk.home / "eval/witness.jsonl").write_text(json.dumps(row) + "\n")
    made = evaluations.make(desk.home, desk.output, "witness", desk.trainers, Agents(desk.home))
    (warning,) = made.warnings
    assert len(made.runs) == 2
    assert "matched by its words alone, which proves little (stuck)" in warning


def test_a_damaged_adapter_is_not_asked(desk):
    folder = desk.deliver(NEW)
    (folder / store.WEIGHTS).write_text(NEW[::-1])
    with pytest.raises(UserError, match=f"{NEW} is not evaluated, as its adapter is not whole: .* has changed since"):
        desk.plan()


def test_the_newest_is_asked_with_the_promoted_one_and_that_one_not_again(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    newest, promoted = desk.plan()
    assert states([newest, promoted]) == [(NEW, "to evaluate", 24), (OLD, "ready", 0)]
    shown = [plan_table.table_row(run)[-1] for run in (newest, promoted)]
    assert shown == ["to evaluate: 24 answers", "all answers are known"]
    assert (newest.trainer, newest.hosts, newest.gpus, newest.adapter) == ("gpu-1", ("gpu-1",), 1, NEW)
    desk.answer(newest, adapter="yes", base="no", promoted="no")
    assert states(desk.plan()) == [(NEW, "ready", 0), (OLD, "ready", 0)]


def test_what_is_expected_asks_nobody_and_what_is_asked_makes_another_run(desk):
    desk.deliver(NEW)
    (first,) = desk.plan()
    assert agent_of(first.run_id) == "witness"
    assert evaluated_by(first.run_id) == NEW
    assert desk.plan()[0].run_id == first.run_id, "a second command attaches"
    desk.answer(first, adapter="yes", base="no")
    desk.write(*["no"] * 8)
    (again,) = desk.plan()
    assert (again.run_id, again.state) == (first.run_id, "ready")
    desk.write(*["yes"] * 8, asks="questions")
    (other,) = desk.plan()
    assert other.run_id != first.run_id
    assert (other.state, other.estimate.steps) == ("to evaluate", 16)


def test_a_question_that_no_model_takes_is_not_asked_again(desk):
    desk.deliver(NEW)
    (run,) = desk.plan()
    made = questions.cases_of(run, desk.home)
    desk.answer(run, base="no")
    answers = [Answer(case.key, "", error="too long") for case in made.cases]
    questions.kept_answers(desk.output).add(desk.models(run)["adapter"], answers)
    assert desk.plan()[0].state == "ready"
    found = desk.evaluate(desk.plan()[0])["adapters"][0]["merit"]
    assert (found["unanswered"], found["score"]["cases"]) == (8, 0)


@pytest.mark.parametrize(
    ("noted", "state", "trainer"),
    [
        ({"state": "launched", "trainer": "gpu-2"}, "to attach", "gpu-2"),
        ({"state": "finished", "trainer": "gpu-2", "final": True}, "to attach", "gpu-2"),
        ({"state": "failed", "trainer": "gpu-2", "final": True}, "to resume", "gpu-2"),
        ({"state": "stopped", "trainer": "gone", "final": True}, "to evaluate", "gpu-1"),
        ({"state": "finished", "trainer": "gpu-2", "final": True, "delivered_at": 5.0}, "to evaluate", "gpu-1"),
    ],
)
def test_it_goes_on_where_it_was_launched(desk, noted, state, trainer):
    desk.deliver(NEW, host=Host("gpu-1"))
    run_id = desk.plan()[0].run_id
    (desk.output / "runs").mkdir(exist_ok=True)
    rundir.write_json(desk.output / f"runs/{run_id}.json", {"run_id": run_id, "lane": 0, **noted})
    (run,) = desk.plan()
    assert (run.run_id, run.state, run.trainer) == (run_id, state, trainer)


def test_one_that_lives_elsewhere_is_not_begun_twice(desk):
    desk.deliver(NEW)
    run_id = desk.plan()[0].run_id
    update_record(desk.output, run_id, lambda record, now: record.launched("lost", 0, now))
    with pytest.raises(UserError, match="-e move=lost"):
        desk.plan()
    assert desk.plan(move="lost")[0].state == "to evaluate"


def test_where_the_one_that_trained_it_is_gone_any_other_one_asks(desk):
    desk.deliver(NEW, host=Host("elsewhere"))
    assert desk.plan()[0].trainer == "gpu-1"
    assert desk.plan(trainers=desk.trainers[1:])[0].trainer == "gpu-2"


def test_a_trainer_of_other_agents_asks_where_nobody_else_is_left(desk):
    desk.deliver(NEW, host=Host("elsewhere"))
    others = [dataclasses.replace(trainer, agents=("mayor",)) for trainer in desk.trainers]
    assert states(desk.plan(trainers=others)) == [(NEW, "to evaluate", 16)]
    own = dataclasses.replace(others[1], agents=("witness",))
    assert desk.plan(trainers=[others[0], own])[0].trainer == "gpu-2"


def test_an_evaluation_takes_one_gpu_where_trainings_take_several_hosts(desk):
    members = ("gpu-1", "gpu-2")
    gang = [Trainer(name, eval_dir=str(desk.home / "eval"), gpus=4, lanes=1, hosts=2, members=members, groups=("g",))
            for name in members]  # fmt: skip
    desk.deliver(NEW, recipe=RECIPE | {"fsdp_config": {"offload_params": False}, "fsdp_version": 2})
    (run,) = desk.plan(trainers=gang)
    assert (run.hosts, run.gpus) == (("gpu-1",), 1)
    assert not run.recipe.keys() & {"fsdp_config", "fsdp_version"}


def test_a_rehearsal_and_a_real_adapter_each_need_a_trainer_of_their_kind(desk):
    tiny = "/somewhere/models/tiny-random-qwen3-0123456789ab"
    desk.deliver(NEW, rehearsal=True, base_model=tiny, recipe=RECIPE | {"base_model": "tiny-random-qwen3"})
    with pytest.raises(UserError, match="is a rehearsal, and no trainer of this inventory rehearses"):
        desk.plan()
    rehearses = [Trainer("here", "rehearsal", eval_dir=str(desk.home / "eval"))]
    (run,) = desk.plan(trainers=rehearses)
    assert launch.base_model_path(run, "/root") == "/root/models/tiny-random-qwen3-0123456789ab"
    assert run.estimate.steps == 4, "a rehearsal is asked two cases"
    desk.deliver(OLD)
    with pytest.raises(UserError, match="real adapter, and every trainer of this inventory only rehearses"):
        desk.plan(trainers=rehearses)
    with pytest.raises(UserError, match="cannot be compared: one of them is a rehearsal"):
        desk.plan(run_id=OLD, against=NEW)


def test_an_adapter_is_chosen_by_its_run(desk):
    desk.deliver(OLD)
    desk.deliver(NEW, at=1)
    assert [run.evaluates for run in desk.plan(None, run_id=OLD)] == [OLD]
    with pytest.raises(UserError, match=rf"no adapter «witness-00000000bbbc» .*did you mean «{NEW}».*Delivered"):
        desk.plan(run_id="witness-00000000bbbc")


def test_a_variant_of_a_sweep_is_evaluated_where_it_is_named_or_promoted(desk):
    desk.deliver(OLD)
    desk.deliver(NEW, at=1)
    rows = [{"run_id": NEW, "variant": {"lora_r": 8}, "label": "lora_r 8"}]
    (desk.output / "sweeps").mkdir()
    rundir.write_json(desk.output / "sweeps/witness-0.json", {"agent": "witness", "runs": rows, "made_at": 1.0})
    assert [run.evaluates for run in desk.plan()] == [OLD]
    (run,) = desk.plan(run_id=NEW)
    desk.answer(run, adapter="yes", base="no")
    desk.evaluate(*desk.plan(run_id=NEW))
    assert desk.latest == "", "of a sweep only the best one is looked at by the gate"


def test_its_answers_are_priced_and_bounded_as_those_of_a_training_and_said_in_words(desk):
    desk.deliver(OLD)
    desk.deliver(NEW, at=1)
    (one,), (other,) = desk.plan(run_id=OLD), desk.plan(run_id=NEW)
    assert (one.estimate.work, one.estimate.answers.count, one.estimate.answers.steps) == (0, 16, 2 * 64)
    assert 0.3 < (costs.training_hours(one.as_dict(), "NVIDIA L40S") or 0) < 0.5
    assert plan_table.describe_queues([one, other]) == [f"gpu-1: {OLD}, {NEW}, one after the other; 32 answers"]
    # Its steps are its answers: what is left goes by their pace alone.
    assert costs.answering_after([one.as_dict(), other.as_dict()], "NVIDIA L40S") == 0
    assert costs.answering_after([dataclasses.replace(one, evaluates="").as_dict()], "NVIDIA L40S") > 60


# --- what its trainer gets


def test_its_trainer_gets_the_adapter_and_questions_alone(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    run = desk.plan()[0]
    staged = questions.question_files(run, "runs/x", desk.home, desk.output, "Qwen/Qwen3-8B")
    staged += questions.adapter_files(run, "runs/x", desk.output)
    staged += launch.input_files(run, desk.home, "…", desk.output, [], {})
    told = {file["path"]: file for file in staged}
    assert [path for path in told if "programs" not in path] == [
        "runs/x/questions.json", "runs/x/promoted/adapter_model.safetensors", "runs/x/promoted/adapter_config.json",
        "runs/x/adapter/adapter_model.safetensors", "runs/x/adapter/adapter_config.json",
        "runs/x/adapter/tokenizer.json", "runs/x/adapter/trainer_state.json",
        f"runs/{run.run_id}/axolotl.yml"]  # fmt: skip
    assert "expect" not in told["runs/x/questions.json"]["content"]
    made = launch.plan_launch(run, "gpu-1", TrainerOptions(root="/root", python="/env/python", wandb="online"))
    assert made.command == ["/env/python", "programs/answer_cases.py"]
    assert (made.environment["WANDB_MODE"], made.prepared, made.facts["evaluates"]) == ("disabled", None, NEW)
    variables = launch.template_variables(run, "/root", "disabled")
    assert variables["recipe"]["base_model"] == "Qwen/Qwen3-8B"
    # as Axolotl takes a recipe with eval_steps only where there is something to evaluate
    assert (len(variables["datasets"]), len(variables["test_datasets"])) == (1, 1)


def test_a_promoted_adapter_that_was_damaged_meanwhile_is_not_sent(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    run = desk.plan()[0]
    (desk.adapters / NEW / store.WEIGHTS).write_text(NEW[::-1])
    with pytest.raises(UserError, match="is not whole"):
        questions.adapter_files(run, "runs/x", desk.output)


def test_what_a_trainer_sends_is_held_to_what_was_asked(desk):
    desk.deliver(NEW)
    (run,) = desk.plan()
    case, *others = questions.cases_of(run, desk.home).cases
    weights = desk.models(run)["adapter"]
    sent = desk.home / "answers.jsonl"
    rows = [
        {"who": "adapter", "key": case.key, "text": "y" * 100_000, "weights": weights},
        {"who": "adapter", "key": others[0].key, "text": 5, "weights": weights},
        {"who": "adapter", "key": others[1].key, "text": "yes", "weights": "0" * 64},
        {"who": "adapter", "key": "0" * 64, "text": "yes", "weights": weights},
        {"who": "somebody", "key": case.key, "text": "yes"},
    ]
    for row in rows:
        rundir.append_line(sent, row)
    said, missing = questions.take_answers(run, sent, desk.home, desk.output)
    assert sorted(words.split(": ")[0] for words in said) == [
        "1 answers are by nobody who was asked", "1 answers are longer than their tokens can be, and cut",
        "1 answers are no text", "1 answers are of other weights",
        "1 answers are to questions that are not among its cases"]  # fmt: skip
    assert missing == 7
    assert len(questions.kept_answers(desk.output).read(weights)[case.key].text) == 64 * 24


# --- what follows


def test_an_adapter_that_was_never_decided_on_goes_through_the_gate_once(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    desk.answer(desk.plan()[0], adapter="yes", base="no", promoted="no")
    runs = desk.plan()
    asked = desk.evaluate(*runs, check=True)
    assert any("8 of 8" in line for line in asked["show"]["lines"])
    assert (asked["changed"], desk.latest, merit.read(desk.adapters / NEW)) == (False, OLD, ([], None))
    found = desk.evaluate(*runs)
    assert (found["changed"], found["not_evaluated"], desk.latest) == (True, [], NEW)
    assert promotion.history(desk.adapters)[-1]["why"] == f"better on its cases: 8 of 8 against 0 of 8 of {OLD}"
    again = desk.evaluate(*desk.plan())
    assert (again["changed"], desk.latest) == (False, NEW)
    assert f"{NEW} (latest)" in again["show"]["lines"]


def test_one_that_was_decided_on_moves_only_where_that_is_asked(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    desk.promote(NEW)
    assert desk.latest == OLD, "their losses cannot be compared"
    desk.answer(desk.plan()[0], adapter="yes", base="no", promoted="no")
    found = desk.evaluate(*desk.plan())
    told = "\n".join(found["show"]["lines"])
    assert "the gate would let it pass now" in told
    assert f"playbooks/promote.yml -e role=witness -e run_id={NEW}" in told
    assert desk.latest == OLD
    assert not desk.evaluate(*desk.plan())["changed"]
    desk.evaluate(*desk.plan(), promote=True)
    assert desk.latest == NEW
    desk.write(*["no"] * 8)  # by another expectation the old one is better
    found = desk.evaluate(*desk.plan(), *desk.plan(run_id=OLD))
    assert desk.latest == NEW
    assert "the gate would let it pass now" in "\n".join(found["show"]["lines"])


def test_a_worse_one_of_other_data_stays_where_it_is(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    desk.answer(desk.plan()[0], adapter="no", base="no", promoted="yes")
    found = desk.evaluate(*desk.plan())
    assert desk.latest == OLD
    assert any("worse on its cases: 0 of 8 against 8 of 8" in line for line in found["show"]["lines"])


def test_against_another_one_it_is_compared_and_nothing_is_written(desk):
    desk.deliver(OLD)
    desk.deliver(NEW, at=1)
    desk.promote(NEW)
    (run,) = desk.plan(run_id=NEW, against=OLD)
    assert run.estimate.steps == 24
    desk.answer(run, adapter="yes", base="no", promoted="no")
    (run,) = desk.plan(run_id=NEW, against=OLD)
    before = (desk.adapters / NEW / store.MANIFEST).read_bytes()
    found = desk.evaluate(run)
    assert any(f"{OLD} 0 of 8: better" in line for line in found["show"]["lines"])
    assert (found["changed"], (desk.adapters / NEW / store.MANIFEST).read_bytes()) == (False, before)


def test_a_promoted_adapter_that_cannot_be_loaded_keeps_no_new_one_from_its_evaluation(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    run = desk.plan()[0]
    sent, fault = desk.home / "answers.jsonl", f"{UNLOADABLE}: RuntimeError: size mismatch for q_proj"
    for who, weights in desk.models(run).items():
        for case in questions.cases_of(run, desk.home).cases:
            said = {"text": "", "error": fault} if who == "promoted" else {"text": "yes"}
            rundir.append_line(sent, {"who": who, "key": case.key, "weights": weights, **said})
    assert questions.take_answers(run, sent, desk.home, desk.output) == ([], 0)
    assert states(desk.plan()) == [(NEW, "ready", 0), (OLD, "ready", 0)], "nobody is asked again"
    found = desk.evaluate(*desk.plan())
    assert f"  {OLD} was not asked: {fault}" in found["show"]["lines"]
    assert (found["not_evaluated"], desk.latest) == ([], NEW)
    assert promotion.history(desk.adapters)[-1]["why"] == f"{OLD} is no rival: {fault}"
    again = desk.evaluate(*desk.plan())
    assert (again["changed"], desk.latest) == (False, NEW)


def damage(folder: pathlib.Path) -> None:
    """Change the weights, so that neither size nor time tells."""
    weights, manifest = folder / store.WEIGHTS, folder / store.MANIFEST
    weights.write_text(folder.name[::-1])
    os.utime(weights, ns=(manifest.stat().st_atime_ns, manifest.stat().st_mtime_ns))


@pytest.mark.parametrize("seen", ["by the plan", "when it is sent"])
def test_a_promoted_adapter_that_is_damaged_keeps_no_new_one_from_its_evaluation(desk, seen):
    old = desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    told = f"{NEW} is held against no other one: the adapter of {OLD} is not whole: "
    if seen == "by the plan":
        (old / store.WEIGHTS).write_text("cut")
    else:
        damage(old)
    known = Agents(desk.home)
    made = evaluations.make(desk.home, desk.output, "witness", desk.trainers, known)
    run, warned = made.runs[0], list[str]()
    files = questions.question_files(run, "runs/x", desk.home, desk.output, "Qwen/Qwen3-8B", warned.append)
    assert [file["path"] for file in files] == ["runs/x/questions.json"], "it is not sent"
    asked = json.loads(files[0]["content"])
    assert {who: len(keys) for who, keys in asked["ask"].items() if keys} == {"adapter": 8, "base": 8}
    if seen == "by the plan":
        assert states(list(made.runs)) == [(NEW, "to evaluate", 16)]
        assert [words for words in made.warnings if words.startswith(f"{OLD} is not evaluated, as its adapter")]
    else:
        assert [words for words in warned if words.startswith(told)]
        verified = evaluations.make(desk.home, desk.output, "witness", desk.trainers, known, verify=True)
        assert states(list(verified.runs)) == [(NEW, "to evaluate", 16)]
        assert [words for words in verified.warnings if words.startswith(told)]


def test_one_of_another_base_model_is_asked_by_a_run_of_its_own(desk):
    desk.deliver(OLD, recipe=RECIPE | {"model_revision": "0ld"})
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    assert states(desk.plan()) == [(NEW, "to evaluate", 16), (OLD, "to evaluate", 16)]
    newest, promoted = desk.plan()
    desk.answer(newest, adapter="yes", base="no")
    (held,) = desk.plan(run_id=NEW, against=OLD)
    assert f"{OLD} has not answered these cases: -e run_id={OLD} asks it" in desk.evaluate(held)["show"]["lines"][-1]
    desk.answer(promoted, adapter="no", base="no")
    desk.evaluate(*desk.plan())
    assert desk.latest == NEW, "they are compared by the answers that each gave"


def collected(desk: Desk, run: PlannedRun, **changes: Any) -> dict[str, Any]:
    """Collect a training's adapter, as another command has brought it here."""
    trained = dataclasses.replace(run, run_id=run.evaluates, evaluates="", state="to train", **changes)
    given = {"source": "", "adapters": str(desk.output / "adapters"), "checkout": str(desk.home), "delivered": {},
             "run": trained.as_dict(), "observed": {}, "budget": {}, "promote": True, "discard": [],
             **GATE}  # fmt: skip
    answer: dict[str, Any] = load("library/lora_adapter").answer(given, False)
    return answer


def test_cases_that_were_spoilt_meanwhile_cost_no_adapter_and_the_gate_waits_for_them(desk):
    desk.deliver(OLD)
    desk.promote(OLD)
    desk.deliver(NEW, at=1)
    run = desk.plan()[0]
    desk.answer(run, adapter="yes", base="no", promoted="no")
    path = desk.home / "eval/witness.jsonl"
    whole = path.read_text()
    for spoilt in (lambda: path.write_text("{}\n"), path.unlink):
        spoilt()
        found = collected(desk, run)
        assert found["message"].startswith("latest stays at witness-00000000aaaa"), found["message"]
        assert f"{NEW} is delivered, and not evaluated: " in found["message"]
        assert "eval/witness.jsonl" in found["message"]
        assert "the next command evaluates it, and decides" in found["message"]
        later = f"playbooks/evaluate.yml -e run_id={NEW} evaluates it, and decides"
        assert later in collected(desk, run, by_notes=True)["message"]
        assert NEW not in [line["run_id"] for line in promotion.history(desk.adapters)], "it is not decided on"
    path.write_text(whole)
    assert collected(desk, run)["promoted"]
    assert promotion.history(desk.adapters)[-1]["why"].startswith("better on its cases")


def test_where_another_one_is_promoted_while_a_judge_thinks_it_is_held_against_that_one(desk, monkeypatch):
    between = "witness-00000000abab"
    for at, run_id in enumerate((OLD, between, NEW)):
        desk.deliver(run_id, at=at)
    desk.promote(OLD)
    (run,), (middle,) = desk.plan(run_id=NEW), desk.plan(run_id=between)
    desk.answer(run, adapter="yes", base="no", promoted="no")
    desk.answer(middle, adapter="no", base="no")
    evaluate = questions.evaluate_delivered

    def slowly(*args: Any) -> list[str]:
        said = evaluate(*args)
        if desk.latest == OLD:
            promotion.promote_by_hand(desk.adapters, between)
        return said

    monkeypatch.setattr(questions, "evaluate_delivered", slowly)
    assert collected(desk, run)["promoted"]
    assert promotion.history(desk.adapters)[-1]["why"] == f"better on its cases: 8 of 8 against 0 of 8 of {between}"


def test_check_mode_leaves_not_even_a_lock(desk):
    desk.deliver(NEW)
    desk.answer(desk.plan()[0], adapter="yes", base="no")
    before = sorted(desk.output.rglob("*"))
    desk.evaluate(*desk.plan(), check=True)
    assert sorted(desk.output.rglob("*")) == before


def test_what_is_not_answered_is_no_score(desk):
    desk.deliver(NEW)
    (run,) = desk.plan()
    found = desk.evaluate(run)
    assert (found["not_evaluated"], found["adapters"]) == ([NEW], [])
    assert found["show"]["lines"] == [
        f"{NEW} is not evaluated: {run.run_id} on gpu-1: gpu-1 was lost on the way; the same command goes on, "
        "-e move=gpu-1 goes elsewhere"
    ]
    assert merit.read(desk.adapters / NEW) == ([], None)


# --- on its trainer


def test_an_evaluation_is_proven_by_its_answers_and_has_no_loss():
    events = [
        {"event": "begin", "time": 1.0, "uptime": 1.0, "step": 2, "planned": 10},
        {"event": "answers", "time": 9.0, "uptime": 9.0, "step": 6, "planned": 10, "answered": 6, "asked": 10},
    ]
    done = run_state.progress(events)
    assert (done.step, done.planned, done.measured, run_state.eta_seconds(done)) == (6, 10, 4, 8.0)
    assert run_state.unproven_reasons({"exit_code": 0}, done, trains=False) == ["6 of 10 answers are there"]
    whole = run_state.progress([*events, {"event": "end", "time": 10.0, "uptime": 10.0, "step": 10, "planned": 10}])
    assert run_state.unproven_reasons({"exit_code": 0}, whole, trains=False) == []


def test_what_stops_runs_finds_evaluations_by_what_was_noted(desk):
    desk.deliver(NEW)
    run_id = desk.plan()[0].run_id
    update_record(desk.output, run_id, lambda record, now: record.launched("gpu-1", 0, now))

    def find(agent: str, **options: Any) -> list[PlannedRun]:
        known = Agents(desk.home)
        return list(found_runs.find(desk.home, desk.output, agent, desk.trainers, {}, known, **options).runs)

    (found,) = find("witness")
    assert (found.run_id, found.state, found.trainer, found.evaluates) == (run_id, "to attach", "gpu-1", NEW)
    assert plan_table.table_row(found)[-2:] == ("–", "to attach (an evaluation)")
    with pytest.raises(UserError, match="is missing; make it with"):  # and nothing was noted that could be asked
        find("witness", outside=["gpu-1"])


def test_the_status_shows_an_evaluation_until_its_answers_are_here(desk):
    desk.deliver(NEW)
    run_id = desk.plan()[0].run_id
    update_record(desk.output, run_id, lambda record, now: record.launched("gpu-1", 0, now))
    heard = {"silent": "no route to host"}

    def shown() -> dict[str, Any]:
        rows = status.current_rows(status.collect_status(desk.output, {"gpu-1": heard}, {}))
        return {row["run_id"]: row for row in rows}

    assert {name: row["verdict"] for name, row in shown().items()} == {run_id: "unknown", NEW: "verified"}
    update_record(desk.output, run_id, lambda record, now: record.ended("failed", "gpu-1", now, "no room"))
    heard = {"runs": []}
    row = shown()[run_id]
    assert (row["agent"], row["detail"]) == ("witness", "no room")
    assert row["next"] == "playbooks/evaluate.yml -e role=witness asks again"
    update_record(desk.output, run_id, lambda record, now: dataclasses.replace(record, delivered_at=now))
    assert list(shown()) == [NEW]


def test_what_an_evaluation_cost_is_what_its_adapter_cost(desk):
    budget = costs.Budget(usd_per_hour=0.5, spent=0.0, since=0.0, max_usd=0.0, max_hours=0.0, pods=["pod2"])
    before = Cost(2.31, 0.86, "RunPod's price × time", ("pod1",))
    after = costs.with_evaluation(before, budget, 0.2)
    assert (after.usd, after.pods, after.usd_per_hour) == (2.51, ("pod1", "pod2"), 0.5)
    assert costs.with_evaluation(Cost(0.0, 0.0, "own hardware"), budget, 0.2).pods == ("pod2",)


def test_a_pod_of_an_evaluation_is_claimed_until_its_answers_are_here(desk):
    desk.deliver(NEW)
    run_id = desk.plan()[0].run_id
    known = {"output": str(desk.output), "pod_id": "pod1", "asked_at": 1.0, "usd_per_hour": 3600}
    claim = Claim("x", "owner", "pod-1", [run_id], **known)
    update_record(desk.output, run_id, lambda record, now: record.launched("pod-1", 0, now))
    assert claims.active_runs(claim, 1e9) == [run_id]
    assert claims.cost_by_run([claim], desk.output / "adapters", 11.0) == {run_id: 10.0}
    update_record(desk.output, run_id, lambda record, now: record.ended("finished", "pod-1", now))
    assert claims.active_runs(claim, 1e9) == [run_id]
    update_record(desk.output, run_id, lambda record, now: dataclasses.replace(record, delivered_at=now))
    assert claims.active_runs(claim, 1e9) == []
    assert claims.cost_by_run([claim], desk.output / "adapters", 11.0) == {}
