"""The trainer's environment: which Python, which builds of torch, and what becomes of it where they cannot be had."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import pytest
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import cpython, environment, stale_environments
from wire import load

PYTHON = "/usr/bin/python3.13"
# What uv 0.11 says, without a network and with a folder of wheels that lacks this one.
NO_NETWORK = """error: Request failed after 3 retries in 6.9s
  cause: Failed to fetch: https://download.pytorch.org/whl/cpu/torch/
  cause: failed to lookup address information: Name or service not known"""
NO_WHEEL = """error: No solution found when resolving dependencies
  cause: Because there is no version of torch==2.14.1+cpu and you require torch==2.14.1+cpu, we can conclude that …"""
# And with a wheel for CPython 3.11 alone.
NO_ABI = """error: No solution found when resolving dependencies
  cause: Because torch==2.14.1+cpu has no wheels with a matching Python ABI tag (e.g., `cp313`) and you require …"""
UV = """#!/bin/sh
case "$*" in
*install\\ --offline*) [ -e "$0.torch" ] && echo "Would install 1 package" && exit; exit 2 ;;
*--offline*) [ -e "$0.cached" ] || exit 2 ;;
esac
echo "$* ${UV_FIND_LINKS:+with wheels} ${UV_PYTHON_INSTALL_DIR:+into $UV_PYTHON_INSTALL_DIR}" >>"$0.calls"
for last; do :; done
case "$1" in
cache) dirname "$0" ;;
venv) mkdir -p "$last/bin"; touch "$last/bin/python" ;;
pip)
  [ -e "$0.$(basename "$last")" ] && { cat "$0.$(basename "$last")"; exit 2; } ;;
esac
exit 0
"""


class Desk:
    """A trainer's root with two locks, and a uv that notes its calls."""

    def __init__(self, home: pathlib.Path):
        self.root, self.uv = home / "root", home / "uv"
        self.cpu, self.cuda = home / "trainer-cpu.txt", home / "trainer-cuda.txt"
        self.cpu.write_text("a==1 \\\n    --hash=sha256:0\ntorch==2+cpu \\\n    --hash=sha256:1\ntorchvision==2+cpu\n")
        self.cuda.write_text("a==1 \\\n    --hash=sha256:0\ntorch==2 \\\n    --hash=sha256:2\n")
        self.uv.write_text(UV)
        self.uv.chmod(0o755)

    def fails(self, lock: pathlib.Path, says: str) -> None:
        self.uv.with_name(f"uv.{lock.name}").write_text(says)

    def ensure(self, instead: pathlib.Path | None = None, python: str = PYTHON) -> bool:
        return environment.ensure(self.root / "env", self.cpu, str(self.uv), python, "cpu", instead)

    def cached(self, what: str = "cached") -> None:
        """Let uv's cache have everything, or else torch."""
        self.uv.with_name(f"uv.{what}").touch()

    @property
    def home(self) -> pathlib.Path:
        return self.root / "env" / environment.environment_name(self.cpu)

    @property
    def calls(self) -> list[str]:
        """What was done, without what only asks."""
        lines = [" ".join(line.split()) for line in self.uv.with_name("uv.calls").read_text().splitlines()]
        return [line for line in lines if not line.startswith("cache")]


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.delenv(name, raising=False)
    return Desk(tmp_path)


def test_it_is_made_once_and_named_by_its_lock(desk):
    assert [desk.ensure(desk.cuda), desk.ensure(desk.cuda)] == [True, False]
    assert desk.home.name.startswith("trainer-cpu-")
    assert environment.built_from(desk.home, [desk.cpu, desk.cuda]) == desk.cpu
    venv, sync = desk.calls
    assert venv == f"venv --quiet --python {PYTHON} {desk.home}"
    assert sync == f"pip sync --verify-hashes --python {desk.home}/bin/python --torch-backend cpu --quiet {desk.cpu}"


@pytest.mark.parametrize("says", [NO_NETWORK, NO_WHEEL, NO_ABI])
def test_where_torch_for_cpus_cannot_be_had_cudas_takes_its_place(desk, says):
    desk.fails(desk.cpu, says)
    assert [desk.ensure(desk.cuda), desk.ensure(desk.cuda)] == [True, False]
    other = desk.root / "env" / environment.environment_name(desk.cuda)
    assert desk.home.resolve() == other
    assert environment.is_complete(desk.home)
    assert environment.built_from(desk.home, [desk.cpu, desk.cuda]) == desk.cuda
    assert desk.calls[2:] == [
        f"venv --quiet --python {PYTHON} {other}",
        f"pip sync --require-hashes --python {other}/bin/python --quiet {desk.cuda}",
    ]


