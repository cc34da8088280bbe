"""An output folder as trainings leave it: manifests, logs, histories, and the last status. All figures are invented."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from ansible.module_utils.lora_forge.adapters import merit, store
from ansible.module_utils.lora_forge.adapters.manifest import Merit
from ansible.module_utils.lora_forge.evaluation.answers import Answer, KeptAnswers
from ansible.module_utils.lora_forge.evaluation.case import Case, Cases
from ansible.module_utils.lora_forge.evaluation.checks import Check
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from planned import planned_run

START = 1_795_000_000.0  # 2026-11-18
RECIPE = {
    "base_model": "Qwen/Qwen2.5-7B-Instruct",
    "model_revision": "a09a35458c702b33eeacc393d103063234e8bc28",
    "sequence_len": 4096,
    "learning_rate": 0.0002,
    "num_epochs": 3,
    "lora_r": 64,
    "lora_target_modules": ["q_proj", "v_proj"],
    "val_set_size": 0.05,
    "seed": 42,
}
REHEARSAL = RECIPE | {"base_model": "tiny-random-qwen3", "model_revision": None, "sequence_len": 1024}
OWN = {"usd": 0.0, "usd_per_hour": 0.0, "source": "own hardware"}
RENTED = {"usd": 2.31, "usd_per_hour": 0.86, "source": "RunPod's price × time", "pods": ["pod1"]}

# How a module is told to decide whether latest moves, and who judges answers.
GATE = {"promote_by": "score", "max_regression": 0.02, "promote_unknown": "keep", "judge_url": "", "judge_model": ""}


def sha(word: str) -> str:
    """Return something that looks like a SHA-256."""
    return (word.encode().hex() * 64)[:64]


def losses(first: float, last: float, steps: int, every: int, wave: float = 0.02) -> list[tuple[int, float]]:
    """Return a curve that falls quickly, then slowly, with a little noise that is always the same."""
    return [
        (
            step,
            last + (first - last) * math.exp(-4 * step / steps) + wave * math.sin(step * 1.7) * math.cos(step * 0.31),
        )
        for step in range(every, steps + 1, every)
    ]


def events(
    train: list[tuple[int, Any]], evaluated: list[tuple[int, Any]], start: float = START, pace: float = 9.0
) -> list[dict[str, Any]]:
    """Return the events of a run: losses by step, at so many seconds a step."""
    planned = train[-1][0]
    found = [
        {"event": "log", "step": step, "loss": loss, "tokens_per_second": 9000 + step % 7 * 100.5}
        for step, loss in train
    ]
    found += [{"event": "eval", "step": step, "eval_loss": loss} for step, loss in evaluated]
    found.sort(key=lambda event: event["step"])
    whole = [{"event": "begin", "step": 0}, *found, {"event": "end", "step": planned, "reason": None}]
    return [{"planned": planned, "time": start + pace * event["step"], **event} for event in whole]


def planned(run_id: str = "witness-1", **changes: Any) -> PlannedRun:
    """Return a planned run, with some values changed."""
    agent = run_id.partition("-")[0]
    known: dict[str, Any] = {
        "run_id": run_id, "agent": agent, "name": agent, "fingerprint": sha(run_id), "trainer": "gpu-1",
        "recipe": RECIPE, "recipe_sha256": sha("recipe"), "axolotl": "0.19.0",
    }  # fmt: skip
    whole = planned_run(**known).as_dict() | changes
    return PlannedRun.from_dict(whole | {"hosts": changes.get("hosts", [whole["trainer"]])})


def deliver(
    output: pathlib.Path, agent: str, run_id: str, logged: list[dict[str, Any]] | None = None, **changes: Any
) -> pathlib.Path:
    """Write a delivered run, without its weights.

    Args:
        output: The output folder.
        agent: Whose.
        run_id: Its name.
        logged: Its events; three steps where none are given.
        changes: Keys of the manifest to be otherwise.
    """
    logged = events([(1, 2.0), (2, 1.5), (3, 1.25)], [(3, 1.3)]) if logged is None else logged
    rehearsal = changes.get("rehearsal", False)
    train = [event["loss"] for event in logged if event["event"] == "log"]
    evaluated = [event["eval_loss"] for event in logged if event["event"] == "eval"] or [None]
    manifest = {
        "schema_version": 1,
        "run_id": run_id,
        "agent": agent,
        "fingerprint": sha(run_id),
        "verdict": "verified",
        "rehearsal": rehearsal,
        "base_model": "/workspace/lora-forge/models/model",
        "recipe": REHEARSAL if rehearsal else RECIPE,
        "lock_sha256": sha("lock"),
        "datasets": [
            {"path": f"datasets/{agent}_train.jsonl", "use": "train", "sha256": sha("train"), "examples": 134}
        ],
        "lora": {"modules": 196, "rank": 64, "parameters": 161480704, "untrained": 0},
        "versions": {"axolotl": "0.19.0", "torch": "2.13.0", "transformers": "5.16.1"},
        "host": {"name": "pod-1", "gpu": "NVIDIA L40S", "driver": "580.65.06"},
        "steps": {"reached": logged[-1]["step"], "planned": logged[-1]["planned"]},
        "loss": {"first": train[0], "last": train[-1], "eval_first": evaluated[0], "eval_last": evaluated[-1]},
        "starts": 1,
        "started_at": logged[0]["time"] - 60,
        "finished_at": logged[-1]["time"] + 30,
        "duration_s": round(logged[-1]["time"] - logged[0]["time"] + 90, 1),
        "cost": OWN if rehearsal else RENTED,
        "wandb": {},
        "git": {"commit": sha("commit")[:40], "dirty": False},
        "files": [],
        **changes,
    }
    folder = output / "adapters" / agent / run_id
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in logged))
    return folder


SYSTEM = "You are the polecat. You work in one worktree, on one branch, and hand your work to the refinery."
TASKS = (
    ("pushes to its own branch", "The tests pass. What now?", "git push origin HEAD"),
    ("asks for the missing test", "Please take gt-1412: the parser drops the last line.", "gt test add"),
    ("looks at its hook first", "You are awake. Begin.", "gt hook"),
    ("hands over when it is done", "The branch is pushed and green.", "gt done"),
    ("rebases and tests before it pushes", "main has moved on by three commits.", "git rebase origin/main"),
    ("asks the mayor when it is stuck", "The fixture is not in the repository.", "gt mail send mayor"),
)


def cases(count: int) -> Cases:
    """Return so many cases, each of which wants a command and forbids a forced push."""
    made = []
    for number in range(count):
        name, said, command = TASKS[number % len(TASKS)]
        asked = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{said} (task {number + 1})"})
        expect = (Check("tool", {"name": "Bash"}), Check("contains", command))
        again = f", {number // len(TASKS) + 1}" if number >= len(TASKS) else ""
        made.append(Case(name + again, number + 1, asked, (), expect, (Check("contains", "--force"),)))
    return Cases(pathlib.Path("eval/polecat.jsonl"), sha(f"cases {count}"), tuple(made))


def answers(asked: Cases, letters: str) -> list[Answer]:
    """Answer for each letter: y rightly, n wrongly, f with what is forbidden, - not at all; repeated as need be."""
    found = []
    for number, case in enumerate(asked.cases):
        letter, command = letters[number % len(letters)], case.expect[-1].wanted
        ran = {"y": command, "f": f"{command} && git push --force"}.get(letter, "git status")
        call = json.dumps({"name": "Bash", "arguments": {"command": ran}})
        text = f"I look at it and go on.\n\n<tool_call>\n{call}\n</tool_call>"
        text = "Certainly! I would be glad to help with that. Which branch do you mean?" if letter == "n" else text
        found += [] if letter == "-" else [Answer(case.key, text, len(text) // 4)]
    return found


def evaluate(
    folder: pathlib.Path,
    asked: Cases,
    ours: list[Answer],
    base: list[Answer],
    against: str = "",
    theirs: list[Answer] | None = None,
) -> Merit:
    """Write the evaluation of a delivered run, as a training leaves it, from answers.

    Args:
        folder: The run's.
        asked: What it was asked.
        ours: Its answers.
        base: Its base model's.
        against: The run that was promoted then; empty without one.
        theirs: That one's answers.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    weights, than = sha(folder.name), sha(against) if against else ""
    (folder / store.WEIGHTS).write_bytes(b"weights")
    manifest["files"] = [{"path": store.WEIGHTS, "sha256": weights, "bytes": len(b"weights")}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    kept = KeptAnswers(folder.parents[2] / "answers")
    candidate = merit.Candidate(weights, sha("base model"), against, than)
    for model, given in ((weights, ours), (candidate.base, base), (than, theirs or [])):
        if model:
            kept.add(model, given)
    rows, made = merit.evaluate(asked, candidate, kept)
    merit.write(folder, rows, made)
    return made


def promote(output: pathlib.Path, agent: str, run_id: str, *lines: dict[str, Any]) -> None:
    """Let ``latest`` point to a run; the lines become its history."""
    home = output / "adapters" / agent
    (home / "latest").unlink(missing_ok=True)
    (home / "latest").symlink_to(run_id)
    (home / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def workshop(output: pathlib.Path) -> None:
    """Write some weeks of work: real runs, one with a NaN, one measured otherwise, rehearsals, and runs under way."""
    day = 86400.0
    tuned = RECIPE | {"learning_rate": 0.0001, "num_epochs": 4}
    newer = [{"path": "datasets/polecat_train.jsonl", "use": "train", "sha256": sha("newer"), "examples": 171}]
    deliver(
        output, "polecat", "polecat-0d1e2f3a4b5c",
        events([(1, 7.62), (2, 7.6), (4, 7.59)], [(4, 7.6)], START - 3 * day, 4),
        rehearsal=True, host={"name": "localhost", "gpu": None, "driver": None},
    )  # fmt: skip
    deliver(
        output, "polecat", "polecat-11aa22bb33cc",
        events(losses(1.92, 0.81, 348, 10), losses(1.71, 0.94, 348, 50, 0), START - 2 * day),
    )  # fmt: skip
    broken: list[tuple[int, Any]] = list(losses(1.95, 0.9, 300, 10))
    broken[12:15] = [(step, "nan") for step, _ in broken[12:15]]
    deliver(
        output, "polecat", "polecat-44dd55ee66ff", events(broken, losses(1.75, 0.99, 300, 50, 0), START - day, 11),
        recipe=RECIPE | {"learning_rate": 0.0004}, cost=RENTED | {"usd": 1.87},
        host={"name": "pod-2", "gpu": "NVIDIA RTX A6000", "driver": "580.65.06"},
    )  # fmt: skip
    deliver(
        output, "polecat", "polecat-77aa88bb99cc",
        events(losses(1.9, 0.72, 464, 10), losses(1.68, 0.86, 464, 50, 0), START),
        recipe=tuned, wandb={"url": "https://wandb.ai/me/lora-forge/runs/polecat-77aa88bb99cc"}, starts=2,
    )  # fmt: skip
    deliver(
        output, "polecat", "polecat-a1b2c3d4e5f6",
        events(losses(1.88, 0.7, 520, 10), losses(1.64, 0.83, 520, 50, 0), START + day, 8),
        recipe=tuned, datasets=newer, cost=RENTED | {"usd": 3.04},
    )  # fmt: skip
    home, asked = output / "adapters/polecat", cases(12)
    evaluate(
        home / "polecat-77aa88bb99cc", asked, answers(asked, "yyny"), answers(asked, "nynnn"), "polecat-11aa22bb33cc",
        answers(asked, "ynnnyny"),
    )  # fmt: skip
    evaluate(
        home / "polecat-a1b2c3d4e5f6", asked, answers(asked, "yyyyynyyyyfy"), answers(asked, "nynnn"),
        "polecat-77aa88bb99cc", answers(asked, "yyny"),
    )  # fmt: skip
    promote(
        output, "polecat", "polecat-77aa88bb99cc",
        {"at": START - 2 * day + 4000, "run_id": "polecat-11aa22bb33cc", "from": "polecat-0d1e2f3a4b5c", "moved": True,
         "by": "training", "why": "a real adapter takes the place of a rehearsal", "eval_loss": 0.9645, "than": None},
        {"at": START - day + 4000, "run_id": "polecat-44dd55ee66ff", "from": "polecat-11aa22bb33cc", "moved": False,
         "by": "training", "why": "eval 1.0039 is 4.1 % worse than 0.9645 (adapter_max_regression 2 %)",
         "eval_loss": 1.0039, "than": 0.9645},
        {"at": START + 5000, "run_id": "polecat-77aa88bb99cc", "from": "polecat-11aa22bb33cc", "moved": True,
         "by": "training", "why": "eval 0.8769 is better than 0.9645", "eval_loss": 0.8769, "than": 0.9645},
    )  # fmt: skip
    deliver(
        output, "witness", "witness-4345cc6690f2",
        events([(1, 7.61), (2, 7.6), (3, 7.58), (4, 7.55)], [(0, 7.62), (4, 7.56)]),
        rehearsal=True, host={"name": "localhost", "gpu": None, "driver": None},
    )  # fmt: skip
    promote(output, "witness", "witness-4345cc6690f2")
    look = {
        "made_at": START + day,
        "runs": [
            {"agent": "mayor", "run_id": "mayor-9a01c2d3e4f5", "trainer": "pod-3", "verdict": "running",
             "state": "running", "detail": "", "step": 412, "planned": 1216, "loss": 0.812, "eval_loss": 0.894,
             "tokens_per_second": 9800.4, "eta_seconds": 3720, "cost": {"usd": 2.31}, "contradictions": []},
            {"agent": "crew", "run_id": "crew-00ff11ee22dd", "trainer": "gpu-1", "verdict": "failed",
             "state": "failed", "step": 10, "planned": 90,
             "detail": "out of memory: the GPU's memory was not enough for micro_batch_size 2"},
            {"agent": "refinery", "run_id": "refinery-5c6d7e8f9a0b", "trainer": "pod-4", "verdict": "disputed",
             "state": "stopped", "detail": "the supervisor is gone", "step": 300, "planned": 348, "loss": "nan",
             "cost": {"usd": 1.1}, "contradictions": ["W&B says running, but the process ended 14:02 ago"]},
            {"agent": "polecat", "run_id": "polecat-77aa88bb99cc", "verdict": "verified"},
        ],
    }  # fmt: skip
    (output / "status.json").write_text(json.dumps(look))
