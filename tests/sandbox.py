#!/usr/bin/env python3
"""A place of its own for a run of tests, of which nothing is left afterwards, however they ended.

    sandbox.py COMMAND…    runs a command in one; pytest makes one for itself (tests/conftest.py)

Its folder is /tmp/lora-forge-<port>: making it claims the PORTS ports from <port> on, so that several checkouts can
test at once. Home and temporary files lie in it. Whatever tests start is known by the folder in its environment
(LORA_FORGE_SANDBOX); the names of their containers begin with the folder's name. A janitor, a process of its own, waits
for the end of the pipe that leads to it from the tests, which comes even when they are killed, and then ends and
removes all of that. LORA_FORGE_KEEP=1 keeps the files until the next run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Optional

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASE = pathlib.Path("/tmp")  # the same for all checkouts, and short: sockets lie below it
NAME = "lora-forge"
PORTS = 100
SHARE = 20  # of them for each process of xdist
RANGE = range(20_000, 32_000, PORTS)  # below those that the kernel gives to outgoing connections
PATIENCE = 120  # seconds for the janitor's work
UNITS = pathlib.Path("/etc/systemd/system")
# What is a user's own, and no test may act on or report to, or what leads past the sandbox's home …
FOREIGN = re.compile(
    "(ANSIBLE|HF|HUGGING|WANDB|XDG|TMUX)(_|$)|SSH_AUTH_SOCK$|RUNPOD_API|LORA_FORGE_(PODS|OWNER|NOTIFY|PORT)"
)
# … but for the address of a mirror.
WANTED = ("HF_ENDPOINT",)


def name() -> str:
    """Return the prefix of the names of this process's containers; tests/hosts/inventory.yml says the same."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return pathlib.PurePath(os.environ.get("LORA_FORGE_SANDBOX", NAME)).name + (f"-{worker}" if worker else "")


def port(offset: int) -> int:
    """Return a port of this process's; outside of a sandbox, one that is always the same.

    Args:
        offset: 0 is the simulated RunPod's, 1 to 9 are those of tests/hosts, 10 and more those of fleets.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    return int(os.environ.get("LORA_FORGE_PORT", "22200")) + worker * SHARE + offset


def hosts_state() -> pathlib.Path:
    """Return where test hosts have their keys and disks: in the checkout, whose disk has room for them."""
    return ROOT / ".hosts" / name()


class Sandbox:
    """Makes a sandbox and enters it: what this process starts from now on is in it.

    Raises:
        OSError: There is no room for one.
    """

    def __init__(self) -> None:
        self.folder, lock = claim()
        self.before = dict(os.environ)
        outside = {name: value for name, value in self.before.items() if name != "LORA_FORGE_SANDBOX"}
        self.janitor = subprocess.Popen(
            [sys.executable, __file__, "--clean", str(self.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=outside, pass_fds=[lock], start_new_session=True, cwd="/", text=True,
        )  # fmt: skip
        os.close(lock)
        made = environment(self.folder)
        for variable in [name for name in self.before if FOREIGN.match(name) and name not in WANTED]:
            del os.environ[variable]
        os.environ.update(made)
        tempfile.tempdir = None  # it is remembered, where somebody asked already

    def close(self) -> str:
        """Leave it, and wait until nothing is left of it; returns what is left all the same, in words."""
        os.environ.clear()
        os.environ.update(self.before)
        try:
            return self.janitor.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            return f"{self.folder} is not clean after {PATIENCE} s\n"


def claim() -> tuple[pathlib.Path, int]:
    """Make a sandbox's folder; returns it, and the descriptor of the lock that shows that somebody uses it."""
    for folder in BASE.glob(f"{NAME}-*"):
        if (lock := locked(folder)) is not None:  # left of tests whose janitor was killed, too
            clean(folder)
            os.close(lock)
    for first in random.sample(RANGE, len(RANGE)):
        folder = BASE / f"{NAME}-{first}"
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # somebody has it, or took it for left
            folder.mkdir(mode=0o711)  # others pass through: apt's own user, to what mmdebstrap makes
            (folder / "lock").write_text(str(ROOT))
            lock = locked(folder)
            if lock is not None and all(map(free, range(first, first + PORTS))):
                for part in ("home", "tmp"):
                    (folder / part).mkdir(mode=0o711)
                return folder, lock
            if lock is not None:
                shutil.rmtree(folder)
                os.close(lock)
    raise OSError(f"there is no room for a sandbox: {BASE}/{NAME}-* are all in use")