def test_the_other_one_is_not_made_twice(desk):
    environment.ensure(desk.root / "env", desk.cuda, str(desk.uv), PYTHON, "")
    desk.fails(desk.cpu, NO_NETWORK)
    assert desk.ensure(desk.cuda)
    assert sum("trainer-cuda" in call for call in desk.calls) == 2, desk.calls
    assert environment.is_complete(desk.home)


def test_a_link_to_an_environment_that_is_gone_is_made_anew(desk):
    desk.fails(desk.cpu, NO_NETWORK)
    desk.ensure(desk.cuda)
    (desk.home.resolve() / environment.COMPLETE).unlink()
    assert environment.built_from(desk.home, [desk.cpu, desk.cuda]) is None
    assert desk.ensure(desk.cuda)
    assert environment.is_complete(desk.home)


def test_nothing_takes_the_place_of_what_fails_otherwise(desk):
    desk.fails(desk.cpu, "error: Failed to download `numpy==2.3.5`: connection reset")
    with pytest.raises(UserError, match=r"packages of trainer-cpu\.txt could not be installed.*numpy"):
        desk.ensure(desk.cuda)
    assert not environment.is_complete(desk.home)
    assert not (desk.root / "env" / environment.environment_name(desk.cuda)).exists()
    desk.fails(desk.cpu, NO_NETWORK)
    with pytest.raises(environment.TorchUnreachableError, match="Name or service not known"):
        desk.ensure()


def test_a_folder_of_wheels_is_asked_before_pytorchs_index(desk, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    assert desk.ensure(desk.cuda)
    assert "--torch-backend" not in desk.calls[-1]
    assert desk.calls[-1].endswith("with wheels")


def test_what_the_folder_lacks_comes_from_the_index(desk, monkeypatch):
    monkeypatch.setenv("UV_FIND_LINKS", "/wheels")
    once = 'rm "$0.$(basename "$last")"; exit 2; } ;;'
    desk.uv.write_text(desk.uv.read_text().replace("exit 2; } ;;", once))
    desk.fails(desk.cpu, NO_WHEEL)
    assert desk.ensure(desk.cuda)
    assert environment.built_from(desk.home, [desk.cpu, desk.cuda]) == desk.cpu
    assert ["--torch-backend" in call for call in desk.calls if call.startswith("pip")] == [False, True]


def test_what_is_in_the_cache_is_installed_without_a_network(desk):
    desk.cached()
    assert desk.ensure()
    assert [call for call in desk.calls if call.startswith("pip")] == [
        f"pip sync --verify-hashes --python {desk.home}/bin/python --torch-backend cpu --offline --quiet {desk.cpu}"
    ]


def test_a_disk_that_fills_up_is_named(desk):
    desk.fails(desk.cpu, "error: failed to write: No space left on device (os error 28)")
    with pytest.raises(UserError, match="the disk is full"):
        desk.ensure(desk.cuda)


def test_a_quota_that_is_used_up_is_named_and_where_the_cache_may_go(desk):
    desk.fails(desk.cpu, "error: Failed to copy /home/ann/.cache/uv/x: Disk quota exceeded (os error 122)")
    with pytest.raises(UserError, match=r"the disk quota of this user is used up.*UV_CACHE_DIR.*quota exceeded"):
        desk.ensure(desk.cuda)


# What uv 0.13 says of a file system without locks.
UNLOCKED = """error: Failed to download `numpy==2.3.5`
  cause: Could not acquire lock for `/home/ann/.cache/uv/wheels-v8/pypi/numpy/x.lock` at `wheels-v8/pypi/numpy/x.lock`
  cause: failed to lock `/home/ann/.cache/uv/wheels-v8/pypi/numpy/x.lock`: {} (os error {})"""


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_cache_that_cannot_be_locked_is_named_and_where_it_may_go(desk, number):
    desk.fails(desk.cpu, UNLOCKED.format(os.strerror(number), number))
    with pytest.raises(UserError) as told:
        desk.ensure(desk.cuda)
    assert str(told.value).startswith(
        "uv has to lock /home/ann/.cache/uv/wheels-v8/pypi/numpy/x.lock, and its file system has no locks (flock);"
    )
    assert "export UV_CACHE_DIR=…" in str(told.value)
    assert not environment.is_complete(desk.home)


def test_where_the_root_cannot_be_locked_the_interpreter_comes_into_uvs_own_folder(desk):
    said = UNLOCKED.format(os.strerror(errno.ENOSYS), errno.ENOSYS)
    desk.uv.with_name("uv.says").write_text(said)
    refused = 'venv) [ "$UV_PYTHON_INSTALL_DIR" ] && { cat "$0.says"; exit 2; }; '
    desk.uv.write_text(desk.uv.read_text().replace("venv) ", refused))
    assert desk.ensure(python="3.12")
    into_root, into_home = (call for call in desk.calls if call.startswith("venv"))
    assert into_root.endswith(f"into {desk.root}/python")
    assert into_home == f"venv --quiet --managed-python --python 3.12 {desk.home}"


def test_a_disk_that_is_too_full_is_told_before_anything_is_installed(desk, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2_000_000_000))
    with pytest.raises(UserError, match=r"trainer-cpu\.txt takes about 3\.7 GB, and the disk of .* has 2\.0 GB left"):
        desk.ensure(desk.cuda)
    assert [call.split()[0] for call in desk.calls] == ["venv"]
    assert not environment.is_complete(desk.home)
    # Where torch is there, in uv's cache or from a build that was cut off, the rest may find room.
    desk.cached("torch")
    assert desk.ensure(desk.cuda)
    desk.uv.with_name("uv.torch").unlink()
    desk.home.joinpath(environment.COMPLETE).unlink()
    with pytest.raises(UserError, match=r"uv cache clean"):
        desk.ensure(desk.cuda)
    (desk.home / "lib/python3.13/site-packages/torch-2.dist-info").mkdir(parents=True)
    environment.sync(desk.home, desk.cpu, str(desk.uv), "cpu")


