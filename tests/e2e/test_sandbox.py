"""Nothing stays behind: not after Ctrl-C, not after SIGTERM, not after SIGKILL, and two checkouts test at once."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import sandbox

from .conftest import CONVERGE, ROOT, eventually

# A test that leaves all that tests can leave, says where it is, and hangs.
LEAVES = """
import os, pathlib, subprocess, sys, tempfile, time

def test_that_hangs():
    here = pathlib.Path(os.environ["LORA_FORGE_SANDBOX"])
    image = subprocess.check_output(["{root}/tests/hosts/image.sh"], text=True).strip()
    subprocess.run(["podman", "run", "--detach", "--quiet", "--name", here.name + "-left", image, "sleep", "3600"],
                   check=True, env={{**os.environ, "CONTAINERS_CONF": "{root}/tests/hosts/containers.conf"}})
    subprocess.run(["tmux", "new-session", "-d", "sleep 3600"], check=True)
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
    (pathlib.Path(tempfile.gettempdir()) / "file").touch()
    (pathlib.Path.home() / "file").touch()
    state = pathlib.Path("{root}/.hosts") / (here.name + "-gw0")
    (state / "disk").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tempfile.mkdtemp()])
    pathlib.Path("{said}").write_text(str(here))
    time.sleep(3600)
"""


def outside() -> dict[str, str]:
    """Return the environment of somebody who is in no sandbox."""
    return {name: value for name, value in os.environ.items() if name != "LORA_FORGE_SANDBOX"}


@contextlib.contextmanager
def hanging(home: pathlib.Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], pathlib.Path]]:
    """Start a pytest that hangs, as a user would; yield it, and the folder of its sandbox."""
    home.mkdir()
    said = home / "said"
    (home / "test_left.py").write_text(LEAVES.format(root=ROOT, said=said))
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", *options, str(home)],
        cwd=home,
        env=outside() | {"PYTHONPATH": str(ROOT / "tests")},
        # Whose SIGINT is ignored, as in a background job, has children that ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=(home / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        eventually(lambda: said.exists() or process.poll() is not None, "the test that hangs")
        assert process.poll() is None, (home / "log").read_text()
        yield process, pathlib.Path(said.read_text())
    finally:
        process.kill()
        process.wait()


def left(folder: pathlib.Path) -> list[object]:
    """List what is left of a sandbox."""
    here = [*folder.parent.glob(folder.name), *(ROOT / ".hosts").glob(f"{folder.name}*")]
    mounts = [line for line in pathlib.Path("/proc/mounts").read_text().splitlines() if f"{folder}/" in line]
    return [*here, *sandbox.inhabitants(folder), *sandbox.containers(folder), *mounts]


# The other three differ by how the signal comes, and end by the same code.
@pytest.mark.parametrize(
    ("how", "options"),
    [
        pytest.param(signal.SIGINT, (), id="interrupted, one process"),
        pytest.param(signal.SIGTERM, ("-n", "1"), id="ended, xdist"),
        pytest.param(signal.SIGKILL, ("-n", "1"), id="killed, xdist"),
        pytest.param(signal.SIGINT, ("-n", "1"), id="interrupted, xdist", marks=pytest.mark.soak),
        pytest.param(signal.SIGTERM, (), id="ended, one process", marks=pytest.mark.soak),
        pytest.param(signal.SIGKILL, (), id="killed, one process", marks=pytest.mark.soak),
    ],
)
def test_nothing_is_left(how: signal.Signals, options: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    with hanging(tmp_path / "tests", *options) as (process, folder):
        assert sandbox.inhabitants(folder)
        assert sandbox.containers(folder)
        process.send_signal(how)
        code = process.wait(CONVERGE)
        assert code != 0
        if how != signal.SIGKILL:  # they end when all is clean
            assert left(folder) == [], (tmp_path / "tests/log").read_text()
        eventually(lambda: not left(folder), lambda: f"{left(folder)} are left")


def test_two_at_once_and_one_ends(tmp_path: pathlib.Path) -> None:
    with hanging(tmp_path / "a") as (ended, its_folder), hanging(tmp_path / "b") as (_, other_folder):
        before = left(other_folder)
        ended.send_signal(signal.SIGTERM)
        assert ended.wait(CONVERGE) != 0
        assert left(its_folder) == []
        assert left(other_folder) == before
    eventually(lambda: not left(other_folder), "the other one goes")


def test_a_command_in_a_sandbox() -> None:
    command = [sys.executable, str(ROOT / "tests/sandbox.py"), "sh", "-c", "sleep 3600 & echo $HOME; exit 7"]
    done = subprocess.run(command, env=outside(), stdout=subprocess.PIPE, text=True, timeout=CONVERGE)
    assert done.returncode == 7
    folder = pathlib.Path(done.stdout.strip()).parent
    assert folder.name.startswith("lora-forge-")
    assert left(folder) == []
