"""The merit of an adapter: answers that trainers send, those that are kept, what comes of both, and the gate by it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Optional

import pytest
from ansible.module_utils.lora_forge.adapters import merit, promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import DeliveredFile, Evaluation, Losses, Manifest, Merit
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation import answers
from ansible.module_utils.lora_forge.evaluation.answers import Answer, KeptAnswers
from ansible.module_utils.lora_forge.evaluation.case import Case, Cases
from ansible.module_utils.lora_forge.evaluation.checks import Check

OURS, THEIRS, BASE = "a" * 64, "b" * 64, "c" * 64
CANDIDATE = merit.Candidate(OURS, BASE, "witness-old", THEIRS)


def case(number: int, **changes: Any) -> Case:
    asked = ({"role": "user", "content": f"question {number}"},)
    made = Case(f"case {number}", number, asked, (), (Check("contains", "yes"),), (Check("contains", "--force"),))
    return dataclasses.replace(made, **changes)


def cases(count: int) -> Cases:
    return Cases(pathlib.Path("eval/witness.jsonl"), "d" * 64, tuple(map(case, range(count))))


def keep(kept: KeptAnswers, model: str, asked: Cases, texts: str) -> None:
    """Keep an answer for each letter: y for «yes», f for what is forbidden, n for anything else; - for none."""
    words = {"y": "yes", "n": "no", "f": "yes, git push --force"}
    kept.add(model, [Answer(one.key, words[text]) for one, text in zip(asked.cases, texts) if text != "-"])


def evaluated(tmp_path: pathlib.Path, ours: str, theirs: str, base: str = "") -> tuple[list[dict[str, Any]], Merit]:
    asked, kept = cases(len(ours)), KeptAnswers(tmp_path / "answers")
    keep(kept, OURS, asked, ours)
    keep(kept, THEIRS, asked, theirs)
    keep(kept, BASE, asked, base or "n" * len(ours))
    return merit.evaluate(asked, CANDIDATE, kept)


def test_three_are_held_against_each_other_case_by_case(tmp_path):
    rows, made = evaluated(tmp_path, "yyyyyyyn", "nnnnnnyy")
    assert (made.score.right, made.than.right, made.base.right, made.cases) == (7, 2, 0, 8)
    assert (made.over_promoted.gained, made.over_promoted.lost) == (
        tuple(f"case {number}" for number in range(6)), ("case 7",))  # fmt: skip
    assert (made.over_base.verdict, made.against, made.broken, made.decides) == ("better", "witness-old", (), True)
    assert rows[7]["answers"]["adapter"]["right"] is False
    assert rows[7]["answers"]["promoted"]["text"] == "yes"


def test_what_is_forbidden_is_named(tmp_path):
    _, made = evaluated(tmp_path, "yf", "yy")
    assert (made.broken, made.score.right) == (("case 1",), 1)


def test_cases_without_an_answer_decide_nothing(tmp_path):
    _, made = evaluated(tmp_path, "y-", "yy")
    assert (made.unanswered, made.decides, made.score.cases) == (1, False, 1)


def test_no_answer_is_no_score(tmp_path):
    _, made = merit.evaluate(cases(3), CANDIDATE, KeptAnswers(tmp_path / "answers"))
    assert (made.score.share, made.decides, made.unanswered) == (None, False, 3)


def test_nobody_is_asked_what_was_answered(tmp_path):
    asked, kept = cases(3), KeptAnswers(tmp_path / "answers")
    keep(kept, BASE, asked, "yyy")
    keep(kept, THEIRS, asked, "y")
    left = merit.open_questions(asked, CANDIDATE, kept)
    keys = [one.key for one in asked.cases]
    assert left == {"adapter": keys, "base": [], "promoted": keys[1:]}
    assert "promoted" not in merit.open_questions(asked, merit.Candidate(OURS, BASE), kept)


def test_other_expectations_are_scored_without_new_answers(tmp_path):
    evaluated(tmp_path, "nn", "nn")
    kept = KeptAnswers(tmp_path / "answers")
    other = Cases(
        pathlib.Path("x"), "e" * 64, tuple(case(number, expect=(Check("equals", "no"),)) for number in range(2))
    )
    assert merit.open_questions(other, CANDIDATE, kept)["adapter"] == []
    assert merit.evaluate(other, CANDIDATE, kept)[1].score.right == 2


def test_a_base_is_another_one_where_it_is_loaded_in_another_way():
    recipe = {"load_in_4bit": True, "chat_template": "chatml", "lora_r": 8}
    one = merit.base_key("Qwen/Qwen3-8B", recipe)
    assert one == merit.base_key("Qwen/Qwen3-8B", recipe | {"lora_r": 64, "learning_rate": 1})
    assert one != merit.base_key("Qwen/Qwen3-8B", recipe | {"load_in_4bit": False})
    assert one != merit.base_key("Qwen/Qwen3-4B", recipe)
    assert merit.base_key("/a/models/tiny-1", recipe) == merit.base_key("/b/models/tiny-1", recipe)


# --- what a trainer sends


def sent(tmp_path: pathlib.Path, *lines: Any) -> tuple[dict[str, dict[str, Answer]], list[str]]:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return answers.read_sent(path, {"k1": 10, "k2": 10}, {"adapter": OURS, "promoted": THEIRS})


def row(key: str = "k1", **changes: Any) -> dict[str, Any]:
    return {"who": "adapter", "key": key, "text": "yes", "tokens": 3, "ended": True, "weights": OURS, **changes}


def test_answers_are_read_by_who_gave_them(tmp_path):
    found, said = sent(tmp_path, row(), row(who="base", text="no", weights=""), row("k2"))
    assert {who: {key: one.text for key, one in known.items()} for who, known in found.items()} == {
        "adapter": {"k1": "yes", "k2": "yes"}, "base": {"k1": "no"}, "promoted": {}}  # fmt: skip
    assert said == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (row("k3"), "were not asked"),
        (row(who="judge"), "by nobody who was asked"),
        (row(text=["yes"]), "are no text"),
        (row(text=None), "are no text"),
        (row(weights=THEIRS), "are of other weights"),
        (row(who="promoted"), "are of other weights"),
        (row(text="x" * 100_000), "are longer than their tokens can be, and cut"),
    ],
)
def test_what_a_hostile_trainer_answers_is_refused_or_cut_by_name(tmp_path, line, words):
    found, said = sent(tmp_path, line, row("k2"))
    assert words in said[0]
    assert found["adapter"]["k2"].text == "yes"
    assert len(found["adapter"].get("k1", Answer("", "")).text) <= 240


def test_the_first_answer_counts_and_rubbish_is_passed_over(tmp_path):
    found, _ = sent(tmp_path, "{", "[]", "7", row(text="no"), row(text="yes"), '{"who": "adapter"')
    assert found["adapter"]["k1"].text == "no"


def test_kept_answers_are_not_replaced(tmp_path):
    kept = KeptAnswers(tmp_path / "answers")
    kept.add(OURS, [Answer("k1", "yes"), Answer("k2", "", error="too long")])
    kept.add(OURS, [Answer("k1", "no"), Answer("k3", "é")])
    assert {key: one.text for key, one in kept.read(OURS).items()} == {"k1": "yes", "k3": "é"}


def test_a_line_that_a_crash_cut_off_is_answered_again(tmp_path):
    kept = KeptAnswers(tmp_path / "answers")
    kept.add(OURS, [Answer("k1", "yes")])
    with kept.path(OURS).open("a") as file:
        file.write('{"key": "k2", "te')
    assert set(kept.read(OURS)) == {"k1"}
    kept.add(OURS, [Answer("k2", "no"), Answer("k3", "no")])
    assert set(kept.read(OURS)) == {"k1", "k2", "k3"}


# --- in the adapter's folder


def delivered(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "witness-new"
    folder.mkdir()
    made = Manifest(run_id="witness-new", files=(DeliveredFile(store.WEIGHTS, OURS, 1),))
    (folder / store.MANIFEST).write_text(json.dumps(made.as_dict()))
    return folder


def test_an_evaluation_is_bound_to_the_weights_and_to_its_rows(tmp_path):
    folder = delivered(tmp_path)
    rows, made = evaluated(tmp_path, "yn", "ny")
    merit.write(folder, rows, made)
    assert merit.read(folder) == (rows, made)
    (folder / merit.EVALUATION).write_text("{}\n")
    assert merit.read(folder) == ([], None)
    merit.write(folder, rows, dataclasses.replace(made, weights_sha256=THEIRS))
    assert merit.read(folder) == ([], None)


# --- the gate


def judged(
    tmp_path: pathlib.Path, ours: str, theirs: str, loss: float = 1.0, base: str = "", **changes: Any
) -> Manifest:
    _, made = evaluated(tmp_path, ours, theirs, base)
    yardstick = Evaluation("file", "s", 64, "base", loss)
    return Manifest(
        run_id="witness-new", rehearsal=False, merit=made, loss=Losses(2, 1, 2, loss), evaluation=yardstick, **changes
    )


PROMOTED = Manifest(
    run_id="witness-old",
    rehearsal=False,
    loss=Losses(2, 1, 2, 1.0),
    evaluation=Evaluation("file", "s", 64, "base", 1.0),
)
OTHER_DATA = dataclasses.replace(PROMOTED, evaluation=Evaluation("split", "other", 64, "base", 1.0))
OTHER_BASE = dataclasses.replace(PROMOTED, evaluation=Evaluation("file", "s", 64, "another", 1.0))


@pytest.mark.parametrize(
    ("ours", "theirs", "loss", "promoted", "move", "words"),
    [
        ("yyyyyyy", "nnnnnnn", 1.0, PROMOTED, True, "better on its cases: 7 of 7 against 0 of 7 of witness-old"),
        ("yyyyyyy", "nnnnnnn", 9.0, PROMOTED, True, "better on its cases"),
        ("nnnnnnn", "yyyyyyy", 0.1, PROMOTED, False, "worse on its cases: 0 of 7 against 7 of 7"),
        ("nnnnnnn", "yyyyyyy", 0.1, OTHER_DATA, False, "worse on its cases"),
        ("yyyyyyy", "nnnnnnn", 1.0, OTHER_BASE, True, "better on its cases"),
        ("nyyyy", "yyyyy", 1.0, PROMOTED, True, "cannot tell with 5 cases"),
        ("nyyyy", "yyyyy", 1.5, PROMOTED, False, "cannot tell with 5 cases"),
        ("nyyyy", "yyyyy", 0.5, OTHER_DATA, False, "cannot tell with 5 cases"),
        ("yyyyyyyyf", "nnnnnnnnn", 0.5, PROMOTED, False, "it does what is forbidden in «case 8»"),
        ("f", "n", 0.5, None, False, "it does what is forbidden in «case 0»"),
        ("yyy", "nnn", 0.5, None, True, "nothing was promoted"),
    ],
)
def test_the_gate_by_merit(tmp_path, ours, theirs, loss, promoted: Optional[Manifest], move, words):
    decision = promotion.decide(judged(tmp_path, ours, theirs, loss), promoted, True, promotion.Gate())
    assert decision.why.startswith(words)
    assert decision.move is move


def test_the_first_one_has_to_be_no_worse_than_its_base(tmp_path):
    worse = judged(tmp_path, "nnnnnn", "", base="yyyyyy")
    decision = promotion.decide(worse, None, True, promotion.Gate())
    assert (decision.move, decision.why) == (False, "it does worse than its base model: 0 of 6 against 6 of 6")
    assert promotion.decide(worse, None, True, promotion.Gate("loss")).move


def test_by_loss_and_by_hand_cases_do_not_count(tmp_path):
    better = judged(tmp_path, "yyyyyyy", "nnnnnnn", 9.0)
    assert not promotion.decide(better, PROMOTED, True, promotion.Gate("loss")).move
    by_hand = promotion.decide(better, None, True, promotion.Gate("human"))
    assert (by_hand.move, by_hand.why) == (False, "adapter_promote is human: somebody decides")


def test_a_score_against_another_than_the_promoted_one_decides_nothing(tmp_path):
    newer = dataclasses.replace(PROMOTED, run_id="witness-newer")
    assert not promotion.decide(judged(tmp_path, "yyyyyyy", "nnnnnnn", 9.0), newer, True, promotion.Gate()).move


@pytest.mark.parametrize(("unknown", "move"), [("keep", False), ("move", True)])
def test_what_cannot_be_compared_moves_only_where_somebody_says_so(tmp_path, unknown, move):
    plain = dataclasses.replace(judged(tmp_path, "y", "y"), merit=None)
    decision = promotion.decide(plain, OTHER_DATA, True, promotion.Gate(unknown=unknown))
    assert (decision.move, decision.comparable) == (move, False)
    assert decision.why.startswith("not comparable with witness-old (another evaluation set)")
    assert move or "eval/<agent>.jsonl" in decision.why


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (promotion.Gate("scores"), "adapter_promote is «scores»; known: score, loss, human"),
        (promotion.Gate(unknown="stay"), "adapter_promote_unknown is «stay»; known: keep, move"),
        (promotion.Gate(max_regression=float("nan")), "adapter_max_regression is «nan»"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(gate, words):
    with pytest.raises(UserError, match=words.split(";")[0]):
        gate.check()
