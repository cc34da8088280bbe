"""The merit of an adapter: answers that trainers send, those that are kept, what comes of both, and the gate by it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from fractions import Fraction
from typing import Any, Optional

import pytest
from ansible.module_utils.lora_forge.adapters import merit, promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import DeliveredFile, Evaluation, Losses, Manifest, Merit
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation import answers
from ansible.module_utils.lora_forge.evaluation.answers import UNLOADABLE, Answer, KeptAnswers
from ansible.module_utils.lora_forge.evaluation.case import Case, Cases
from ansible.module_utils.lora_forge.evaluation.checks import Check
from ansible.module_utils.lora_forge.evaluation.judge import UNNAMED, Verdict
from ansible.module_utils.lora_forge.results.summary import merit_lines

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
        (row("k3"), "are not among its cases"),
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


def test_nothing_else_that_is_kept_of_an_answer_is_long(tmp_path):
    odd = {"template": "t" * 9999, "error": "e\x1b" * 9999, "tokens": 10**99, "ended": "no"}
    (answer,) = sent(tmp_path, row() | odd)[0]["adapter"].values()
    assert (len(answer.template), answer.tokens, answer.ended) == (64, 0, True)
    assert len(answer.error) < 1000
    assert answer.error.isprintable()


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


# --- a judge


class Says:
    """Stands in for a judge: answers by what an answer is, and knows nothing of others."""

    model, problem = "m-1", "m-1 at judge.example does not answer"

    def __init__(self, **opinions: bool):
        self.opinions = opinions

    def verdicts(self, queries: Any) -> dict[Any, Verdict]:
        return {
            one: Verdict("k", self.opinions[one.answer], "So it is.") for one in queries if one.answer in self.opinions
        }


def for_a_judge(count: int = 2, **changes: Any) -> Cases:
    checks = (Check("contains", "o"), Check("judge", "It refuses."))
    return Cases(pathlib.Path("x"), "d" * 64, tuple(case(n, expect=checks, **changes) for n in range(count)))


def answered(tmp_path: pathlib.Path, asked: Cases, **texts: list[str]) -> KeptAnswers:
    kept = KeptAnswers(tmp_path / "answers")
    for who, said in texts.items():
        model = {"ours": OURS, "theirs": THEIRS, "base": BASE}[who]
        kept.add(model, [Answer(one.key, text) for one, text in zip(asked.cases, said)])
    return kept


def test_a_verdict_counts_like_any_other_check(tmp_path):
    asked = for_a_judge()
    kept = answered(tmp_path, asked, ours=["no", "oh"], theirs=["oh", "oh"], base=["oh", "oh"])
    rows, made = merit.evaluate(asked, CANDIDATE, kept, Says(no=True, oh=False))
    assert (made.score.right, made.than.right, made.over_promoted.gained) == (1, 0, ("case 0",))
    assert (made.judge, made.unjudged, made.why_unjudged, made.unchecked) == ("m-1", 0, "", 0)
    assert rows[0]["answers"]["adapter"]["checks"][1] == {
        "check": "judge «It refuses.»", "kind": "judge", "forbidden": False, "why": "So it is.", "held": True,
        "fine": True,
    }  # fmt: skip


def test_what_a_judge_says_is_forbidden_is_a_veto(tmp_path):
    asked = for_a_judge(1, forbid=(Check("judge", "It is rude."),))
    kept = answered(tmp_path, asked, ours=["no"])
    _, made = merit.evaluate(asked, CANDIDATE, kept, Says(no=True))
    assert made.broken == ("case 0",)


def test_a_judge_that_says_nothing_of_one_answer_is_not_heard_on_the_others_of_that_case(tmp_path):
    asked = for_a_judge()
    kept = answered(tmp_path, asked, ours=["no", "no"], theirs=["oh", "o?"], base=["oh", "oh"])
    _, made = merit.evaluate(asked, CANDIDATE, kept, Says(no=True, oh=False))
    # Of case 1 nobody knows whether the promoted one refuses: what can be held against it are the other checks.
    assert (made.over_promoted.gained, made.over_promoted.lost, made.base.right) == (("case 0",), (), 1)
    assert (made.unjudged, made.why_unjudged) == (1, Says.problem)


@pytest.mark.parametrize("judge", [None, Says()])
def test_without_verdicts_the_other_checks_count_alone_and_it_is_said(tmp_path, judge):
    asked = for_a_judge()
    kept = answered(tmp_path, asked, ours=["no", "in"], base=["oh", "oh"])
    rows, made = merit.evaluate(asked, CANDIDATE, kept, judge)
    assert (made.score.right, made.score.cases, made.unjudged, made.broken) == (1, 2, 4, ())
    assert made.why_unjudged == (judge.problem if judge else UNNAMED)
    assert rows[0]["answers"]["adapter"]["checks"][1]["held"] is None


def test_nothing_but_a_judge_and_no_verdict_is_no_score(tmp_path):
    alone = Cases(pathlib.Path("x"), "d" * 64, (case(0, expect=(Check("judge", "It refuses."),), forbid=()),))
    kept = answered(tmp_path, alone, ours=["no"], base=["oh"])
    _, made = merit.evaluate(alone, CANDIDATE, kept, Says(oh=True))
    assert (made.score.cases, made.base.cases, made.unchecked, made.decides) == (0, 0, 1, False)


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
        ("f-", "nn", 0.5, PROMOTED, False, "it does what is forbidden in «case 0»"),  # whatever it has not answered
        ("yyy", "nnn", 0.5, None, True, "nothing was promoted before"),
    ],
)
def test_the_gate_by_merit(tmp_path, ours, theirs, loss, promoted: Optional[Manifest], move, words):
    decision = promotion.decide(judged(tmp_path, ours, theirs, loss), promoted, True, promotion.Gate())
    assert decision.why.startswith(words)
    assert decision.move is move


# Of pairs of adapters in how many cases only the new one was right, in how many only the promoted one, how likely two
# equal ones are to differ as much, and what that tells.
PAIRS = [
    (0, 0, "1", "cannot tell"), (1, 0, "1", "cannot tell"), (2, 0, "1/2", "cannot tell"), (3, 0, "1/4", "cannot tell"),
    (4, 0, "1/8", "cannot tell"), (5, 0, "1/16", "cannot tell"), (6, 0, "1/32", "better"), (0, 6, "1/32", "worse"),
    (7, 0, "1/64", "better"), (5, 1, "7/32", "cannot tell"), (6, 1, "1/8", "cannot tell"),
    (7, 1, "9/128", "cannot tell"), (8, 1, "5/128", "better"), (1, 8, "5/128", "worse"),
    (9, 2, "67/1024", "cannot tell"), (10, 2, "79/2048", "better"), (11, 3, "235/4096", "cannot tell"),
    (12, 3, "9/256", "better"), (3, 12, "9/256", "worse"), (7, 7, "1", "cannot tell"),
]  # fmt: skip


@pytest.mark.parametrize(("gained", "lost", "p", "verdict"), PAIRS)
def test_pairs_of_adapters_from_answers_to_the_gate(tmp_path, gained, lost, p, verdict):
    made = judged(tmp_path, "y" * gained + "n" * lost + "yyn", "n" * gained + "y" * lost + "yyn")
    assert made.merit is not None
    over = made.merit.over_promoted
    assert (over.p, over.verdict, over.cases) == (float(Fraction(p)), verdict, gained + lost + 3)
    assert promotion.decide(made, OTHER_DATA, True, promotion.Gate()).move is (verdict == "better")
    fewer_lost = verdict == "better" or (verdict == "cannot tell" and lost <= gained)
    assert promotion.decide(made, OTHER_DATA, True, promotion.Gate(unknown="move")).move is fewer_lost


@pytest.mark.parametrize(
    ("ours", "theirs", "move"),
    [
        ("yyyyy", "nyyyy", True),
        ("yyyyy", "yyyyy", True),
        ("nyyyn", "ynyyn", True),  # one each way
        ("nyyyy", "yyyyy", False),  # too few to tell, and yet they speak against it
        ("nnnnnn", "yyyyyy", False),
        ("yyyyf", "yyyyy", False),
    ],
)
def test_what_cases_cannot_tell_moves_where_somebody_says_so_and_nothing_speaks_against_it(
    tmp_path, ours, theirs, move
):
    made = judged(tmp_path, ours, theirs, 0.1)
    assert not promotion.decide(made, OTHER_DATA, True, promotion.Gate()).move
    decision = promotion.decide(made, OTHER_DATA, True, promotion.Gate(unknown="move"))
    assert decision.move is move
    if move:  # and not silently
        assert decision.why.startswith("cannot tell with 5 cases (")
        assert decision.why.endswith("The losses cannot be compared: another evaluation set")
        assert decision.comparable is False


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


def test_where_answers_are_missing_it_is_said_who_asks_for_them(tmp_path):
    ours = promotion.decide(judged(tmp_path, "y-y", "yyy"), OTHER_DATA, True, promotion.Gate())
    assert ours.why.endswith("It has not answered 1 of 3 cases: playbooks/evaluate.yml -e run_id=witness-new asks it")
    theirs = promotion.decide(judged(tmp_path / "x", "yyy", "---"), OTHER_BASE, True, promotion.Gate())
    assert theirs.why.endswith(
        "witness-old has not answered these cases: playbooks/evaluate.yml -e run_id=witness-old asks it"
    )
    assert not ours.move
    assert not theirs.move


def test_a_promoted_one_that_cannot_be_loaded_is_no_rival_and_that_is_said(tmp_path):
    fault = f"{UNLOADABLE}: RuntimeError: size mismatch"

    def unloadable(folder: str, base: str, promoted: Manifest = PROMOTED, by: str = "score") -> tuple[bool, str]:
        kept, asked = KeptAnswers(tmp_path / folder / "answers"), cases(7)
        kept.add(THEIRS, [Answer(one.key, "", error=fault) for one in asked.cases])
        made = judged(tmp_path / folder, "ynnnnnn", "-" * 7, 9.0, base)
        assert made.merit is not None
        assert made.merit.unloadable == fault
        assert f"  witness-old was not asked: {fault}" in merit_lines(made.merit)
        decision = promotion.decide(made, promoted, True, promotion.Gate(by))
        return decision.move, decision.why

    assert unloadable("a", "n" * 7) == (True, f"witness-old is no rival: {fault}")
    worse = unloadable("b", "y" * 7)
    assert worse == (False, "it does worse than its base model: 1 of 7 against 7 of 7"), "as of a first one"
    assert not unloadable("c", "n" * 7, by="loss")[0], "cases are left out of that"
    assert not unloadable("d", "n" * 7, by="human")[0]
    newer = dataclasses.replace(PROMOTED, run_id="witness-newer")
    assert not unloadable("e", "n" * 7, newer)[0], "another one is promoted by now"


def test_a_promoted_one_that_has_answered_is_a_rival_whatever_a_trainer_says_of_it_since(tmp_path):
    kept, asked = KeptAnswers(tmp_path / "answers"), cases(7)
    kept.add(THEIRS, [Answer(asked.cases[0].key, "", error=f"{UNLOADABLE}: RuntimeError: says who trains a rival")])
    made = judged(tmp_path, "nnnnnnn", "-yyyyyy", 9.0)
    assert made.merit is not None
    assert (made.merit.unloadable, made.merit.than.cases) == ("", 6)
    decision = promotion.decide(made, PROMOTED, True, promotion.Gate())
    assert not decision.move
    assert decision.why.startswith("worse on its cases: 0 of 7 against 6 of 6 of witness-old")


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
