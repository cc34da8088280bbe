"""One line of a dataset: what is read of it, what it becomes, and what is said of one that cannot be trained on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.lora_forge.data import conversation
from ansible.module_utils.lora_forge.data.conversation import Conversation, Flaw, Keys

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
CALL = {"type": "function", "function": {"name": "ls", "arguments": {"path": "/", "all": True}}}
TOOL = {"type": "function", "function": {"name": "ls", "description": "lists", "parameters": {"type": "object"}}}


def read(record: Any, **options: Any) -> Conversation:
    line = record if isinstance(record, bytes) else json.dumps(record).encode()
    return conversation.read(line, Keys.from_options(options))


def turns(record: Any, **options: Any) -> list[dict[str, Any]]:
    """Return the turns of the canonical line."""
    found: list[dict[str, Any]] = json.loads(json.loads(read(record, **options).line)["messages"])
    return found


def said(record: Any, **options: Any) -> str:
    with pytest.raises(Flaw) as flaw:
        read(record, **options)
    return str(flaw.value)


def talk(*more: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, ANSWER, *more]}


# --- the canonical form


def test_the_canonical_line_is_two_texts():
    line = read({"id": 7, **talk()}).line
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"messages": json.dumps([USER, ANSWER]), "tools": "[]"}


@pytest.mark.parametrize(
    "text", ['a "quote"', 'back\\slash \\n \\" ', "tab\tline\nend\r", "\x00\x1f\x7f", "é 中 😀 \u2028", "</s>{}[]"]
)
def test_what_is_said_comes_through_as_it_is(text):
    record = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    assert [turn["content"] for turn in turns(record)] == [text, text]


def test_what_is_not_trained_changes_nothing():
    plain = read(talk())
    assert read({"metadata": {"when": None}, "id": "x", **talk()}).line == plain.line
    dressed = {"messages": [{**USER, "id": 3, "timestamp": "2026-01-01"}, {**ANSWER, "weight": 1, "tool_calls": None}]}
    assert read(dressed).line == plain.line
    sharegpt = {"conversations": [{"value": "Why?", "from": "human"}, {"from": "gpt", "value": "Because."}]}
    assert read(sharegpt).line == plain.line
    parts = [{"type": "text", "text": "Beca"}, {"type": "text", "text": "use."}]
    assert read({"messages": [USER, {"role": "assistant", "content": parts}]}).line == plain.line


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [USER, {**ANSWER, "content": "Because!"}]},
        {"messages": [USER, {**ANSWER, "train": True}]},
        {"messages": [USER, {**ANSWER, "reasoning_content": "hm"}]},
        {"messages": [{**USER, "name": "bob"}, ANSWER]},
        {**talk(), "tools": [TOOL]},
        {**talk(), "system": "Be brief."},
    ],
)
def test_what_is_trained_changes_it(other):
    assert read(other).line != read(talk()).line


def test_a_system_text_of_the_line_comes_first_where_no_turn_has_one():
    assert turns({**talk(), "system": "Be brief."})[0] == {"role": "system", "content": "Be brief."}
    own = {"role": "system", "content": "Mine."}
    assert turns({"messages": [own, USER, ANSWER], "system": "Be brief."}) == [own, USER, ANSWER]
    assert turns({**talk(), "system": " "}) == [USER, ANSWER]


# --- tools and reasoning


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "tool_calls": [CALL["function"]]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "ls", "arguments": '{"path": "/", "all": true}'}}],
        },
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "function_call", "value": [CALL["function"]]},
    ],
)
def test_calls_of_tools_have_one_form(turn):
    pair = {"from": "human", "value": "Why?"} if "from" in turn else USER
    found = read({"messages": [pair, turn]})
    assert turns({"messages": [pair, turn]}) == [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert (found.calls, found.turns) == (1, 2)


def test_the_order_of_arguments_stays():
    arguments = '{"z": 1, "a": {"y": 2.50, "b": null}}'
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    found = turns({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]})
    assert found[1]["tool_calls"][0]["id"] == "c1"
    assert json.dumps(found[1]["tool_calls"][0]["function"]["arguments"]) == '{"z": 1, "a": {"y": 2.5, "b": null}}'


def test_results_of_tools_may_be_empty_and_name_their_call():
    result = {"role": "tool", "content": "", "tool_call_id": "c1", "name": "ls"}
    found = read(talk(result, ANSWER))
    assert turns(talk(result, ANSWER))[2] == result
    assert found.results == 1
    sharegpt = {"conversations": [{"from": "observation", "value": "x"}, {"from": "gpt", "value": "y"}]}
    assert turns(sharegpt)[0] == {"role": "tool", "content": "x"}


@pytest.mark.parametrize(
    "given",
    [
        [TOOL],
        json.dumps([TOOL]),
        [TOOL["function"]],
        [{**TOOL, "function": {**TOOL["function"], "parameters": '{"type": "object"}'}}],
    ],
)
def test_tools_have_one_form(given):
    found = read({**talk(), "tools": given})
    assert json.loads(json.loads(found.line)["tools"]) == [TOOL]
    assert found.tools
    assert found.characters > read(talk()).characters


@pytest.mark.parametrize("given", [None, [], "", "[]", " "])
def test_no_tools(given):
    assert read({**talk(), "tools": given}).line == read(talk()).line


def test_reasoning_is_the_assistants_and_needs_no_words():
    found = read(
        {
            "messages": [
                {**USER, "reasoning_content": "mine"},
                {"role": "assistant", "reasoning_content": "hm", "content": ""},
            ]
        }
    )
    assert found.reasoned == 1
    assert "mine" not in found.text
    named = {"messages": [USER, {**ANSWER, "thinking": "hm"}]}
    assert read(named).unread == ("thinking",)
    assert turns(named, field_thinking="thinking")[1]["reasoning_content"] == "hm"
    assert read(named, field_thinking="thinking").unread == ()


# --- what is trained


@pytest.mark.parametrize(
    ("marks", "train"),
    [({"weight": 0}, False), ({"train": False}, False), ({"train": True}, True), ({"weight": 1}, None), ({}, None),
     ({"weight": 0, "train": False}, False), ({"weight": 0.0}, False), ({"train": None, "weight": None}, None)],
)  # fmt: skip
def test_a_turn_says_whether_it_is_trained(marks, train):
    record = {"messages": [USER, {**ANSWER, **marks}, USER, ANSWER]}
    found = read(record)
    assert turns(record)[1].get("train") is train
    assert (found.marked, found.masked) == (train is not None, int(train is False))
    assert found.head == (4 if train is not False else 4 + 8 + 4)


def test_conversations_are_the_same_whatever_is_trained_of_them():
    masked = {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}
    other = {"messages": [USER, ANSWER, USER, {**ANSWER, "train": False}]}
    assert read(masked).same == read(other).same != read({"messages": [USER, ANSWER, USER, USER, ANSWER]}).same


def test_a_user_that_is_trained_is_something_to_learn():
    assert read({"messages": [{**USER, "train": True}]}).head == 0


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({**ANSWER, "weight": 0.5}, "turn 2: «weight» must be 0 or 1, not 0.5"),
        ({**ANSWER, "weight": True}, "turn 2: «weight» must be 0 or 1, not true"),
        ({**ANSWER, "train": "no"}, 'turn 2: «train» must be true or false, not "no"'),
        ({**ANSWER, "train": True, "weight": 0}, "turn 2: «weight» is 0, and «train» is true"),
        ({**ANSWER, "weight": 0}, "has no turn that is trained: each says train: false or weight: 0"),
        ({**ANSWER, "content": None}, "turn 2 (assistant) is empty; take it out"),
        ({**ANSWER, "content": []}, "turn 2 (assistant) is empty"),
        ({**ANSWER, "content": [{"type": "text", "text": {"value": "x"}}]}, "something else than text in it"),
        ({**ANSWER, "content": [{"type": "text"}]}, "«content» has a part without «text»"),
        ({**USER, "tool_calls": [CALL]}, "turn 2 (user) has «tool_calls», and none but the assistant calls tools"),
        ({"role": "model", "content": "x"}, "roles in the recipe's datasets says whom another name stands for"),
        ({**ANSWER, "content": {"a": 1}}, "turn 2: «content» must be text, not dict"),
        (
            {**ANSWER, "content": [{"type": "image_url"}]},
            "turn 2: «content» has a part of type «image_url»; text alone",
        ),
        ({**ANSWER, "content": [{"type": "text", "text": "x", "train": False}]}, "parts of which some are not"),
        ({**ANSWER, "reasoning_content": ["x"]}, "turn 2: «reasoning_content» must be text, not list"),
        ({**ANSWER, "tool_calls": "soon"}, "turn 2: «tool_calls» is text, and no JSON"),
        ({**ANSWER, "tool_calls": [{"arguments": {}}]}, "turn 2: «tool_calls» needs the «name» of a tool"),
        ({**ANSWER, "tool_calls": "[]"}, "turn 2: «tool_calls» holds no call"),
        ({**ANSWER, "tool_calls": [{"name": "f", "arguments": "{"}]}, "turn 2: «arguments» is text, and no JSON"),
        ({**ANSWER, "tool_calls": [{"name": "f", "arguments": [1]}]}, "«arguments» must be a JSON object, not list"),
        ({**ANSWER, "tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]}, "gives the key «a» twice"),
    ],
)
def test_a_turn_that_cannot_be_trained_on(turn, words):
    assert words in said({"messages": [USER, turn]})


@pytest.mark.parametrize("tools", ["soon", {"name": "f"}, [{"type": "function"}], [7], "{}7"])
def test_tools_that_are_none(tools):
    assert said({**talk(), "tools": tools}).startswith("«tools» ")


# --- what no reader agrees on


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "gives the key «content» twice"),
        (b'{"messages": [{"role": "assistant", "content": "\\ud83d"}]}', "half of a character"),
        (b'{"messages": [{"role": "assistant", "content": "\xed\xa0\xbd"}]}', "not UTF-8 text (byte 49)"),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply to be read"),
        (b"[" * 100_000, "is nested too deeply to be read"),
        (b'{"n": ' + b"9" * 5000 + b', "messages": []}', "holds a number of thousands of digits"),
        (
            b'{"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": '
            b'{"a": NaN}}]}]}',
            "has NaN or Infinity in a tool or its arguments",
        ),
        (
            b'{"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": '
            b'{"a": 1e999}}]}]}',
            "has NaN or Infinity in a tool or its arguments",
        ),
        (b'{"messages": [{"role": "assistant", "content": "a\tb"}]}', "not JSON (Invalid control character"),
    ],
)
def test_a_line_that_readers_do_not_agree_on(line, words):
    assert words in said(line)


def test_what_is_odd_where_nothing_is_read_does_no_harm():
    line = b'{"a": NaN, "b": -Infinity, "c": "\\ud83d", "d": 1e999, "e": 123456789012345678901234567890, ' + json.dumps(
        talk()
    ).encode().lstrip(b"{")
    assert read(line).line == read(talk()).line


# --- other forms


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            "is in Alpaca's form (instruction, output), and conversations are trained here: jq -c '{messages: [{role: "
            '"user", content: .instruction}, {role: "assistant", content: .output}]}\' makes turns of it (and «input»',
        ),
        ({"prompt": "a", "completion": "b"}, "is a prompt and its completion (prompt, completion)"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "is a pair to prefer one of, as for DPO (it has: pro",
        ),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "is a pair to prefer one of, as for DPO"),
        ({"prompt": [USER], "completion": [ANSWER]}, "jq -c '{messages: (.prompt + .completion)}' makes one"),
        ({"data": [{"messages": [USER, ANSWER]}]}, "holds all conversations under «data»; jq -c '.data[]' writes"),
        (b'{"messages": []},\n', "ends with a comma; sed 's/,$//' takes it away"),
        (b'{"messages": []} {"messages": []}\n', "holds more than one JSON object; jq -c . writes each in a line"),
        ({"question": "b", "answer": "c"}, "is a question and its answer (question, answer)"),
        ({"text": "Once upon a time"}, "is running text (it has: text)"),
        ({"dialog": [{"role": "user"}]}, "where «dialog» holds the turns, name it as field_messages"),
        ({"images": ["a.png"], "messages": [{**USER, "content": "<image> what?"}, ANSWER]}, "goes with pictures or"),
    ],
)
def test_a_line_of_another_form_is_told_what_it_is(record, words):
    assert words in said(record)


def test_a_text_that_speaks_of_pictures_is_a_text():
    assert turns({"messages": [{**USER, "content": "what is <image>?"}, ANSWER]})[0]["content"] == "what is <image>?"
    assert turns({"image": "python:3.12", **talk()}) == [USER, ANSWER]


def test_names_that_hold_null_are_as_good_as_none():
    """Hugging Face's datasets writes them where it puts together what has other names."""
    empty = {"from": None, "value": None, "tool_calls": None}
    merged = {"conversations": None, "messages": [{**empty, **USER}, {**empty, **ANSWER}], "tools": None}
    assert read(merged).line == read(talk()).line
    assert read({"conversations": [], **talk()}).line == read(talk()).line