def test_a_cache_on_another_disk_needs_room_of_its_own(desk, monkeypatch, tmp_path):
    asked = []

    def usage(path: pathlib.Path) -> types.SimpleNamespace:
        asked.append(path)
        return types.SimpleNamespace(free=4e9 if path == desk.home else 1e9)

    stat = os.stat
    other = lambda path: types.SimpleNamespace(st_dev=-1) if path == tmp_path else stat(path)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(environment.os, "stat", lambda path, **how: other(path) if not how else stat(path, **how))
    with pytest.raises(UserError, match=f"disk of {tmp_path} has 1.0 GB left.*set UV_CACHE_DIR"):
        desk.ensure(desk.cuda)
    assert asked == [desk.home, tmp_path]


def test_uv_fetches_into_the_trainers_root_and_tells_why_it_could_not(desk, monkeypatch):
    assert desk.ensure(python="3.12")
    assert desk.calls[0] == f"venv --quiet --managed-python --python 3.12 {desk.home} into {desk.root}/python"
    desk.home.joinpath(environment.COMPLETE).unlink()
    desk.uv.write_text("#!/bin/sh\necho 'error: Failed to fetch https://mirror/cpython: 403'\nexit 2\n")
    with pytest.raises(UserError, match=r"could not fetch it \(UV_PYTHON_INSTALL_MIRROR .*403"):
        desk.ensure(python="3.12")


def test_which_interpreter(desk, monkeypatch):
    found = cpython.Interpreter("3.13.5", PYTHON)
    monkeypatch.setattr(cpython, "find_interpreter", lambda versions, *_: found if "3.13" in versions else None)
    monkeypatch.setattr(cpython, "probe", lambda path, versions: found if path == PYTHON else None)
    assert environment.interpreter("", False, desk.root) == PYTHON
    assert environment.interpreter("3.13", True, desk.root) == PYTHON
    assert environment.interpreter(PYTHON, False, desk.root) == PYTHON
    assert environment.interpreter("3.14", True, desk.root) == "3.14"
    with pytest.raises(UserError, match=r"no CPython 3\.14 was found \(on PATH.*trainer_python_download=true"):
        environment.interpreter("3.14", False, desk.root)
    with pytest.raises(UserError, match=r"is /opt/none, which is no CPython 3\.12 to 3\.14 here"):
        environment.interpreter("/opt/none", True, desk.root)
    for version in ("3.11", "3.13.5", "python3.13"):
        with pytest.raises(UserError, match=r"it is a path, or a version of CPython 3\.12 to 3\.14, such as 3\.13"):
            environment.interpreter(version, True, desk.root)
    monkeypatch.setattr(cpython, "find_interpreter", lambda *_: None)
    assert environment.interpreter("", True, desk.root) == "3.12"
    with pytest.raises(UserError, match=r"no CPython 3\.12 to 3\.14 was found"):
        environment.interpreter("", False, desk.root)


