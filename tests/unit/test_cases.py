"""Files of cases: both forms, what they become, and what is said of a line that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.lora_forge.data import cases
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation.checks import LOOSE, Check

ASKED = [{"role": "user", "content": "A polecat is stuck."}]
PLAIN = {"messages": ASKED, "expect": [{"contains": "gt peek"}]}


def read(tmp_path, *rows: Any) -> cases.Cases:
    path = tmp_path / "witness.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return cases.read(path)


def said(tmp_path, *rows: Any) -> str:
    with pytest.raises(UserError) as error:
        read(tmp_path, *rows)
    return str(error.value)


def test_a_case_is_read_whole(tmp_path):
    row = {
        "name": "stuck polecat", "weight": 2, "max_new_tokens": 64, "tools": [{"name": "run"}],
        "messages": [{"role": "system", "content": "You watch."}, *ASKED],
        "expect": [{"regex": "gt peek"}, {"tool": {"name": "run", "arguments": {"type": "object"}}}],
        "forbid": [{"regex": "git push --force"}],
    }  # fmt: skip
    (case,) = read(tmp_path, row).cases
    assert (case.name, case.weight, case.max_new_tokens, case.line) == ("stuck polecat", 2.0, 64, 1)
    assert [turn["role"] for turn in case.messages] == ["system", "user"]
    assert case.tools == ({"type": "function", "function": {"name": "run"}},)
    assert [check.kind for check in (*case.expect, *case.forbid)] == ["regex", "tool", "regex"]


def test_a_trainer_is_told_nothing_of_what_is_expected(tmp_path):
    (case,) = read(tmp_path, {**PLAIN, "forbid": [{"contains": "secret word"}], "name": "a name"}).cases
    told = json.dumps(case.question)
    assert "gt peek" not in told
    assert "secret word" not in told
    assert "a name" not in told


def test_what_is_expected_may_change_without_a_new_question(tmp_path):
    (one,) = read(tmp_path, PLAIN).cases
    (other,) = read(tmp_path, {**PLAIN, "expect": [{"equals": "no"}], "weight": 3, "name": "x"}).cases
    (third,) = read(tmp_path, {**PLAIN, "max_new_tokens": 8}).cases
    assert one.key == other.key != third.key


def test_turns_before_the_decision_may_be_many_and_of_any_form(tmp_path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    (case,) = read(tmp_path, {"conversations": turns, "expect": [{"equals": "d"}]}).cases
    assert [turn["role"] for turn in case.messages] == ["user", "assistant", "user"]
    assert case.last_said == "c"


def test_a_name_is_made_where_there_is_none_and_blank_lines_count(tmp_path):
    made = read(tmp_path, PLAIN, "", {**PLAIN, "name": "other"})
    assert [(case.name, case.line) for case in made.cases] == [("case 1", 1), ("other", 3)]


THEIRS = {
    "role": "witness", "scenario": "stuck", "system": "You watch.", "user": "It hangs.",
    "expected_behaviors": ["runs gt hook", "escalates to the mayor"],
}  # fmt: skip


def test_the_form_with_behaviours_is_read_as_it_is(tmp_path):
    made = read(tmp_path, THEIRS)
    (case,) = made.cases
    assert (case.name, case.last_said) == ("stuck", "It hangs.")
    assert case.expect == (Check("contains", "gt hook"), Check(LOOSE, "escalates to the mayor"))
    assert "1 of 1 cases" in made.warnings[0]
    assert "(stuck)" in made.warnings[0]


@pytest.mark.parametrize(
    ("text", "checks"),
    [
        ("runs gt hook", [Check("contains", "gt hook")]),
        ("Runs gt hook to see what is there.", [Check("contains", "gt hook")]),
        ("should run bd list --status=open first", [Check("contains", "bd list --status=open")]),
        ("uses `gt peek` and `gt nudge`", [Check("contains", "gt peek"), Check("contains", "gt nudge")]),
        ("runs the tests", [Check(LOOSE, "runs the tests")]),
        ("runs tests", [Check(LOOSE, "runs tests")]),
        ("does not guess", [Check(LOOSE, "does not guess")]),
    ],
)
def test_a_command_in_a_behaviour_is_literal(text, checks):
    assert cases.behaviour(text) == checks


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("7", "holds a JSON int"),
        ("{nonsense}", "not JSON"),
        ({**PLAIN, "expects": []}, "«expects» is no key of a case; did you mean «expect»?"),
        ({"expect": [{"equals": "a"}]}, "has no «messages»"),
        ({"messages": [], "expect": [{"equals": "a"}]}, "«messages» holds no turns"),
        ({"messages": ASKED}, "neither «expect» nor «forbid»"),
        ({**PLAIN, "expect": []}, "neither «expect» nor «forbid»"),
        ({**PLAIN, "expect": "gt"}, "«expect» must be a list of checks"),
        ({**PLAIN, "expect": [{"equals": "a"}, {"regexp": "b"}]}, "expect 2: «regexp» is no check"),
        ({**PLAIN, "messages": [*ASKED, {"role": "assistant", "content": "x"}]}, "ends with what the assistant says"),
        ({**PLAIN, "messages": [{"role": "system", "content": "x"}]}, "ends with a system turn"),
        ({**PLAIN, "weight": 0}, "«weight» is 0; it must be from 0.001 to 1000"),
        ({**PLAIN, "weight": "2"}, "«weight» must be a number"),
        ({**PLAIN, "weight": True}, "«weight» must be a number"),
        (
            '{"messages": [{"role": "user", "content": "a"}], "expect": [{"equals": "a"}], "weight": NaN}',
            "must be a number",
        ),
        ({**PLAIN, "max_new_tokens": 0}, "must be from 1 to"),
        ({**PLAIN, "max_new_tokens": 1.5}, "must be a whole number"),
        ({**PLAIN, "name": ""}, "«name» must be a text"),
        ({**PLAIN, "name": "a\u202eb"}, "«name» must be printable"),
        ({**THEIRS, "user": ""}, "«user» must be what the user says"),
        ({**THEIRS, "expected_behaviors": "runs gt hook"}, "«expected_behaviors» must be a list of texts"),
        ({**THEIRS, "expected_behaviors": []}, "neither «expect» nor «forbid»"),
        ({**PLAIN, "messages": [{"role": "user", "content": "\ud83d"}]}, "half of a character"),
        ({**PLAIN, "expect": [{"json": {"pattern": "("}}]}, "is not a 'regex'"),
        ("[" * 100_000, "holds one JSON array"),
        ('{"messages": ' + "[" * 100_000, "line 1: is nested too deeply"),
    ],
)
def test_a_line_that_is_no_case_is_told_with_its_place(tmp_path, row, words):
    told = said(tmp_path, row)
    assert words in told
    assert told.startswith(f"{tmp_path}/witness.jsonl")


def test_two_cases_of_one_name_are_told(tmp_path):
    assert "line 2: the name «a» is that of line 1, too" in said(
        tmp_path, {**PLAIN, "name": "a"}, {**PLAIN, "name": "a"}
    )


def test_many_wrong_lines_are_few_sentences(tmp_path):
    told = said(tmp_path, *["nonsense"] * 50).splitlines()
    assert len(told) <= 6


def test_an_empty_file_is_told(tmp_path):
    assert "holds no case" in said(tmp_path, "")


def test_cases_that_stand_in_the_training_data_are_named(tmp_path):
    said = 'A "polecat" hängt since 10:00.'
    rows = [
        {"messages": [{"role": "user", "content": text}], "expect": [{"equals": "x"}]}
        for text in (said, "Go.", said * 2)
    ]
    asked = read(tmp_path, *rows).cases
    for plain in (True, False):
        data = tmp_path / "data.jsonl"
        data.write_text(json.dumps({"conversations": [{"from": "human", "value": said}]}, ensure_ascii=plain))
        (tmp_path / "empty.jsonl").touch()
        assert cases.known_cases(asked, [tmp_path / "empty.jsonl", tmp_path / "gone.jsonl", data]) == ["case 1"]
