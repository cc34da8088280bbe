"""Answers to status.yml that are no answers: each costs its host the row, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hostile import CONTROL, Guard, Played, Stage

RUN = {
    "run_id": "mayor-0123456789ab", "agent": "mayor", "state": "running", "detail": "", "alive": True,
    "status": {"state": "running"}, "progress": {"step": 3, "planned": 9, "loss": 1.5}, "facts": {"hosts": ["x"]},
    "checkpoint": {"step": 0, "files": []}, "eta_seconds": 60.0, "silent_for": 1.0, "gpu": None, "gpu_busy": None,
}  # fmt: skip
BIG = "9" * 400
DEEP = "[" * 100_000 + "]" * 100_000
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\r\x08"


def runs(*found: Any, **more: Any) -> str:
    return json.dumps({"changed": False, "runs": list(found), "gpus": [], **more})


def run(**changes: Any) -> dict[str, Any]:
    return {**RUN, **changes}


ANSWERS: dict[str, str | bytes] = {
    "nothing": b"",
    "no-json": "Segmentation fault\n",
    "half-json": runs(RUN)[:200],
    "no-text": b"\xff\xfe\x00\x01" * 99,
    "list": "[1, 2]",
    "number": "17",
    "null": "null",
    "empty": "{}",
    "runs-text": json.dumps({"runs": "all of them", "gpus": []}),
    "runs-object": json.dumps({"runs": {"a": 1}, "gpus": []}),
    "runs-numbers": runs(1, 2),
    "runs-empty": runs({}),
    "runs-null": json.dumps({"runs": None, "gpus": None}),
    "gpus-text": json.dumps({"runs": [], "gpus": "many"}),
    "gpus-numbers": json.dumps({"runs": [], "gpus": [1, None]}),
    "states": runs(run(state=["running"])),
    "foreign-state": runs(run(state="victorious")),
    "progress-list": runs(run(progress=[1, 2, 3])),
    "progress-text": runs(run(progress={"step": "three", "planned": {}, "loss": [1]})),
    "facts-list": runs(run(facts=["hosts"])),
    "hosts-number": runs(run(facts={"hosts": 3})),
    "no-id": runs({key: value for key, value in RUN.items() if key != "run_id"}),
    "id-number": runs(run(run_id=17)),
    "id-path": runs(run(run_id="../../../../home/.bashrc")),
    "id-escapes": runs(run(run_id=f"mayor-{ESCAPES}")),
    "agent-escapes": runs(run(agent=ESCAPES, detail=ESCAPES)),
    "digits": runs(RUN).replace('"step": 3', f'"step": {BIG}').replace("60.0", BIG),
    "digits-loss": runs(RUN).replace("1.5", f"{BIG}e0"),
    "digits-many": runs(RUN).replace('"step": 3', f'"step": {"9" * 6000}'),
    "not-finite": runs(RUN).replace("60.0", "NaN").replace("1.5", "-Infinity"),
    "deep": f'{{"runs": {DEEP}, "gpus": []}}',
    "wide": runs(*[run(run_id=f"mayor-{n:012x}") for n in range(20_000)]),
    "long": runs(run(detail="x" * 10_000_000)),
    "long-words": json.dumps({"failed": True, "msg": "x" * 10_000_000}),
    "escapes": json.dumps({"failed": True, "msg": f"no {ESCAPES} answer", "exception": ESCAPES}),
    "silent-object": json.dumps({"silent": {"a": ESCAPES}}),
    "warnings": runs(warnings=[f"your controller is {ESCAPES}"], deprecations=[{"msg": ESCAPES, "version": "1"}]),
    "unreachable": json.dumps({"unreachable": True, "msg": "gone", "runs": []}),
    "internal": runs(_ansible_no_log=True, _ansible_parsed=False, _ansible_verbose_always=True, censored="x"),
    "surrogates": '{"runs": [], "gpus": [], "msg": "\\ud800\\udfff"}',
}  # fmt: skip
# Answers with something beside them that nobody reads, or with a text that is cut.
TAKEN = {"digits-loss", "warnings", "internal", "surrogates", "long"}
HOW = (" does not answer", ": its answer to trainer_info does not fit", ": its answer to trainer_info is an error")
LONGEST = 5000  # characters of a line on the terminal, whatever a host says


@pytest.fixture(scope="module")
def guard(stage: Stage) -> Guard:
    stage.host("good", "witness")
    stage.finished("good", "witness")
    for name, answer in ANSWERS.items():
        stage.host(name)
        stage.face(name, "module:trainer_info", "say", text=answer)
    stage.host("closed")
    stage.face("closed", "*", "close")
    return stage.watch_over()


@pytest.fixture(scope="module")
def played(stage: Stage, guard: Guard) -> Played:
    return stage.play("playbooks/status.yml")


@pytest.fixture(scope="module")
def said(stage: Stage, played: Played) -> dict[str, dict[str, Any]]:
    """Return what output/status.json says of each host."""
    assert (played.ended, played.code) == (True, 0), played.text[-4000:]
    return {host["name"]: host for host in json.loads((stage.output / "status.json").read_text())["hosts"]}


def test_every_host_was_asked_and_the_honest_one_keeps_its_row(
    stage: Stage, played: Played, said: dict[str, dict[str, Any]]
) -> None:
    assert {name for name in ANSWERS if stage.did(name)} == set(ANSWERS)
    assert said.keys() == {"good", "closed", *ANSWERS}
    [row, *_] = played.lines("witness-")
    assert row.split()[2:4] == ["good", "finished"]
    assert said["good"]["answers"]


@pytest.mark.parametrize("name", sorted({"closed", *ANSWERS} - TAKEN))
def test_what_is_no_answer_costs_its_host_the_row(played: Played, said: dict[str, dict[str, Any]], name: str) -> None:
    assert not said[name]["answers"]
    assert said[name]["word"]
    assert len(said[name]["word"]) <= LONGEST
    assert [line.split()[2:4] for line in played.lines(f" {name} ") if line.split()[0] == "–"] == [[name, "unknown"]]
    said_so = tuple(f"    {name}{how}: " for how in HOW)
    assert any(line.startswith(said_so) for line in played.lines(name)), played.text


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_what_is_beside_an_answer_costs_nothing(said: dict[str, dict[str, Any]], name: str) -> None:
    assert said[name]["answers"]


def test_the_terminal_gets_words_and_not_too_many(played: Played) -> None:
    assert CONTROL.findall(played.text) == []
    assert "Traceback" not in played.text
    assert "owned" not in "".join(played.lines("WARN"))
    assert max(map(len, played.text.splitlines())) <= LONGEST
    assert len(played.text) < 100_000


def test_no_run_is_shown_that_only_a_bad_answer_knows(played: Played) -> None:
    """One host may say that it has a run of this name: the one whose answer holds."""
    assert [line.split()[2] for line in played.lines("mayor-0123456789ab  ")] == ["long"]


def test_nothing_lands_elsewhere(guard: Guard, played: Played) -> None:
    assert guard.changes() == []