def test_the_locks_say_what_is_not_hashed_and_differ_in_torch_alone():
    requirements = pathlib.Path(__file__).resolve().parents[2] / "requirements"
    cpu, cuda = requirements / "trainer-cpu.txt", requirements / "trainer-cuda.txt"
    assert environment.unhashed_requirements(cuda) == []
    assert environment.unhashed_requirements(cpu) == ["torchvision"]
    lines = [set(re.findall(r"^[A-Za-z0-9][\w.-]*==[^ \n]+", lock.read_text(), re.MULTILINE)) for lock in (cpu, cuda)]
    more = {line.partition("==")[0] for line in lines[1] - lines[0] if not re.match("nvidia-|cuda-", line)}
    assert {line.partition("==")[0] for line in lines[0] - lines[1]} == more == {"torch", "torchvision"}
    assert cpu.read_text().split("\n", 1)[1] == load("requirements/make_cpu_lock").cpu_lock(
        cuda.read_text(), (requirements / "trainer-cpu.in").read_text()
    )


def test_the_cpu_lock_is_of_the_version_of_the_cuda_lock():
    cpu_lock = load("requirements/make_cpu_lock").cpu_lock
    assert cpu_lock("a==1\ntorch==2.1\n", "torch==2.1+cpu\n") == "a==1\ntorch==2.1+cpu\n"
    with pytest.raises(SystemExit, match="torch: the CUDA lock has another version"):
        cpu_lock("a==1\ntorch==2.2 ; sys_platform == 'linux' \\\n", "torch==2.1+cpu\n")


# --- environments that no lock names


def test_what_no_lock_names_is_found_with_its_size_and_removed(desk):
    desk.ensure(desk.cuda)
    old = desk.root / "env/0123456789abcdef"
    (old / "lib").mkdir(parents=True)
    (old / "lib/weights").write_bytes(bytes(1 << 20))
    (desk.root / "env/notes").mkdir()
    keep = [environment.environment_name(desk.cpu), environment.environment_name(desk.cuda)]
    [found] = stale_environments.unnamed_environments(desk.root, keep)
    assert (found["name"], found["used_by"]) == ("0123456789abcdef", "")
    assert found["bytes"] >= 1 << 20
    assert stale_environments.remove(desk.root, pathlib.Path(found["path"]))
    assert sorted(path.name for path in (desk.root / "env").iterdir() if path.is_dir()) == sorted([keep[0], "notes"])
    assert stale_environments.unnamed_environments(desk.root, keep) == []
    assert stale_environments.unnamed_environments(desk.root / "nowhere", keep) == []


def test_a_link_and_what_it_leads_to_stay_or_go_together(desk):
    desk.fails(desk.cpu, NO_NETWORK)
    desk.ensure(desk.cuda)
    assert stale_environments.unnamed_environments(desk.root, [environment.environment_name(desk.cpu)]) == []
    names = {environment.environment_name(desk.cpu), environment.environment_name(desk.cuda)}
    found = stale_environments.unnamed_environments(desk.root, [])
    assert {one["name"] for one in found} == names
    for one in found:
        assert stale_environments.remove(desk.root, pathlib.Path(one["path"]))
    assert not [path for path in (desk.root / "env").iterdir() if path.name in names]