def locked(folder: pathlib.Path) -> Optional[int]:
    """Take the lock of a sandbox of ours; None where somebody has it, or where it is nothing that we made."""
    try:
        if not re.fullmatch(rf"{NAME}-\d+", folder.name) or folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            return None
        lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == (folder / "lock").stat().st_ino:  # and not one that was removed meanwhile
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def free(number: int) -> bool:
    """Tell whether nobody listens at a port of this machine."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", number))
        except OSError:
            return False
    return True


def environment(folder: pathlib.Path) -> dict[str, str]:
    """Return the variables of a sandbox's processes, worked out from those of the process that makes it."""
    home = pathlib.Path.home()
    made = {
        "LORA_FORGE_SANDBOX": str(folder),
        "LORA_FORGE_PORT": folder.name.rpartition("-")[2],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "TMUX_TMPDIR": str(folder / "tmp"),
    }
    # What is found by the home, and is not the tests' own: downloads, interpreters, the way to a private index.
    config, cache, data = (
        pathlib.Path(os.environ.get(f"XDG_{name.upper()}_HOME") or home / default)
        for name, default in (("config", ".config"), ("cache", ".cache"), ("data", ".local/share"))
    )
    kept = {
        "UV_CACHE_DIR": cache / "uv",
        "UV_PYTHON_INSTALL_DIR": data / "uv/python",
        "UV_CONFIG_FILE": config / "uv/uv.toml",
        "PIP_CONFIG_FILE": config / "pip/pip.conf",
        "PYENV_ROOT": home / ".pyenv",
        "NETRC": home / ".netrc",
        "GIT_CONFIG_GLOBAL": home / ".gitconfig",
    }
    wanted = {name: path for name, path in kept.items() if path.exists() or name == "UV_CACHE_DIR"}
    return made | {name: str(path) for name, path in wanted.items() if not os.environ.get(name)}


def inhabitants(folder: pathlib.Path) -> list[int]:
    """List the processes that have a sandbox's folder in their environment."""
    sign, found = f"LORA_FORGE_SANDBOX={folder}\0".encode(), []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if sign in path.read_bytes() + b"\0":
                found.append(int(path.parts[2]))
    return found


def containers(folder: pathlib.Path) -> list[str]:
    """List the containers whose names begin with a sandbox's; only root's are made here."""
    if os.geteuid() != 0 or shutil.which("podman") is None:
        return []
    listed = ["podman", "ps", "--all", "--quiet", "--filter", f"name=^{folder.name}-"]
    done = subprocess.run(listed, capture_output=True, text=True, check=False)
    if done.returncode:  # warnings alone, as of podman's first call on a machine, mean nothing
        print(f"what containers are left is not known: {done.stderr}")
    return done.stdout.split()


def remove_units(folder: pathlib.Path) -> None:
    """Stop and remove systemd's units that run something in a sandbox, where this machine has systemd."""
    for unit in UNITS.glob(f"{NAME}-*.service"):
        if f"{folder}/" in unit.read_text():
            subprocess.run(["systemctl", "disable", "--now", unit.name], capture_output=True, check=False)
            unit.unlink(missing_ok=True)


def mounts(folder: pathlib.Path) -> list[str]:
    """List what tests have mounted in a sandbox, the innermost first."""
    places = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    return [place for place in reversed(places) if place.startswith(f"{folder}/")]


def clean(folder: pathlib.Path) -> str:
    """End and remove all that there is of a sandbox; returns what is left all the same, in words."""
    deadline = time.monotonic() + PATIENCE / 2
    remove_units(folder)
    for server in (folder / "tmp").glob("tmux-*/*"):  # its server writes its title over its environment
        subprocess.run(["tmux", "-S", str(server), "kill-server"], capture_output=True, check=False)
    while True:  # who is not killed yet may start the next one
        if boxes := containers(folder):
            subprocess.run(["podman", "rm", "--force", "--ignore", "--time", "0", *boxes], capture_output=True)
        processes = inhabitants(folder)
        for pid in processes:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for place in mounts(folder):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
        if not boxes and not processes and not mounts(folder):
            break
        if time.monotonic() > deadline:
            return f"{folder}: processes {processes}, containers {boxes} and mounts {mounts(folder)} are left\n"
        time.sleep(0.05)
    checkout = pathlib.Path((folder / "lock").read_text())
    files = [path for part in (".hosts", ".hosts/shared") for path in (checkout / part).glob(f"{folder.name}*")]
    if not os.environ.get("LORA_FORGE_KEEP"):
        files.append(folder)
    for path in files:
        shutil.rmtree(path, ignore_errors=True)
    return "".join(f"{path} could not be removed\n" for path in files if path.exists())


def run(command: list[str]) -> int:
    """Run a command in a sandbox; returns its exit code."""
    sandbox = Sandbox()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        sys.stderr.write(sandbox.close())


def main(words: list[str]) -> int:
    """Run a command, or be a janitor."""
    if words[:1] == ["--clean"] and len(words) == 2:
        folder = pathlib.Path(words[1])
        if folder.parent != BASE or not re.fullmatch(rf"{NAME}-\d+", folder.name):
            sys.exit(f"{folder} is no sandbox")
        sys.stdin.read()  # until the tests are over
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(clean(folder))
        return 0
    if not words or words[0].startswith("-"):
        sys.exit("usage: sandbox.py COMMAND…")
    return run(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
