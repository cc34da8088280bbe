"""What an honest trainer keeps from its other users, and from the training itself."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest
from hostile import Played, Stage
from lab import eventually

TOKEN = "hf_the-users-own-token"


@pytest.fixture(scope="module")
def launched(stage: Stage) -> Played:
    stage.host("host", "witness")
    stage.model("host", "witness")
    played = stage.play("playbooks/launch.yml", "-e", "role=witness", HF_TOKEN=TOKEN, HUGGING_FACE_HUB_TOKEN=TOKEN)
    assert (played.ended, played.code) == (True, 0), played.text
    return played


@pytest.fixture(scope="module")
def run_dir(stage: Stage, launched: Played) -> pathlib.Path:
    """Wait until the run has ended, which its stand-in for Axolotl does at once."""
    [found] = (stage.root("host") / "runs").iterdir()
    eventually(lambda: '"failed"' in (found / "status.json").read_text())
    return found


def open_to_others(folder: pathlib.Path) -> list[str]:
    """List what others can read or change below a folder, as far as they get that far."""
    found = []
    for top, names, files in os.walk(folder):
        for name in (*names, *files):
            path = os.path.join(top, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode) and mode & 0o077:
                found.append(os.path.relpath(path, folder))
            elif stat.S_ISDIR(mode):
                continue
        names[:] = [name for name in names if os.stat(os.path.join(top, name)).st_mode & 0o011]
    return found


def test_nobody_else_reads_a_run(run_dir: pathlib.Path) -> None:
    """Recipes, logs and figures: whoever shares the host has no business with them."""
    closed = [path for path in (run_dir.parent, run_dir) if not stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert closed or open_to_others(run_dir) == []


def test_nobody_else_reads_the_data(stage: Stage, run_dir: pathlib.Path) -> None:
    root = stage.root("host")
    closed = [path for path in (root / "datasets", *(root / "datasets").iterdir()) if not path.stat().st_mode & 0o077]
    assert closed or open_to_others(root / "datasets") == []


def test_nobody_else_writes_anywhere(stage: Stage, run_dir: pathlib.Path) -> None:
    root = stage.root("host")
    writable = [path for path in root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert [str(path.relative_to(root)) for path in writable] == []


def test_the_training_does_not_get_the_hubs_token(run_dir: pathlib.Path) -> None:
    """A base model was fetched before; whatever runs in a training has no use for it."""
    environment = (run_dir / "training-environment.txt").read_text()
    assert "HF_HUB_OFFLINE=1" in environment
    assert TOKEN not in environment


def test_no_token_lies_about(stage: Stage, launched: Played, run_dir: pathlib.Path) -> None:
    assert TOKEN not in launched.text
    places = [stage.folder / "hosts/host/root/runs", stage.output, stage.folder / "calls"]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path


def test_what_a_training_writes_is_its_users_alone(run_dir: pathlib.Path) -> None:
    assert (run_dir / "training-environment.txt").read_text().splitlines()[-1] == "0077"