def test_what_is_staged_is_read_as_what_it_is():
    line = read({**talk(), "tools": [TOOL]}).line
    assert read(line).line == line


def test_contents_in_parts_are_put_together():
    parts = [{"type": "text", "text": "Be"}, {"type": "output_text", "text": "cause."}]
    asked = [{"type": "input_text", "text": "Why?"}]
    assert turns({"messages": [{**USER, "content": asked}, {**ANSWER, "content": parts}]}) == [USER, ANSWER]
    called = {"role": "assistant", "content": [], "tool_calls": [CALL]}
    assert turns({"messages": [USER, called]})[1] == {**called, "content": ""}


def test_the_system_may_be_called_developer_and_say_nothing():
    assert turns({"messages": [{"role": "developer", "content": "Be."}, USER, ANSWER]})[0]["role"] == "system"
    assert turns({"messages": [{"role": "system", "content": ""}, USER, ANSWER]})[0] == {
        "role": "system",
        "content": "",
    }


@pytest.mark.parametrize(
    ("speakers", "order"),
    [
        ("ua", set()),
        ("sua", {"system"}),
        ("uasua", {"system", "later_system"}),
        ("ssua", {"system", "later_system"}),
        ("au", {"assistant_first"}),
        ("sa", {"system", "assistant_first"}),
        ("uuaa", {"same_speaker"}),
        ("uattaua", set()),
    ],
)
def test_the_order_of_turns_is_what_a_template_has_to_take(speakers, order):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    assert read({"messages": [{"role": roles[one], "content": "x"} for one in speakers]}).order == order


def test_a_recipe_says_how_lines_are_read():
    options = {
        "field_messages": "dialog",
        "message_property_mappings": {"role": "who", "content": "said", "tool_calls": "acts"},
        "message_field_training": "learn",
        "field_tools": "can",
        "roles": {"assistant": ["bot"], "user": ["kid"]},
    }
    record = {
        "can": [TOOL],
        "dialog": [
            {"who": "kid", "said": "Why?"},
            {"who": "bot", "said": "", "acts": [CALL]},
            {"who": "bot", "said": "Because.", "learn": False},
        ],
    }
    assert turns(record, **options) == [
        USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {**ANSWER, "train": False},
    ]  # fmt: skip
    assert read(record, **options).tools
    assert read(talk(), **options).line == read(talk()).line, "an evaluation set may be in a usual form"
    assert "has no «dialog», which field_messages names" in said({"other": []}, **options)
    assert "has neither «conversations» nor «messages» (it has: dialog, can)" in said({"dialog": 1, "can": 2})
