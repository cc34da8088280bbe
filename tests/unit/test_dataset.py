"""The dataset contract: what is refused, what is warned of, and with which words."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.data import conversation, dataset, jsonl
from ansible.module_utils.lora_forge.errors import UserError

ENTRY = {"ds_type": "json", "type": "chat_template", "field_messages": "messages"}


def talk(question: str = "Why?", answer: str = "Because.", system: str = "") -> dict[str, Any]:
    turns = [{"from": "system", "value": system}] if system else []
    return {"conversations": [*turns, {"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def messages(question: str = "Why?", answer: str = "Because.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def write(tmp_path):
    """Write records, or lines as they are, and return the path."""

    def writer(*rows: Any, name: str = "witness_train.jsonl") -> pathlib.Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines) + (b"\n" if lines else b""))
        return path

    return writer


def refused(path: pathlib.Path) -> str:
    with pytest.raises(UserError) as error:
        dataset.check_file(path, "train", 4096)
    return str(error.value)


@pytest.mark.parametrize("record", [talk(), messages(), {**messages(), "metadata": {"id": 1}}])
def test_both_forms_are_read_and_are_the_same_data(write, record):
    path = write(record, name="a.jsonl")
    found = dataset.check_file(path, "train", 4096)
    assert (found.examples, found.use, found.path, found.warnings) == (1, "train", str(path), [])
    assert (found.counts.describe(), found.counts.needs) == ("", {})
    canonical = conversation.read(json.dumps(talk()).encode(), conversation.Keys()).line
    assert found.sha256 == hashlib.sha256(canonical).hexdigest()


def test_line_17_not_json_names_file_line_and_column(write):
    path = write(*[talk(str(number)) for number in range(16)], b'{"conversations": nope}', talk("last"))
    first = refused(path).splitlines()[0]
    assert first == f"{path}, line 17: not JSON (Expecting value at column 19)"


def test_blank_lines_and_windows_ends_and_a_byte_order_mark_do_no_harm(write):
    line = json.dumps(talk("one")).encode()
    path = write(b"\xef\xbb\xbf" + line + b"\r", b"", b"  ", json.dumps(talk("two")).encode() + b"\r")
    assert dataset.check_file(path, "train", 4096).examples == 2


def test_blank_lines_count_for_line_numbers(write):
    assert ", line 3: not JSON" in refused(write(talk(), b"", b"{"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [{"from": "robot", "value": "x"}]}, "turn 1 is by «robot»; known speakers: system, human"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "has no assistant turn, so there is nothing to learn"),
        (talk(answer=" \n"), "turn 2 (gpt) is empty"),
        (talk(question=""), "turn 1 (human) is empty"),
        ({"conversations": []}, "«conversations» holds no turns"),
        ({"messages": "hello"}, "«messages» is text, and no JSON"),
        ({"messages": {"role": "user"}}, "«messages» holds no turns"),
        ({"conversations": [{"user": "x"}]}, "turn 1 needs «from» and «value»"),
        ({"messages": ["hello"]}, "turn 1 needs «role» and «content»"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "turn 1: «content» must be text, not list"),
        ({"messages": [{"role": None, "content": "x"}]}, "turn 1 is by «None»"),
        ({"ask": "x", "told": "y"}, "has neither «conversations» nor «messages» (it has: ask, told)"),
        ({}, "(it has: nothing)"),
        ([talk()], "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b'{"messages": "caf\xe9"}', "not UTF-8 text (byte 18)"),
    ],
)
def test_a_broken_line_is_named(write, row, said):
    path = write(talk(), row)
    assert refused(path).startswith(f"{path}, line 2: ")
    assert said in refused(path)
    assert refused(path).endswith(f"Each line is one conversation: {jsonl.EXAMPLE}")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    assert refused(path) == f"{path} is empty. Each line is one conversation: {jsonl.EXAMPLE}"


def test_forms_may_be_mixed(write):
    assert dataset.check_file(write(talk(), messages("b")), "train", 4096).examples == 2


def test_one_problem_of_many_lines_is_told_once(write):
    said = refused(write(talk(), *[b"{"] * 12, {"messages": []}, b"[", {"text": "x"})).splitlines()
    assert said[0].endswith(
        ", line 2: not JSON (Expecting property name enclosed in double quotes at column 2); the same in lines 3, 4, "
        "5, 6, 7 and 7 more"
    )
    assert [line.partition("jsonl, ")[2] for line in said[1:3]] == [
        "line 14: «messages» holds no turns",
        "line 16: is running text (it has: text), and conversations are trained here",
    ]
    assert said[3:] == [f"Each line is one conversation: {jsonl.EXAMPLE}"]


def test_more_than_five_kinds_of_problems_are_cut_with_a_count(write):
    rows = [b"1", {}, {"messages": []}, {"messages": [7]}, {"messages": [{"role": "x"}]}, talk(answer=""), b"nope"]
    said = refused(write(*rows)).splitlines()
    assert [line.partition(": ")[0].rpartition(" ")[2] for line in said[:5]] == ["1", "2", "3", "4", "5"]
    assert said[5] == "… and 2 problems of other kinds"
    assert len(said) == 7


def test_two_lines_with_the_same_problem(write):
    assert "holds no turns; the same in line 3\n" in refused(write({"messages": []}, talk(), {"messages": []}))


def test_duplicates_are_warned_of_with_lines(write):
    path = write(talk("a"), talk("b"), talk("a"), {**talk("a"), "metadata": {"id": 4}})
    found = dataset.check_file(path, "train", 4096)
    assert found.warnings == [f"{path}: lines 3, 4 repeat earlier conversations"]
    assert found.examples == 4


def test_many_line_numbers_are_cut(write):
    [warning] = dataset.check_file(write(*[talk()] * 12), "train", 4096).warnings
    assert "lines 2, 3, 4, 5, 6, 7, 8, 9 and 3 more repeat" in warning


@pytest.mark.parametrize(
    "secret",
    [
        "sk-" + "a1" * 16,
        "sk-proj-" + "a_1-" * 8,
        "ghp_" + "aB3d" * 9,
        "github_pat_" + "a1_B" * 12,
        "AKIA" + "ABCD1234" * 2,
        "hf_" + "aBcDe" * 7,
        "rpa_" + "ABCDE" * 8,
        "xoxb-" + "12345-" * 5,
        "glpat-" + "abcde" * 4,
        "AIza" + "Sy3_-" * 7,
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
@pytest.mark.parametrize("place", ["question", "answer", "system"])
def test_secrets_are_warned_of_and_never_told(write, secret, place):
    path = write(talk("a"), talk(**{"question": "b", place: f"export KEY={secret} now"}))
    found = dataset.check_file(path, "train", 4096)
    assert found.warnings == [f"{path}: something that looks like a key or token in line 2; take it out"]
    assert secret not in repr(found)


def test_a_secret_in_a_broken_line_is_not_told(write):
    secret = "ghp_" + "aB3d" * 9
    for row in (f'{{"conversations": {secret}'.encode(), {"conversations": [{"from": "human", "value": secret}]}):
        assert secret not in refused(write(row))


def test_harmless_text_is_no_secret(write):
    text = "risk-free, sk-learn, ask-me-anything, AKIA, hf_hub, task-0123"
    assert dataset.check_file(write(talk(text)), "train", 4096).warnings == []


# --- lengths: sequence_len 10 is 35 characters


@pytest.mark.parametrize(
    ("question", "answer", "strategy", "said"),
    [
        ("q" * 20, "a" * 20, "drop", "all of 2 examples are longer than sequence_len 10 (about 35 characters)"),
        ("q" * 40, "a", "truncate", "all of 2 examples have no assistant text within sequence_len 10"),
        ("q" * 20, "a" * 20, "raise", "all of 2 examples are longer than sequence_len 10"),
    ],
)
def test_all_examples_too_long(write, question, answer, strategy, said):
    path = write(talk(question, answer), talk(question + "!", answer))
    with pytest.raises(UserError) as error:
        dataset.check_lengths([dataset.check_file(path, "train", 10)], 10, strategy)
    assert str(error.value).startswith(f"{path}: {said}")
    assert str(error.value).endswith("Raise sequence_len in the recipe, or split the conversations.")


@pytest.mark.parametrize(("strategy", "fate"), [("truncate", "cut at its end"), ("drop", "dropped")])
def test_some_examples_too_long(write, strategy, fate):
    path = write(talk("q" * 20, "a" * 20), talk())
    warnings = dataset.check_lengths([dataset.check_file(path, "train", 10)], 10, strategy)
    assert warnings == [f"{path}: about 1 of 2 examples are longer than sequence_len 10 and will be {fate}"]


def test_one_too_long_under_raise(write):
    path = write(talk("q" * 20, "a" * 20), talk())
    with pytest.raises(UserError, match="1 of 2 examples are longer than"):
        dataset.check_lengths([dataset.check_file(path, "train", 10)], 10, "raise")


def test_long_examples_with_an_early_answer_survive_truncation(write):
    path = write(talk("q" * 20, "a" * 200))
    assert len(dataset.check_lengths([dataset.check_file(path, "train", 10)], 10, "truncate")) == 1


def test_short_examples_need_no_word(write):
    assert dataset.check_lengths([dataset.check_file(write(talk()), "train", 10)], 10, "drop") == []


def test_tokens_are_cut_to_the_sequence_length(write):
    short = dataset.check_file(write(talk("q" * 35, "a" * 35)), "train", 4096)
    cut = dataset.check_file(write(talk("q" * 35, "a" * 35000)), "train", 10)
    assert short.tokens == 20 + 8
    assert cut.tokens == 10


# --- train against val


def test_overlap_names_both_files_and_lines(write):
    train = write(talk("a"), talk("b"), talk("c"), name="w_train.jsonl")
    val = write(talk("x"), talk("c"), talk("a"), name="w_val.jsonl")
    with pytest.raises(UserError) as error:
        dataset.check_overlap([dataset.check_file(train, "train", 99)], [dataset.check_file(val, "val", 99)])
    assert str(error.value).startswith(
        f"{val} shares 2 conversation(s) with {train}: line 2 (there line 3), 3 (there line 1)."
    )


def test_overlap_is_seen_across_forms(write):
    train, val = write(talk("a"), name="t.jsonl"), write(messages("a"), name="v.jsonl")
    with pytest.raises(UserError, match=r"shares 1 conversation\(s\)"):
        dataset.check_overlap([dataset.check_file(train, "train", 99)], [dataset.check_file(val, "val", 99)])


def test_no_overlap(write):
    train, val = write(talk("a"), name="t.jsonl"), write(talk("b"), name="v.jsonl")
    dataset.check_overlap([dataset.check_file(train, "train", 99)], [dataset.check_file(val, "val", 99)])


# --- Axolotl's dataset item


def test_entry_of_conversations(write):
    options = {
        "path": "/p",
        "field_messages": "conversations",
        "message_property_mappings": {"role": "from", "content": "value"},
        "roles": {"assistant": ["bot"]},
        "roles_to_train": ["gpt", "bot", "human"],
        "chat_template": "qwen3",
    }
    assert dataset.axolotl_entry(dataset.check_file(write(talk()), "train", 99, options)) == {
        **ENTRY, "chat_template": "qwen3", "roles_to_train": ["assistant", "user"],
    }  # fmt: skip


def test_entry_of_turns_that_say_whether_they_are_trained(write):
    marked = messages()
    marked["messages"][1]["train"] = True
    file = dataset.check_file(write(messages("b"), marked), "train", 99)
    assert dataset.axolotl_entry(file) == {**ENTRY, "message_field_training": "train"}
    with pytest.raises(UserError, match="«message_field_training_detail» in the recipe's datasets is not supported"):
        dataset.axolotl_entry(dataclasses.replace(file, options={"message_field_training_detail": "parts"}))


def test_what_a_plan_keeps_of_a_file(write):
    options = {"path": "x", "field_messages": "talk", "field_tools": None, "train_on_eos": "all"}
    result = {"role": "tool", "content": "x"}
    path = write({"talk": [*messages()["messages"], result], "tools": [{"name": "f"}]})
    planned = dataset.planned_dataset(dataset.check_file(path, "val", 99, options))
    assert (planned.path, planned.use, planned.examples) == (str(path), "val", 1)
    assert planned.reading == {"field_messages": "talk"}
    assert planned.entry == {**ENTRY, "train_on_eos": "all"}
    assert planned.needs == {"tool_role": 1, "tools": 1}


# --- tools, reasoning and what does not belong into a conversation


def test_what_a_file_holds_besides_plain_turns(write):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}] * 2}
    thought = {"role": "assistant", "content": "x", "reasoning_content": "y"}
    record = {
        "messages": [call, {"role": "tool", "content": "z"}, thought, {**thought, "weight": 0}],
        "tools": [{"name": "f"}],
    }
    file = dataset.check_file(write(record, talk(), record), "train", 4096)
    assert dataset.describe_counts([file, dataset.check_file(write(talk(), name="p"), "val", 99)]) == [
        "witness_train.jsonl: 2 with tools, 4 tool calls, 2 tool results, 4 turns with reasoning, "
        "2 turns not trained, as they say"
    ]
    ours = ("assistant_first", "reasoning_content", "same_speaker", "tool_calls", "tool_role", "tools")
    assert file.counts.needs == dict.fromkeys(ours, 1)


def test_what_a_template_has_to_take_is_known_with_its_file_and_line(write):
    plain = messages()["messages"]
    late = {"messages": [*plain, {"role": "system", "content": "x"}, *plain]}
    first = dataset.check_file(write(messages(), messages(), late, late), "train", 4096)
    second = dataset.check_file(write(late, {**messages(), "tools": [{"name": "f"}]}, name="p"), "val", 4096)
    assert dataset.needs(map(dataset.planned_dataset, (first, second))) == {
        "later_system": f"{first.path}, line 3",
        "system": f"{first.path}, line 3",
        "tools": f"{second.path}, line 2",
    }


@pytest.mark.parametrize(
    "token", ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<|channel|>", "<｜User｜>", "<turn|>"]
)
def test_control_tokens_are_refused_with_their_lines(write, token):
    said = refused(write(talk(), talk(f"a {token}\n"), talk(answer=f"b {token}")))
    assert f", line 2: has «{token}» in its text, a control token of chat templates, which would begin or end" in said
    assert "; the same in line 3\n" in said


def test_what_only_looks_like_a_control_token_is_text(write):
    text = "a <| b |> c <|x|> <turn> <s>struck</s> [INST] and <image>"
    path = write(talk("a"), talk(text))
    assert dataset.check_file(path, "train", 4096).warnings == [
        f"{path}: [INST] or </s> in line 2: bases of the families Llama 2 and Mistral take them for control tokens",
        f"{path}: <image>, <video> or <audio> in line 2 is trained as plain text; no picture goes with it",
    ]


def test_reasoning_under_another_name_is_told(write):
    path = write({"messages": [{"role": "assistant", "content": "x", "thinking": "y"}]})
    [warning] = dataset.check_file(path, "train", 4096).warnings
    assert warning == (
        f"{path}: turns of line 1 have «thinking», which is not trained; field_thinking: thinking in the recipe's "
        "datasets makes reasoning of it"
    )
    options = {"field_thinking": "thinking"}
    assert dataset.check_file(path, "train", 4096, options).counts.reasoned == 1


@pytest.mark.parametrize("key", ["training", "trainable", "loss"])
def test_other_names_for_what_is_trained_are_told(write, key):
    path = write(
        {"messages": [{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y", key: False}]}
    )
    [warning] = dataset.check_file(path, "train", 4096).warnings
    assert f"turns of line 1 have «{key}», which is not read; message_field_training: {key}" in warning
    options = {"message_field_training": key}
    file = dataset.check_file(path, "train", 4096, options)
    assert (file.warnings, file.counts.masked) == ([], 1)


def test_a_system_text_under_another_name_is_told(write):
    [warning] = dataset.check_file(write({**talk(), "system_prompt": "Be brief."}), "train", 4096).warnings
    assert "«system_prompt» of line 1 is not read; call it «system»" in warning


def test_a_last_line_that_is_cut_off_is_told(tmp_path):
    path, line = tmp_path / "x.jsonl", json.dumps(talk()).encode()
    path.write_bytes(line + b"\n" + line[:30])
    assert ", line 2: not JSON (" in refused(path)
    assert "; the file ends within this line, and may have been cut off there\n" in refused(path)
    path.write_bytes(line[:30] + b"\n" + line)
    assert "cut off" not in refused(path)


# --- what is no file of JSON lines


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed by gzip; unpack it: gunzip"),
        (b"PAR1" + bytes(99), "is a Parquet file; write it as JSON lines"),
        (json.dumps(talk()).encode("utf-16"), "is UTF-16 text; write it as UTF-8: iconv -f UTF-16 -t UTF-8"),
        (json.dumps(talk()).encode("utf-16-le"), "is no text of UTF-8 (it may be UTF-16"),
        (
            json.dumps([talk()] * 3000, indent=1).encode(),
            "holds one JSON array, where each line has to be a conversation",
        ),
        (json.dumps([talk()] * 3000).encode(), "holds one JSON array, where each line has to be a conversation"),
        (b"\xef\xbb\xbf\n [\n" + json.dumps(talk()).encode(), "holds one JSON array"),
        (json.dumps(talk(), indent=2).encode(), "spreads a JSON object over many lines; jq -c . "),
        (b'{"conversations": [\n  {"from": "human"', "spreads a JSON object over many lines"),
    ],
)
def test_another_format_is_told_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    said = refused(path)
    assert said.startswith(f"{path} {words}")
    assert "\n" not in said


def test_lines_that_are_lists_are_wrong_by_themselves(write):
    assert ", line 1: holds a JSON list, not an object; the same in line 2\n" in refused(write([talk()], [talk()]))
    assert ", line 1: holds a JSON list, not an object\n" in refused(write([{"role": "user", "content": "x"}]))


def test_what_is_no_file_at_all(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} is a folder, and a file is wanted"
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert refused(tmp_path / "pipe.jsonl").endswith("is no file that can be read twice (a pipe, a socket or a device)")
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    assert refused(tmp_path / "link.jsonl").endswith("is a link that leads nowhere")


def test_a_file_that_may_not_be_read(write, monkeypatch):
    def denied(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    path = write(talk())
    loop = path.parent / "loop.jsonl"
    loop.symlink_to(loop)
    assert refused(loop).endswith("cannot be read: Too many levels of symbolic links")
    monkeypatch.setattr(jsonl.os, "open", denied)  # root may read everything
    assert refused(path) == f"{path} cannot be read: Permission denied. Whoever runs this needs the right to"


def test_a_file_that_changes_while_it_is_read(write, monkeypatch):
    path, read = write(talk(), talk("b")), conversation.read

    def changing(line, keys):
        with path.open("a") as file:
            file.write(json.dumps(talk("c")) + "\n")
        return read(line, keys)

    monkeypatch.setattr(conversation, "read", changing)
    # What comes behind the end while it is read would be read, too, and never end.
    monkeypatch.setattr(dataset.jsonl, "lines", lambda path, file: enumerate(file.readlines(), 1))
    assert refused(path) == f"{path} was changed while it was read. Run the same command again when it is whole"


def test_a_line_without_end_is_refused(write, monkeypatch):
    monkeypatch.setattr(jsonl, "_LONGEST", 2**20)
    assert "line 2: is longer than 1 MiB" in refused(write(talk(), talk("x" * 2**20)))


def test_people_are_told_how_far_it_is(write):
    path, words, times = write(*[talk("x" * 100_000)] * 20), [], iter(range(0, 1000, 2))
    dataset.read_contents(path, {}, words.append, clock=lambda: float(next(times)))
    assert [word.startswith(f"  reading {path}: ") for word in words] == [True] * len(words)
    assert words[0].endswith(" of 2 MB")
    assert 4 <= len(words) <= 7, "one for five seconds"


# --- what lies beside a file that is missing


@pytest.mark.parametrize(
    ("there", "near"),
    [
        (["witness_train.jsonl.gz", "crew_train.jsonl"], "witness_train.jsonl.gz"),
        (["witness_train.json"], "witness_train.json"),
        (["Witness-Train.jsonl"], "Witness-Train.jsonl"),
        (["witness.jsonl"], "witness.jsonl"),
        (["witnes_train.jsonl"], "witnes_train.jsonl"),
        (["witness_train.parquet"], "witness_train.parquet"),
    ],
)
def test_what_may_be_meant_by_a_missing_file(tmp_path, there, near):
    for name in there:
        (tmp_path / name).touch()
    path = tmp_path / "witness_train.jsonl"
    assert jsonl.missing_reason(path) == (
        f"{path} does not exist (beside it: {near}; what is read is JSON lines, unpacked, under that very name)"
    )


def test_nothing_like_a_missing_file(tmp_path):
    (tmp_path / "crew_train.jsonl").touch(), (tmp_path / "witness_val.jsonl").touch()
    path = tmp_path / "witness_train.jsonl"
    assert jsonl.missing_reason(path) == f"{path} does not exist"
    assert jsonl.missing_reason(tmp_path / "no/x.jsonl") == f"{tmp_path}/no/x.jsonl does not exist"


def overlooked(folder: pathlib.Path, agent: str) -> list[str]:
    return dataset.overlooked(folder, agent, dataset.list_folder(folder).get(agent, ()))


@pytest.mark.parametrize(
    "name", ["witness_eval.jsonl", "witness_test.jsonl", "witness_val.json", "witness_val.jsonl.gz"]
)
def test_an_evaluation_set_under_another_name_is_told(tmp_path, name):
    (tmp_path / name).touch()
    assert overlooked(tmp_path, "witness") == [
        f"witness: {name} in {tmp_path} is not read; what is evaluated on has the name witness_val.jsonl"
    ]
    assert overlooked(tmp_path, "crew") == []
    (tmp_path / "witness_val.jsonl").touch()
    assert overlooked(tmp_path, "witness") == []


def test_no_evaluation_set_is_overlooked_among_folders_or_where_there_is_no_folder(tmp_path):
    (tmp_path / "witness_validation.jsonl").mkdir()
    assert overlooked(tmp_path, "witness") == overlooked(tmp_path / "none", "witness") == []


def test_find_lists_only_what_is_there(write, tmp_path):
    path = write(talk(), name="crew_train.jsonl")
    (tmp_path / "mayor_train.jsonl").mkdir()
    assert dataset.find_files(tmp_path, ["crew", "deacon", "mayor"], "train") == [path]
