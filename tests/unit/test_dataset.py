"""The dataset contract: what is refused, what is warned of, and with which words."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import dataset


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


@pytest.mark.parametrize(("record", "form"), [(talk(system="Be."), "conversations"), (messages(), "messages")])
def test_both_forms_are_read(write, record, form):
    path = write({**record, "metadata": {"id": 1}}, name="a.jsonl")
    found = dataset.check_file(path, "train", 4096)
    assert (found.form, found.examples, found.use, found.warnings) == (form, 1, "train", [])
    assert found.path == str(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


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
        ({"messages": "hello"}, "«messages» holds no turns"),
        ({"conversations": [{"role": "user", "content": "x"}]}, "turn 1 needs «from» and «value»"),
        ({"messages": ["hello"]}, "turn 1 needs «role» and «content»"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "turn 1: «content» must be text, not list"),
        ({"messages": [{"role": None, "content": "x"}]}, "turn 1 is by «None»"),
        ({"prompt": "x", "answer": "y"}, "has neither «conversations» nor «messages» (it has: prompt, answer)"),
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
    assert refused(path).endswith(f"Each line is one conversation: {dataset.EXAMPLE}")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    assert refused(path) == f"{path} is empty. Each line is one conversation: {dataset.EXAMPLE}"


def test_mixed_forms(write):
    said = refused(write(talk(), talk("b"), messages()))
    assert "line 3: is in the «messages» form, but the lines before are in «conversations»; a file takes one" in said


def test_more_than_five_errors_are_cut_with_a_count(write):
    said = refused(write(*[b"{"] * 12)).splitlines()
    assert [line.partition(": ")[0].rpartition(" ")[2] for line in said[:5]] == ["1", "2", "3", "4", "5"]
    assert said[5] == "… and 7 more"
    assert len(said) == 7


def test_five_errors_are_all_told(write):
    said = refused(write(*[b"{"] * 5))
    assert ", line 5: " in said
    assert "more" not in said


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
    assert dataset.axolotl_entry(
        dataset.check_file(write(talk()), "train", 99), {"path": "/p", "roles_to_train": ["gpt"]}
    ) == {
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "conversations",
        "message_property_mappings": {"role": "from", "content": "value"},
        "roles_to_train": ["gpt"],
    }


def test_entry_of_messages(write):
    assert dataset.axolotl_entry(dataset.check_file(write(messages()), "train", 99), {}) == {
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
    }


def test_find_lists_only_what_is_there(write, tmp_path):
    path = write(talk(), name="crew_train.jsonl")
    (tmp_path / "mayor_train.jsonl").mkdir()
    assert dataset.find_files(tmp_path, ["crew", "deacon", "mayor"], "train") == [path]
