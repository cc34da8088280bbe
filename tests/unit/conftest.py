"""A controller with an account of RunPod in memory."""

from __future__ import annotations

import pytest


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """Its claims and pods, called directly."""
    from wire import Rig

    monkeypatch.setattr("os.fsync", lambda file: None)  # nobody cuts the power here, and disks may be slow
    return Rig(tmp_path)


@pytest.fixture
def desk(tmp_path, monkeypatch, capsys):
    """Its modules and its inventory plugin."""
    from wire import Desk

    monkeypatch.setattr("os.fsync", lambda file: None)
    return Desk(tmp_path, monkeypatch, capsys)
