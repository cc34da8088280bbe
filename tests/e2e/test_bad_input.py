"""What a user can get wrong: a clear error, an exit code, and nothing left behind."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest

from .conftest import Checkout

GOOD = {"conversations": [{"from": "human", "value": "Is the queue empty?"}, {"from": "gpt", "value": "It is."}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    made = Checkout(tmp_path_factory.mktemp("bad") / "lora-forge")
    yield made
    made.kill_everything()


def lines(*records: object) -> str:
    return "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)


def refused(shared: Checkout, *arguments: str, says: list[str]) -> None:
    before = sorted(path.name for path in shared.trainer.iterdir())
    code, text = shared.play(*arguments)
    flat = " ".join(text.split())
    assert code != 0, text
    for words in says:
        assert words in flat, text
    assert "Traceback" not in text
    assert sorted(path.name for path in shared.trainer.iterdir()) == before, "a host was touched"
    assert not (shared.home / "output").exists(), "something was left behind"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-e", "role=witnes"], ["there is no agent «witnes»; did you mean «witness»?", "crew, deacon, gastown"]),
        (["-e", "role=../../etc"], ["there is no agent «../../etc»"]),
        (["-e", "datasets_dir=nowhere"], ["no dataset for crew: nowhere/crew_train.jsonl does not exist"]),
        (["-e", "role=witness", "-e", "datasets_dir=nowhere"], ["nowhere/witness_train.jsonl does not exist"]),
        (
            ["-e", '{"role": "witness", "recipe": {"learning_rte": 1}}'],
            ["«learning_rte»", "did you mean «learning_rate»?"],
        ),
        (
            ["-e", '{"role": "witness", "recipe": {"dataset_processes": 4}}'],
            ["«dataset_processes» has been replaced", "dataset_num_proc"],
        ),
        (
            ["-e", '{"role": "witness", "recipe": {"datasets": [{"type": "alpaca"}]}}'],
            ["what is trained here are conversations", "type: chat_template"],
        ),
        (["-e", '{"role": "witness", "recipe": {"lora_r": "many"}}'], ['«lora_r: "many"»', "expected a whole number"]),
        (["-i", "empty.yml", "-e", "role=witness"], ["the inventory holds no host to train on"]),
        (["-i", "missing.yml", "-e", "role=witness"], ["missing.yml"]),
    ],
)
def test_command_line(shared: Checkout, arguments: list[str], says: list[str]) -> None:
    (shared.home / "empty.yml").write_text("---\ntrainers:\n  hosts: {}\n")
    refused(shared, *arguments, says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            lines(*[GOOD] * 16, '{"conversations": [{"from" "human"}]}'),
            ["witness_train.jsonl, line 17: not JSON", "column"],
        ),
        (lines({"conversations": [{"from": "human", "value": "hm"}]}), ["line 1: has no assistant turn"]),
        ("", ["witness_train.jsonl is empty"]),
        (
            lines({"conversations": [{"from": "human", "value": "x" * 90_000}, {"from": "gpt", "value": "y"}]}),
            ["all of 1 examples", "sequence_len 1024"],
        ),
    ],
)
def test_datasets(shared: Checkout, content: str, says: list[str]) -> None:
    folder = shared.home / "data"
    folder.mkdir(exist_ok=True)
    (folder / "witness_train.jsonl").write_text(content)
    refused(shared, "-e", "role=witness", "-e", "datasets_dir=data", says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "num_epochs: 3\nwarmup_steps: 5\nnum_epochs: 4\n",
            ["configs/agents/witness.yml, lines 1 and 3", "«num_epochs»"],
        ),
        ("num_epochs: 3\n\twarmup_steps: 5\n", ["configs/agents/witness.yml, line 2: a tab"]),
        ("learning_rate: 2e+4\n", ["configs/agents/witness.yml, line 1", "must be a number above 0 and 1 at most"]),
    ],
)
def test_agent_files(shared: Checkout, content: str, says: list[str]) -> None:
    path = shared.home / "configs/agents/witness.yml"
    before = path.read_text()
    path.write_text(content)
    try:
        refused(shared, "-e", "role=witness", says=says)
    finally:
        path.write_text(before)


def test_val_that_is_trained_on(shared: Checkout, tmp_path: pathlib.Path) -> None:
    (tmp_path / "witness_train.jsonl").write_text(lines(GOOD))
    (tmp_path / "witness_val.jsonl").write_text(lines(GOOD))
    refused(shared, "-e", "role=witness", "-e", f"datasets_dir={tmp_path}", says=["shares 1 conversation(s)"])
