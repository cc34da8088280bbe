"""A controller with an account of RunPod in memory; a clock that is set by hand; an agent's file; a plan with data."""

from __future__ import annotations

import hashlib
import json
import pathlib
import types
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """Provide claims and pods of an account in memory, called directly."""
    from wire import Rig

    monkeypatch.setattr("os.fsync", lambda file: None)  # nobody cuts the power here, and disks may be slow
    return Rig(tmp_path)


@pytest.fixture
def desk(tmp_path, monkeypatch, capsys):
    """Provide the modules and the inventory plugin on an account in memory."""
    from wire import Desk

    monkeypatch.setattr("os.fsync", lambda file: None)
    return Desk(tmp_path, monkeypatch, capsys)


@pytest.fixture
def read(tmp_path):
    """Read a text as configs/agents/witness.yml."""
    from ansible.module_utils.lora_forge.planning.layers import read_layer

    def reader(text):
        path = tmp_path / "witness.yml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_layer(path, "configs/agents/witness.yml")

    return reader


@pytest.fixture
def clock(monkeypatch):
    """Set the time of what waits on a trainer, and of its heartbeats; it goes on only by sleeping."""
    import rundir
    from ansible.module_utils.lora_forge.trainer import base_model, launching, logs, runs, stopping
    from wire import Clock

    made = Clock()
    still = types.SimpleNamespace(monotonic=made.now, time=made.now, sleep=made.sleep)
    for waiting in (logs, base_model, runs, launching, stopping):
        monkeypatch.setattr(waiting, "time", still)
    for uptimes in (rundir, runs.rundir):
        monkeypatch.setattr(uptimes, "uptime", made.now)
    return made


@pytest.fixture
def data(tmp_path):
    """Write <agent>_<use>.jsonl with as many conversations of so many characters; the folder is its attribute."""

    def writer(agent: str = "witness", use: str = "train", count: int = 10, size: int = 14_000) -> pathlib.Path:
        path = tmp_path / "data" / f"{agent}_{use}.jsonl"
        path.parent.mkdir(exist_ok=True)
        turns = [[("human", f"{agent} {use} {n}"), ("gpt", "a" * size)] for n in range(count)]
        rows = [{"conversations": [{"from": who, "value": text} for who, text in pair]} for pair in turns]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    writer.folder = tmp_path / "data"
    return writer


@pytest.fixture
def make(tmp_path, data):
    """plan.make over the real configs, one trainer «here» unless said otherwise."""
    from ansible.module_utils.lora_forge.planning import plan
    from ansible.module_utils.lora_forge.planning.fleet import Trainer

    def maker(wanted: Any = "witness", trainers=None, recipe=None, **options: Any):
        if trainers is None:
            trainers = [Trainer("here", datasets_dir=str(data.folder))]
        return plan.make(ROOT, tmp_path / "output", wanted, trainers, recipe or {}, **options)

    return maker


@pytest.fixture
def note(tmp_path):
    """Write a placement."""

    def writer(run_id: str, trainer: str = "here", **values: Any) -> None:
        path = tmp_path / "output/runs" / f"{run_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"trainer": trainer, **values}))

    return writer


@pytest.fixture
def deliver(tmp_path):
    """Put a verified adapter there."""

    def writer(run_id: str) -> pathlib.Path:
        folder = tmp_path / "output/adapters/witness" / run_id
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"12345")
        row = {"path": "weights", "bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
        (folder / "manifest.json").write_text(json.dumps({"verdict": "verified", "files": [row]}))
        return folder

    return writer


@pytest.fixture
def run_id(make, data):
    """Plan the witness with ten conversations; its run_id."""
    data()
    [run] = make().runs
    return run.run_id
