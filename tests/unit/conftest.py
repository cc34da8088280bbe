"""A controller with an account of RunPod in memory; a clock that is set by hand; an agent's file."""

from __future__ import annotations

import types

import pytest


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
    from ansible.module_utils.lora_forge.trainer import base_model, logs, runs
    from wire import Clock

    made = Clock()
    still = types.SimpleNamespace(monotonic=made.now, time=made.now, sleep=made.sleep)
    for waiting in (logs, base_model, runs):
        monkeypatch.setattr(waiting, "time", still)
    for uptimes in (rundir, runs.rundir):
        monkeypatch.setattr(uptimes, "uptime", made.now)
    return made
