"""What is staged of a dataset, before the trainers' own libraries: it loads whatever the file held, and is learnt."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from typing import Any

from ansible.module_utils.lora_forge.data import dataset, staging
from ansible.module_utils.lora_forge.planned_run import PlannedDataset

from .conftest import CONVERGE, ROOT

FIRST_CHUNK = 10 << 20  # bytes, of which datasets takes the type of each field
TOOLS = [{"name": "ls", "description": "lists", "parameters": '{"type": "object"}'}]
CALL = {"name": "ls", "arguments": '{"path": "/", "deep": 2}'}
RICH = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is there?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]},
    {"role": "tool", "content": "a.txt", "tool_call_id": "c1"},
    {"role": "assistant", "content": "Learnt it is."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Masked by train.", "train": False},
    {"role": "user", "content": "So?"},
    {"role": "assistant", "content": "Masked by weight.", "weight": 0},
    {"role": "user", "content": "Well?"},
    {"role": "assistant", "reasoning_content": "Thought it is.", "content": "Said it is.", "weight": 1},
]

PROGRAM = """
import json, sys
import datasets

def load(path):
    return datasets.load_dataset("json", data_files=path, split="train", cache_dir=sys.argv[4])

_, raw, staged, tokenizer, cache, entry = sys.argv
found = {}
try:
    load(raw)
except datasets.exceptions.DatasetGenerationError as error:
    found["raw"] = type(error).__name__
rows = load(staged)
found["columns"] = {name: feature.dtype for name, feature in rows.features.items()}
found["rows"] = len(rows)
import axolotl.utils.data
from axolotl.datasets import TokenizedPromptDataset
from axolotl.prompt_strategies.chat_template import load as load_strategy
from axolotl.utils.dict import DictDefault
from transformers import AutoTokenizer

tokens = AutoTokenizer.from_pretrained(tokenizer)
strategy = load_strategy(tokens, DictDefault(sequence_len=4096, chat_template="qwen3"), json.loads(entry))
done = TokenizedPromptDataset(strategy, rows.select([0, len(rows) - 1]), process_count=1)
for name, row in zip(("first", "last"), done):
    found[name] = tokens.decode(row["input_ids"])
    found[f"{name} learnt"] = tokens.decode([label for label in row["labels"] if label != -100])
print(json.dumps(found))
"""


def line(number: int, **more: Any) -> str:
    turns = [{"role": "user", "content": f"{number}? {'x' * 5000}"}, {"role": "assistant", "content": f"{number}."}]
    return json.dumps({"messages": turns, "id": number, "at": None, "meta": {"n": number}, **more}) + "\n"


def staged(path: pathlib.Path, folder: pathlib.Path) -> tuple[PlannedDataset, pathlib.Path]:
    planned = dataset.planned_dataset(dataset.check_file(path, "train", 4096))
    with staging.staged([planned], folder, folder) as places:
        return planned, places[planned.sha256]


def test_types_that_change_late_do_no_harm_and_what_is_masked_is_not_learnt(
    environment: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    early = "".join(line(number) for number in range(FIRST_CHUNK // 5000 + 100))
    late = {"id": "text", "at": "2026-01-01T00:00:00", "meta": [], "new": {"key": 1}, "tools": TOOLS, "messages": RICH}
    raw, small = tmp_path / "raw.jsonl", tmp_path / "small.jsonl"
    raw.write_text(early + json.dumps(late) + "\n")
    small.write_text(json.dumps({"messages": RICH}) + "\n")
    assert len(early) > FIRST_CHUNK
    planned, place = staged(raw, tmp_path)
    model = tmp_path / "model"
    variables = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    for command in (
        [str(ROOT / "roles/run/files/tiny_model.py"), str(model), str(staged(small, tmp_path)[1])],
        ["-c", PROGRAM, str(raw), str(place), str(model), str(tmp_path / "cache"), json.dumps(planned.entry)],
    ):
        done = subprocess.run(
            [str(environment), *command], env=variables, capture_output=True, text=True, timeout=CONVERGE
        )
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["raw"] == "DatasetGenerationError", "datasets takes it now; is all this still needed?"
    assert found["columns"] == {"messages": "string", "tools": "string"}
    assert found["rows"] == planned.examples
    assert found["first learnt"] == "0.<|im_end|>"
    assert '{"type": "function", "function": {"name": "ls", "description": "lists"' in found["last"]
    assert "a.txt" in found["last"]
    learnt = found["last learnt"]
    assert '{"name": "ls", "arguments": {"path": "/", "deep": 2}}\n</tool_call><|im_end|>' in learnt
    assert "Learnt it is.<|im_end|>" in learnt
    assert "Thought it is." in learnt
    assert learnt.endswith("Said it is.<|im_end|>")
    for words in ("Masked", "Be brief", "What is there", "a.txt", "And?"):
        assert words not in learnt
    assert "Masked by train." in found["last"]
