"""The rooms of module_utils/lora_forge: import-linter sees the project's files, and an import that points up."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def lint(checkout: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run what ``make lint-imports`` runs, over another checkout."""
    return subprocess.run(
        [pathlib.Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=checkout,
        env={"PYTHONPATH": "tests/imports", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(ROOT / "module_utils", tmp_path / "module_utils", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests/imports", tmp_path / "tests/imports", symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_point_down(checkout: pathlib.Path) -> None:
    done = lint(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "imports point down KEPT" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("file", "imported"),
    [("trainer/runs", "planning.plan"), ("text", "agents"), ("planning/launch", "controller.retry")],
)
def test_one_that_points_up_or_aside_fails(checkout: pathlib.Path, file: str, imported: str) -> None:
    path = checkout / f"module_utils/lora_forge/{file}.py"
    room, _, name = f"ansible.module_utils.lora_forge.{imported}".rpartition(".")
    path.write_text(f"{path.read_text()}\n\ndef late():\n    from {room} import {name}\n\n    return {name}\n")
    done = lint(checkout)
    assert done.returncode == 1
    assert f"lora_forge.{file.replace('/', '.')} -> ansible.module_utils.lora_forge.{imported}" in " ".join(
        done.stdout.split()
    )


def test_a_room_that_is_in_no_contract_fails(checkout: pathlib.Path) -> None:
    (checkout / "module_utils/lora_forge/attic").mkdir()
    (checkout / "module_utils/lora_forge/attic/__init__.py").write_text("")
    done = lint(checkout)
    assert done.returncode == 1
    assert "attic" in done.stdout + done.stderr
