"""evaluate.yml from trainers that send other answers than they were asked for, or none, or something else."""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

import pytest
import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import evaluations, launch, questions
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from hostile import CONTROL, Guard, Played, Stage
from lab import ROOT

AGENTS = {"good": "witness", "lies": "mayor", "bomb": "deacon", "links": "crew"}
BAD = [name for name in AGENTS if name != "good"]
TERABYTE = 1 << 40


def finished(stage: Stage, run: PlannedRun) -> pathlib.Path:
    """Leave an evaluation on its host as one that came to its end leaves it."""
    run_dir, now = stage.root(run.trainer) / "runs" / run.run_id, time.time()
    run_dir.mkdir()
    rundir.append_event(run_dir / "metrics.jsonl", "begin", step=0, planned=4)
    rundir.append_event(run_dir / "metrics.jsonl", "end", step=4, planned=4)
    ended = {"state": "finished", "exit_code": 0, "starts": 1, "started_at": now - 60, "finished_at": now}
    rundir.write_json(run_dir / "status.json", ended)
    facts = launch.run_facts(run, run.trainer)
    rundir.write_json(run_dir / "run.json", {"run_id": run.run_id, "backend": "process", **facts})
    return run_dir


@pytest.fixture(scope="module")
def runs(stage: Stage) -> dict[str, pathlib.Path]:
    """Deliver an adapter of each host, and leave a finished evaluation of it there."""
    cases = stage.folder / "texts/eval"
    cases.mkdir()
    for host, agent in AGENTS.items():
        stage.host(host, agent, eval_dir=str(cases))
        stage.finished(host, agent)
    named = ",".join(AGENTS.values())
    collected = stage.play("playbooks/collect.yml", "-e", f"role={named}")
    assert collected.code == 0, collected.text
    found = {}
    for host, agent in AGENTS.items():
        # Others for each: these adapters are alike, and what one of them has answered is asked no other one.
        asked = [{"role": "user", "content": f"{agent} {number}?"} for number in range(2)]
        rows = [{"messages": [turn], "expect": [{"equals": "yes"}]} for turn in asked]
        (cases / f"{agent}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = [Trainer(host, "rehearsal", eval_dir=str(cases))]
        (run,) = evaluations.make(ROOT, stage.output, agent, where, Agents(ROOT)).runs
        manifest = store.read_manifest(stage.output / "adapters" / agent / run.evaluates)
        assert manifest is not None
        run_dir = found[host] = finished(stage, run)
        models = questions.delivered_candidate(run, manifest, stage.output / "adapters" / agent).models
        made = questions.cases_of(run, ROOT)
        assert made is not None
        for who, case in [(who, case) for who in ("adapter", "base") for case in made.cases]:
            answer: dict[str, Any] = {"who": who, "key": case.key, "text": "yes", "weights": models[who], "tokens": 1}
            if host == "lies":
                answer |= {"weights": "0" * 64, "text": "\x1b[2J" + "y" * 1_000_000}
            rundir.append_line(run_dir / "answers.jsonl", answer)
        (run_dir / "sitecustomize.py").write_text("print('here')")
    os.truncate(found["bomb"] / "answers.jsonl", TERABYTE)
    (found["links"] / "answers.jsonl").unlink()
    (found["links"] / "answers.jsonl").symlink_to("/etc/hostname")
    return found


@pytest.fixture(scope="module")
def guard(stage: Stage, runs: dict[str, pathlib.Path]) -> Guard:
    return stage.watch_over()


@pytest.fixture(scope="module")
def played(stage: Stage, guard: Guard) -> Played:
    return stage.play("playbooks/evaluate.yml", "-e", "role=all")


def manifest(stage: Stage, host: str) -> dict[str, Any]:
    [path] = (stage.output / "adapters" / AGENTS[host]).glob("*-*/manifest.json")
    return rundir.read_json(path)


def test_the_honest_hosts_answers_are_scored(stage: Stage, played: Played, runs: dict[str, pathlib.Path]) -> None:
    assert (played.ended, played.code) == (True, 2), played.text
    assert manifest(stage, "good")["merit"]["score"]["right"] == 2, played.text
    assert not runs["good"].exists(), "what was staged for it is gone"


@pytest.mark.parametrize("host", BAD)
def test_the_others_have_no_score_and_are_named(stage: Stage, played: Played, host: str) -> None:
    assert "merit" not in manifest(stage, host)
    assert any("-eval-" in line and f"on {host}: " in line for line in played.lines(AGENTS[host])), played.text


def test_what_was_made_up_is_told(played: Played) -> None:
    assert played.lines("2 answers are of other weights"), played.text


def test_nothing_lands_elsewhere_and_little_here(stage: Stage, guard: Guard, played: Played) -> None:
    assert guard.changes() == []
    found = [path for path in stage.output.rglob("*") if not path.is_dir()]
    assert sum(path.lstat().st_blocks * 512 for path in found) < 100e6
    assert [path for path in found if path.name == "sitecustomize.py"] == []
    assert [path for path in found if path.is_symlink() and path.name != "latest"] == []


def test_nothing_reaches_the_terminal_but_words(played: Played) -> None:
    assert CONTROL.findall(played.text) == []
    assert "Traceback" not in played.text
    assert max(map(len, played.text.splitlines())) < 1000
