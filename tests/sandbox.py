#!/usr/bin/env python3
"""A place of its own for a run of tests, of which nothing is left afterwards, however they ended.

    sandbox.py COMMAND…    runs a command in one; pytest makes one for itself (tests/conftest.py)

Its folder is /tmp/lora-forge-<port>. Who makes that folder has the PORTS ports from <port> on, so that checkouts of one
machine can test at once. In it lie the tests' home and temporary files. What they start is known by the folder in its
environment (LORA_FORGE_SANDBOX), their containers by its name, with which theirs begin. A janitor, a process that
outlives the tests by as much as it needs, ends and removes all of that when the pipe from them closes, which it also
does when they are killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASE = pathlib.Path("/tmp")  # the same for all checkouts, and short: sockets lie below it
NAME = "lora-forge"
PORTS = 64
RANGE = range(20_000, 32_000, PORTS)  # below those that the kernel gives to outgoing connections
PATIENCE = 120  # seconds for the janitor's work
UNITS = pathlib.Path("/etc/systemd/system")
# A user's own, which tests must not act on, and what would lead around the home.
FOREIGN = ("WANDB_", "HF_", "RUNPOD_", "XDG_", "LORA_FORGE_PODS", "LORA_FORGE_OWNER", "TMUX", "ANSIBLE_VAULT")


def name() -> str:
    """With what the names of containers begin, in a sandbox or outside."""
    return pathlib.PurePath(os.environ.get("LORA_FORGE_SANDBOX", NAME)).name


def port(offset: int) -> int:
    """A port of this sandbox, or of everybody outside one.

    Args:
        offset: 0 is the simulated RunPod's, 1 to 9 are those of tests/hosts, 10 and more those of fleets.
    """
    return int(os.environ.get("LORA_FORGE_PORT", "22200")) + offset


def hosts_state() -> pathlib.Path:
    """Where test hosts have their keys and disks: in the checkout, as uv links files on one file system only."""
    return ROOT / ".hosts" / name()


class Sandbox:
    """Makes a sandbox and enters it: what this process starts from now on is in it.

    Raises:
        OSError: There is no room for one.
    """

    def __init__(self) -> None:
        self.folder, lock = claim()
        # Before the environment changes: the janitor must not find itself.
        self.janitor = subprocess.Popen(
            [sys.executable, __file__, "--clean", str(self.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, pass_fds=[lock], start_new_session=True, cwd="/", text=True,
        )  # fmt: skip
        os.close(lock)
        os.environ.update(environment(self.folder))
        for variable in [variable for variable in os.environ if variable.startswith(FOREIGN)]:
            del os.environ[variable]
        tempfile.tempdir = None  # it is remembered, where somebody asked already

    def close(self) -> str:
        """Wait until nothing is left; returns what is left all the same, in words."""
        try:
            return self.janitor.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            return f"{self.folder} is not clean after {PATIENCE} s\n"


def claim() -> tuple[pathlib.Path, int]:
    """Make a sandbox's folder; returns it, and the descriptor of the lock that shows that somebody uses it."""
    for first in random.sample(RANGE, len(RANGE)):
        folder = BASE / f"{NAME}-{first}"
        try:
            folder.mkdir(mode=0o711)  # others pass through: apt's own user, to what mmdebstrap makes
        except FileExistsError:
            if not abandoned(folder):
                continue
            clean(folder)
            folder.mkdir(mode=0o711)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all(map(free, range(first, first + PORTS))):
            for part in ("home", "tmp"):
                (folder / part).mkdir(mode=0o711)
            return folder, lock
        os.close(lock)
        shutil.rmtree(folder)
    raise OSError(f"there is no room for a sandbox: {BASE}/{NAME}-* are all in use")


def abandoned(folder: pathlib.Path) -> bool:
    """Whether a sandbox of ours is left of tests whose janitor was killed, too. It is nothing that others put there."""
    try:
        if folder.is_symlink() or folder.lstat().st_uid != os.geteuid():
            return False
        with (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is in use, or just being made
        return False
    return True


def free(number: int) -> bool:
    """Whether nobody listens at a port of this machine."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", number))
        except OSError:
            return False
    return True


def environment(folder: pathlib.Path) -> dict[str, str]:
    """The variables of a sandbox's processes."""
    home = pathlib.Path.home()
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return {
        "LORA_FORGE_SANDBOX": str(folder),
        "LORA_FORGE_PORT": folder.name.rpartition("-")[2],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "TMUX_TMPDIR": str(folder / "tmp"),
        # Made to be shared, and gigabytes of downloads.
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR") or str(caches / "uv"),
    }


def inhabitants(folder: pathlib.Path) -> list[int]:
    """The processes that have a sandbox's folder in their environment."""
    sign, found = f"LORA_FORGE_SANDBOX={folder}\0".encode(), []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if sign in path.read_bytes() + b"\0":
                found.append(int(path.parts[2]))
    return found


def containers(folder: pathlib.Path) -> list[str]:
    """The containers whose names begin with a sandbox's; only root's are made here."""
    if os.geteuid() != 0 or shutil.which("podman") is None:
        return []
    listed = ["podman", "ps", "--all", "--quiet", "--filter", f"name=^{folder.name}-"]
    return subprocess.run(listed, stdout=subprocess.PIPE, text=True, check=False).stdout.split()


def remove_units(folder: pathlib.Path) -> None:
    """Stop and remove systemd's units that run something in a sandbox, where this machine has systemd."""
    for unit in UNITS.glob(f"{NAME}-*.service"):
        if f"{folder}/" in unit.read_text():
            subprocess.run(["systemctl", "disable", "--now", unit.name], capture_output=True, check=False)
            unit.unlink(missing_ok=True)


def unmount(folder: pathlib.Path) -> None:
    """Unmount what tests have mounted in a sandbox."""
    places = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for place in reversed(places):
        if place.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)


def clean(folder: pathlib.Path) -> str:
    """End and remove all that there is of a sandbox; returns what is left all the same, in words."""
    deadline = time.monotonic() + PATIENCE / 2
    remove_units(folder)
    for server in (folder / "tmp").glob("tmux-*/*"):  # its server writes its title over its environment
        subprocess.run(["tmux", "-S", str(server), "kill-server"], capture_output=True, check=False)
    while True:  # whoever is not killed yet may start the next one
        if left := containers(folder):
            subprocess.run(["podman", "rm", "--force", "--ignore", "--time", "0", *left], capture_output=True)
        there = inhabitants(folder)
        for pid in there:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left and not there:
            break
        if time.monotonic() > deadline:
            return f"{folder}: processes {there} and containers {left} are left\n"
        time.sleep(0.05)
    unmount(folder)
    shutil.rmtree(ROOT / ".hosts" / folder.name, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    return f"{folder} could not be removed\n" if folder.exists() else ""


def run(command: list[str]) -> int:
    """Run a command in a sandbox; returns its exit code."""
    sandbox = Sandbox()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        sys.stderr.write(sandbox.close())


if __name__ == "__main__":
    if sys.argv[1] == "--clean":
        sys.stdin.read()  # until the tests are over
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(clean(pathlib.Path(sys.argv[2])))
    else:
        sys.exit(run(sys.argv[1:]))