def test_one_that_a_process_runs_in_is_used(desk):
    desk.ensure(desk.cuda)
    python = desk.home / "bin/python"
    python.unlink()
    python.symlink_to(sys.executable)
    command = [str(python), "-c", "print('here', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"here\n"
        [found] = stale_environments.unnamed_environments(desk.root, [])
        assert found["used_by"] == f"process {process.pid}"
        process.communicate(b"\n")
    [found] = stale_environments.unnamed_environments(desk.root, [])
    assert found["used_by"] == ""


@pytest.mark.parametrize(
    ("status", "used"),
    [
        ({}, True),  # it waits for its first start
        ({"state": "running", "launch": "2"}, True),
        ({"state": "finished", "launch": "2"}, False),
        ({"state": "stopped", "launch": "2", "reason": {"kind": "stopped"}}, False),
        ({"state": "stopped", "launch": "2", "reason": {"kind": "requeued"}}, True),  # Slurm has its job start again
        ({"state": "stopped", "launch": "1", "reason": {"kind": "stopped"}}, True),  # launched again since, and waits
        ({"state": "failed", "launch": "1"}, True),
    ],
)
def test_one_that_a_run_needs_is_used_as_long_as_it_is_not_over(desk, status, used):
    desk.ensure(desk.cuda)
    run_dir = desk.root / "runs/witness-1"
    run_dir.mkdir(parents=True)
    rundir.write_json(
        run_dir / "run.json", {"launch": "2", "command": [str(desk.home / "bin/python"), "-m", "axolotl"]}
    )
    rundir.write_json(run_dir / "status.json", status)
    [found] = stale_environments.unnamed_environments(desk.root, [])
    assert found["used_by"] == ("run witness-1" if used else "")
    assert stale_environments.remove(desk.root, desk.home) is not used


def test_one_that_is_being_built_is_used(desk):
    desk.ensure(desk.cuda)
    with (desk.root / "env" / f"{desk.home.name}.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        [found] = stale_environments.unnamed_environments(desk.root, [])
        assert not stale_environments.remove(desk.root, desk.home)
    assert found["used_by"] == "a build that goes on"
    assert environment.is_complete(desk.home)


@pytest.mark.parametrize(("state", "kept"), [("queued", True), ("running", True), ("", True), ("finished", False)])
def test_one_that_a_run_is_to_train_by_is_used(desk, state, kept):
    """A queued run has no process of the environment yet, and a pod's is on another machine."""
    desk.ensure(desk.cuda)
    run = desk.root / "runs/mayor-0"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"command": [f"{desk.home}/bin/python", "-m", "axolotl.cli.train"]}))
    (run / "status.json").write_text(json.dumps({"state": state}))
    [found] = stale_environments.unnamed_environments(desk.root, [])
    assert found["used_by"] == ("run mayor-0" if kept else "")
    assert stale_environments.remove(desk.root, desk.home) is not kept
    assert desk.home.exists() is kept


def test_what_uvs_cache_has_too_is_told(desk):
    desk.ensure(desk.cuda)
    for name in ("own", "linked"):
        (desk.home / name).write_bytes(bytes(1 << 20))
    (desk.root / "cache").hardlink_to(desk.home / "linked")
    [found] = stale_environments.unnamed_environments(desk.root, [])
    assert found["shared"] == 1 << 20
    assert 1 << 20 <= found["bytes"] - found["shared"] < 2 << 20


def test_the_image_has_the_one_that_takes_the_place(desk, monkeypatch, tmp_path):
    baked = tmp_path / "image/env" / environment.environment_name(desk.cuda)
    (baked / "bin").mkdir(parents=True)
    for name in ("bin/python", environment.COMPLETE):
        (baked / name).touch()
    monkeypatch.setattr(environment.adopt, "__defaults__", (tmp_path / "image",))
    desk.fails(desk.cpu, NO_NETWORK)
    assert desk.ensure(desk.cuda)
    assert desk.home.resolve() == baked
    assert not [call for call in desk.calls if "trainer-cuda" in call]


STALE = {"name": "trainer-cuda-1", "bytes": 7_100_000_000, "shared": 7_000_400_000, "used_by": "", "removed": False}


@pytest.mark.parametrize(
    ("changes", "remove", "check", "fate", "line"),
    [
        ({}, False, False, "", "no lock of this checkout names these; -e trainer_prune=true removes them"),
        ({"used_by": "process 7"}, False, False, "used by process 7",
         "no lock of this checkout names these; -e trainer_prune=true removes them"),
        ({"removed": True}, True, False, "removed",
         "100.0 MB freed; what uv has in its cache stays there, until uv cache clean"),
        ({"removed": True}, True, True, "",
         "100.0 MB would be freed; what uv has in its cache stays there, until uv cache clean"),
    ],
)  # fmt: skip
def test_what_is_shown_of_environments_that_no_lock_names(changes, remove, check, fate, line):
    assert stale_environments.prune_table("gpu-1", [{**STALE, **changes}], 100_000_000, remove, check) == {
        "columns": ["environment", "MB", "in uv's cache too", ""],
        "rows": [["trainer-cuda-1", 7100, 7000, fate]],
        "lines": [f"  gpu-1: {line}"],
    }


def test_nothing_is_shown_where_every_environment_is_named():
    assert stale_environments.prune_table("gpu-1", [], 0, True, False) == {}
