"""What a trainer is asked about a run's adapter, and what becomes of its answers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib

import pytest
import rundir
from ansible.module_utils.lora_forge.adapters import merit, promotion, store
from ansible.module_utils.lora_forge.data import cases
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation import answers
from ansible.module_utils.lora_forge.evaluation.answers import Answer
from ansible.module_utils.lora_forge.planned_run import PlannedCases
from ansible.module_utils.lora_forge.planning import questions
from desk import OURS, RECIPE, THEIRS, Desk


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Desk:
    return Desk(tmp_path)


def test_without_cases_nothing_is_asked(desk):
    run = desk.run(cases=PlannedCases())
    assert questions.question_files(run, "runs/x", desk.home, desk.output, "base") == []
    desk.deliver("witness-new", OURS)
    assert questions.evaluate_delivered(run, desk.home, desk.output) == []
    assert not (desk.agent / "witness-new/evaluation.jsonl").exists()


def test_the_adapter_and_its_base_are_asked(desk):
    assert desk.asked(desk.run()) == ({"adapter": 3, "base": 3}, [])


def test_the_promoted_one_of_the_same_base_is_asked_what_it_has_not_answered(desk):
    desk.deliver("witness-old", THEIRS)
    desk.promote("witness-old")
    sent = ["runs/x/promoted/adapter_model.safetensors", "runs/x/promoted/adapter_config.json"]
    assert desk.asked(desk.run()) == ({"adapter": 3, "base": 3, "promoted": 3}, sent)
    kept = questions.kept_answers(desk.output)
    keys = [case.key for case in cases.read(desk.home / "eval/witness.jsonl").cases]
    kept.add(THEIRS, [Answer(key, "no") for key in keys])
    kept.add(merit.base_key("Qwen/Qwen3-8B", RECIPE), [Answer(keys[0], "no")])
    assert desk.asked(desk.run()) == ({"adapter": 3, "base": 2, "promoted": 0}, [])


def test_one_of_another_base_is_not_sent_there(desk):
    desk.deliver("witness-old", THEIRS, base_model="Qwen/Qwen3-4B", recipe={**RECIPE, "base_model": "Qwen/Qwen3-4B"})
    desk.promote("witness-old")
    assert desk.asked(desk.run()) == ({"adapter": 3, "base": 3}, [])


def test_a_rehearsal_is_asked_a_little(desk):
    run = desk.run(rehearsal=True)
    first = questions.question_files(run, "runs/x", desk.home, desk.output, "/r/models/tiny")[0]
    told = json.loads(first["content"])
    assert [one["max_new_tokens"] for one in told["questions"].values()] == [32, 32]


def test_answers_become_an_evaluation_and_are_kept(desk):
    run = desk.run()
    desk.deliver("witness-old", THEIRS)
    desk.promote("witness-old")
    folder = desk.deliver("witness-new", OURS)
    desk.answer(folder, run, adapter=["yes", "yes", "no"], base=["no"] * 3, promoted=["yes", "no", "no"])
    assert questions.evaluate_delivered(run, desk.home, desk.output) == []
    rows, found = merit.read(folder)
    assert (found.score.right, found.base.right, found.than.right, found.against) == (2, 0, 1, "witness-old")
    assert [row["answers"]["adapter"]["right"] for row in rows] == [True, True, False]
    assert desk.asked(dataclasses.replace(run, run_id="witness-next"))[0] == {"adapter": 3, "base": 0, "promoted": 0}


def test_other_expectations_are_evaluated_anew_from_what_is_kept(desk):
    run = desk.run()
    folder = desk.deliver("witness-new", OURS)
    desk.answer(folder, run, adapter=["yes", "no", "no"], base=["no"] * 3)
    questions.evaluate_delivered(run, desk.home, desk.output)
    before = (folder / store.MANIFEST).stat().st_mtime_ns
    questions.evaluate_delivered(run, desk.home, desk.output)
    assert (folder / store.MANIFEST).stat().st_mtime_ns == before, "nothing is new"
    (folder / answers.FILE).unlink()
    desk.write("no", "no", "no")
    questions.evaluate_delivered(desk.run(), desk.home, desk.output)
    assert merit.read(folder)[1].score.right == 2
    assert store.integrity_error(folder) is None


def test_cases_that_are_new_to_what_is_ready_are_named_with_the_command_that_asks_them(desk):
    def warned(**changes):
        return questions.unasked_cases([desk.run(state="ready", **changes)], desk.home, desk.output)

    command = "ansible-playbook playbooks/evaluate.yml -e"
    folder = desk.deliver("witness-new", OURS)
    assert [words.partition(";")[2] for words in warned()] == [f" {command} role=witness does"], "never asked"
    desk.answer(folder, desk.run(), adapter=["yes", "no", "no"], base=["no"] * 3)
    assert warned() == [], "the summary reads what came with it"
    questions.evaluate_delivered(desk.run(), desk.home, desk.output)
    assert warned() == []
    desk.write("no", "no", "no")
    assert warned() == [], "another expectation asks nobody"
    desk.write("no", "no", "no", "yes")
    assert warned() == [
        "witness: what is ready has not answered all cases, such as those that were written or changed since, and no "
        f"training asks it; {command} role=witness does"
    ]
    assert warned(variant={"lora_r": 8})[0].endswith(f"{command} run_id=… does"), "without a run no variant is asked"
    questions.evaluate_delivered(desk.run(), desk.home, desk.output)
    assert len(warned()) == 1, "it is said until they are asked"
    assert questions.unasked_cases([desk.run(state="to train")], desk.home, desk.output) == []
    kept = questions.kept_answers(desk.output)
    kept.add(OURS, [Answer(case.key, "yes") for case in cases.read(desk.home / "eval/witness.jsonl").cases])
    assert warned() == []


def test_without_answers_there_is_no_score(desk):
    folder = desk.deliver("witness-new", OURS)
    questions.evaluate_delivered(desk.run(), desk.home, desk.output)
    found = merit.read(folder)[1]
    assert (found.score.share, found.unanswered, found.decides) == (None, 3, False)


def test_what_a_trainer_makes_up_is_told_and_counts_nothing(desk):
    run = desk.run()
    folder = desk.deliver("witness-new", OURS)
    rundir.append_line(folder / answers.FILE, {"who": "adapter", "key": "x" * 64, "text": "yes", "weights": OURS})
    desk.answer(folder, run, promoted=["yes"] * 3)
    said = questions.evaluate_delivered(run, desk.home, desk.output)
    assert [words.split(": ")[0] for words in said] == [
        "1 answers are to questions that are not among its cases", "3 answers are of other weights"]  # fmt: skip
    assert merit.read(folder)[1].unanswered == 3


def test_what_fits_no_more_is_no_fault_of_who_sent_it(desk):
    desk.deliver("witness-old", THEIRS)
    desk.promote("witness-old")
    run, folder = desk.run(), desk.deliver("witness-new", OURS)
    desk.answer(folder, run, adapter=["yes"] * 3, base=["no"] * 3, promoted=["no"] * 3)
    assert questions.evaluate_delivered(run, desk.home, desk.output) == []
    (desk.agent / "latest").unlink()
    desk.promote("witness-new")  # so that nobody is promoted besides it
    desk.write("yes", "no")
    assert questions.evaluate_delivered(desk.run(), desk.home, desk.output) == []
    found = merit.read(folder)[1]
    assert (found.cases, found.score.right) == (2, 1)


def test_for_the_promoted_one_of_another_base_nobody_answers(desk):
    base = "Qwen/Qwen3-4B"
    desk.deliver("witness-old", THEIRS, base_model=base, recipe={**RECIPE, "base_model": base})
    desk.promote("witness-old")
    run, folder = desk.run(), desk.deliver("witness-new", OURS)
    desk.answer(folder, run, adapter=["yes"] * 3, base=["no"] * 3, promoted=["made up"] * 3)
    said = questions.evaluate_delivered(run, desk.home, desk.output)
    assert [words.split(": ")[0] for words in said] == ["3 answers are of other weights"]
    assert questions.kept_answers(desk.output).tried(THEIRS) == {}


def test_whoever_writes_into_an_adapters_folder_has_the_turn(desk, monkeypatch):
    run, folder = desk.run(), desk.deliver("witness-new", OURS)
    desk.answer(folder, run, adapter=["yes"] * 3, base=["no"] * 3)
    turns: list[tuple[str, bool]] = []

    @contextlib.contextmanager
    def turn(output, run_id, say):
        turns.append((run_id, merit.read(folder)[1] is None))
        yield
        turns.append((run_id, merit.read(folder)[1] is None))

    monkeypatch.setattr(questions, "run_files", turn)
    for _ in range(2):
        questions.evaluate_delivered(run, desk.home, desk.output)
    assert turns == [("witness-new", True), ("witness-new", False)], "where nothing is new nobody waits"


def test_a_file_that_has_become_none_is_told(desk):
    run = desk.run()
    (desk.home / "eval/witness.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="line 1"):
        questions.question_files(run, "runs/x", desk.home, desk.output, "base")


def test_latest_moves_on_merit_from_answers_to_the_link(desk):
    desk.write(*["yes"] * 8)
    run = desk.run()
    desk.deliver("witness-old", THEIRS)
    desk.promote("witness-old")
    folder = desk.deliver("witness-new", OURS)
    desk.answer(folder, run, adapter=["yes"] * 8, base=["no"] * 8, promoted=["no"] * 8)
    questions.evaluate_delivered(run, desk.home, desk.output)
    assert promotion.promote(desk.agent, "witness-new", promotion.Gate())
    assert (desk.agent / "latest").readlink().name == "witness-new"
    before = (folder / store.MANIFEST).read_bytes()
    questions.evaluate_delivered(run, desk.home, desk.output)
    assert (folder / store.MANIFEST).read_bytes() == before, "it stays known what it was better than"
    line = promotion.history(desk.agent)[-1]
    assert line["why"] == "better on its cases: 8 of 8 against 0 of 8 of witness-old"


def test_half_a_character_in_an_answer_holds_nothing_up(desk):
    run = desk.run()
    folder = desk.deliver("witness-new", OURS)
    desk.answer(folder, run, adapter=["\ud83d"] * 3, base=["no"] * 3)
    questions.evaluate_delivered(run, desk.home, desk.output)
    rows, found = merit.read(folder)
    assert (found.score.right, found.unanswered, rows[0]["answers"]["adapter"]["text"]) == (0, 0, "\ud83d")
