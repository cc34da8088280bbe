"""Checks of answers, which come from trainers: each kind, the forms of tool calls, and answers that mean harm."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation import checks, tool_calls
from ansible.module_utils.lora_forge.evaluation.checks import Check, check_of, grade, holds
from ansible.module_utils.lora_forge.evaluation.judge import Verdict
from hypothesis import given
from hypothesis import strategies as some

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_one_expression_ends_in_its_time():
    began = time.monotonic()
    graded = grade([Check("regex", r"(a+)+$")], [Check("regex", r"(b+)+$")], "a" * 5000 + "b" * 5000 + "!")
    assert time.monotonic() - began < 60
    assert graded.right is False
    assert graded.broken == ("regex «(b+)+$»",)  # what was not ruled out


def test_the_alarm_of_a_task_is_given_back():
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 3600)
        with checks.bounded():
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 3000
        assert signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("check", "answer", "held"),
    [
        ({"equals": "yes"}, " yes\n", True),
        ({"equals": "yes"}, "yes.", False),
        ({"equals": "yes"}, "<think>no?</think>\nyes<|im_end|>", True),
        ({"contains": "gt peek"}, "Run:\n  gt   peek witness", True),
        ({"contains": "gt peek"}, "Run gtpeek", False),
        ({"contains": "gt peek"}, "<think>gt peek", False),  # a thought that never ended says nothing
        ({"regex": "(?i)^GT"}, "gt peek", True),
        ({"regex": "^gt$"}, "gt peek", False),
        ({"json": SCHEMA}, '{"n": 3}', True),
        ({"json": SCHEMA}, 'Here:\n```json\n{"n": 3}\n```', True),
        ({"json": SCHEMA}, '{"n": "3"}', False),
        ({"json": SCHEMA}, '{"n": NaN}', False),
        ({"json": SCHEMA}, "{" * 100_000, False),
        ({"tool": {"name": "run"}}, '<tool_call>\n{"name": "run", "arguments": {}}\n</tool_call>', True),
        ({"tool": {"name": "run", "arguments": SCHEMA}}, '{"name": "run", "arguments": {"n": "x"}}', False),
    ],
)
def test_a_check_holds_or_not(check, answer, held):
    assert holds(check_of(check), answer) is held


def test_a_judge_is_asked_and_may_be_missing():
    check = check_of({"judge": "It is polite."})
    asked: list[str] = []
    found = Verdict("k", True, "It says please.")
    judged = grade([check], [check], "Please.", lambda sentence: asked.append(sentence) or found)
    assert (judged.right, judged.broken, asked) == (False, ("judge «It is polite.»",), ["It is polite."] * 2)
    assert [(row["held"], row["why"]) for row in judged.results] == [(True, "It says please.")] * 2
    graded = grade([check], [], "Please.")
    assert (graded.right, graded.skipped) == (None, 1)
    assert grade([check, Check("contains", "Please")], [], "Please.").right is True


@pytest.mark.parametrize(
    ("sentence", "answer", "held"),
    [
        ("escalates to the mayor", "I am escalating this to the mayor.", True),
        ("escalates to the mayor", "I wait.", False),
        ("the of and", "the of and", False),
    ],
)
def test_a_sentence_is_matched_by_its_words(sentence, answer, held):
    assert holds(Check(checks.LOOSE, sentence), answer) is held


def test_what_is_forbidden_breaks_a_case_and_is_named():
    graded = grade([Check("contains", "gt peek")], [Check("contains", "--force")], "gt peek; git push --force")
    assert (graded.right, graded.broken) == (False, ("contains «--force»",))
    assert [row["fine"] for row in graded.results] == [True, False]


# How the templates of these models write {"name": "run", "arguments": {"command": "ls", "n": 2}}.
CALL = tool_calls.Call("run", {"command": "ls", "n": 2})
BODY = json.dumps(CALL.arguments)
FORMS = {
    "Hermes, Qwen": f'<tool_call>\n{{"name": "run", "arguments": {BODY}}}\n</tool_call>',
    "Qwen3.5": "<tool_call>\n<function=run>\n<parameter=command>\nls\n</parameter>\n<parameter=n>\n2\n</parameter>\n"
    "</function>\n</tool_call>",
    "Llama 3": f'<|python_tag|>{{"name": "run", "parameters": {BODY}}}<|eom_id|>',
    "Llama 3, custom": f"<function=run>{BODY}</function>",
    "Mistral": f'[TOOL_CALLS] [{{"name": "run", "arguments": {BODY}, "id": "abcdefghi"}}]</s>',
    "Mistral, v11": f"[TOOL_CALLS]run[ARGS]{BODY}</s>",
    "Granite": f'<|tool_call|>[{{"name": "run", "arguments": {BODY}}}]',
    "Phi-4": f'<|tool_call|>[{{"name": "run", "arguments": {BODY}}}]<|/tool_call|>',
    "DeepSeek": f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>run\n```json\n{BODY}\n```<｜tool▁call▁end｜>",
    "gpt-oss": f"<|start|>assistant<|channel|>commentary to=functions.run <|constrain|>json<|message|>{BODY}<|call|>",
    "Gemma 3": '```tool_code\nrun(command="ls", n=2)\n```',
    "tags": f'<tool_call name="run">\n{BODY}\n</tool_call>',
    "OpenAI": json.dumps({"type": "function", "function": {"name": "run", "arguments": BODY}}),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_call_is_found_in_the_form_of_each_template(form):
    assert tool_calls.find(f"I look.\n{form}") == [CALL]


def test_several_calls_are_found_in_their_order_and_each_once():
    text = FORMS["Hermes, Qwen"] + FORMS["Hermes, Qwen"] + '{"name": "stop", "arguments": {}}'
    assert [call.name for call in tool_calls.find(text)] == ["run", "stop"]


def test_text_about_tools_is_no_call():
    assert tool_calls.find('I would use run. {"name": "run"} {"arguments": {}} <function=> run(command=1)') == []


@given(some.text(alphabet='{}[]"<>|=`/ functionparameterARGS_TOOL_CALLS:1,a\n', max_size=300))
def test_any_text_is_read_without_an_error(text):
    for call in tool_calls.find(text):
        assert isinstance(call.arguments, dict)
    for kind in (Check("contains", "a"), Check("json", True), Check("tool", {"name": "a"}), Check(checks.LOOSE, "abc")):
        assert holds(kind, text) in (True, False)


@pytest.mark.parametrize(
    "text", ["{" * 20_000, '{"name": "a", "arguments": ' * 2000, "<function=a>" * 20_000, "[TOOL_CALLS]a[ARGS]" * 9000,
             "```tool_code\n" + "(" * 30_000, "<think>" * 20_000, "to=functions.a " * 20_000]
)  # fmt: skip
def test_an_answer_made_to_take_long_does_not(text):
    began = time.monotonic()
    tool_calls.find(text)
    checks.visible(text)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gt", "must be an object with one of equals, contains"),
        ({}, "must be an object with one of"),
        ({"equals": "a", "regex": "b"}, "must be an object with one of"),
        ({"equal": "a"}, "«equal» is no check; known: equals"),
        ({"contains": ""}, "«contains» must be a text that is not empty"),
        ({"regex": "("}, "«regex» is no pattern of Python's"),
        ({"json": "x"}, "«json» must be a JSON schema"),
        ({"json": {"type": "no such type"}}, "«json» is no JSON schema"),
        ({"json": {"$ref": "https://example.org/a"}}, "leads nowhere"),
        ({"tool": {"arguments": {}}}, "needs the «name» of a tool"),
        ({"tool": {"name": "a", "args": {}}}, "not «args»"),
    ],
)
def test_what_is_no_check_is_refused(given: Any, said: str):
    with pytest.raises(UserError) as error:
        check_of(given)
    assert said in str(error.value)


TREE = {"$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}}}, "$ref": "#/$defs/tree"}


def test_an_answer_that_a_schema_follows_too_deep_does_not_fit():
    assert holds(check_of({"json": TREE}), "[" * 900 + "]" * 900) is False
    assert holds(check_of({"json": TREE}), "[[[]]]") is True


def test_a_pattern_in_a_schema_is_tried_before_anything_is_asked():
    with pytest.raises(UserError) as error:
        check_of({"tool": {"name": "run", "arguments": {"properties": {"command": {"pattern": "("}}}}})
    assert "is not a 'regex'" in str(error.value)
