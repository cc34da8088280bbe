"""A checkout with cases, and an output folder in which adapters have answered them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.adapters.manifest import DeliveredFile, Manifest
from ansible.module_utils.lora_forge.data import cases
from ansible.module_utils.lora_forge.evaluation import answers
from ansible.module_utils.lora_forge.planned_run import PlannedCases, PlannedRun
from ansible.module_utils.lora_forge.planning import questions
from planned import planned_run

RECIPE = {"base_model": "Qwen/Qwen3-8B", "model_revision": "c0ffee", "load_in_4bit": True}
OURS, THEIRS = "a" * 64, "b" * 64


class Desk:
    """A checkout with cases, and an output folder with adapters."""

    def __init__(self, home: pathlib.Path):
        self.home, self.output = home, home / "output"
        self.agent = self.output / "adapters/witness"
        self.write("yes", "yes", "yes")

    def write(self, *expected: str) -> None:
        """Write a case for each expectation."""
        rows = [
            {"messages": [{"role": "user", "content": f"question {number}"}], "expect": [{"equals": one}],
             "max_new_tokens": 64}
            for number, one in enumerate(expected)
        ]  # fmt: skip
        (self.home / "eval").mkdir(exist_ok=True)
        (self.home / "eval/witness.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, **changes: Any) -> PlannedRun:
        made = cases.read(self.home / "eval/witness.jsonl")
        planned = PlannedCases("eval/witness.jsonl", made.sha256, len(made.cases))
        known = {"run_id": "witness-new", "agent": "witness", "recipe": RECIPE, "rehearsal": False, "cases": planned}
        return planned_run(**{**known, **changes})

    def deliver(self, run_id: str, weights: str, **changes: Any) -> pathlib.Path:
        folder = self.agent / run_id
        folder.mkdir(parents=True)
        (folder / store.WEIGHTS).write_bytes(b"12345")
        (folder / "adapter_config.json").write_text("{}")
        known: dict[str, Any] = {"run_id": run_id, "agent": "witness", "verdict": "verified", "rehearsal": False,
                                 "base_model": "Qwen/Qwen3-8B", "recipe": RECIPE,
                                 "files": (DeliveredFile(store.WEIGHTS, weights, 5),)}  # fmt: skip
        (folder / store.MANIFEST).write_text(json.dumps(Manifest(**{**known, **changes}).as_dict()))
        return folder

    def promote(self, run_id: str) -> None:
        (self.agent / "latest").symlink_to(run_id)

    def asked(self, run: PlannedRun) -> tuple[dict[str, int], list[str]]:
        """Return how many questions whom is asked, and which files go along."""
        first, *more = questions.question_files(run, "runs/x", self.home, self.output, "Qwen/Qwen3-8B")
        told = json.loads(first["content"])
        assert {key for keys in told["ask"].values() for key in keys} == set(told["questions"])
        assert "expect" not in first["content"]
        return {who: len(keys) for who, keys in told["ask"].items()}, [file["path"] for file in more]

    def answer(self, folder: pathlib.Path, run: PlannedRun, **texts: list[str]) -> None:
        """Leave answers beside an adapter, as its trainer sends them."""
        asked = questions.cases_of(run, self.home)
        assert asked is not None
        for who, said in texts.items():
            weights = {"adapter": OURS, "promoted": THEIRS}.get(who, "")
            for case, text in zip(asked.cases, said):
                row = {"who": who, "key": case.key, "text": text, "weights": weights, "tokens": 1, "ended": True}
                rundir.append_line(folder / answers.FILE, row)
