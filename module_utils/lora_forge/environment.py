"""The trainer's Python environment: made by uv from a hash-locked file, once per lock. Python 3.9 or newer."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import time
from typing import Optional

from ansible.module_utils.lora_forge.errors import ForgeError

# Where the training image keeps its environments: a volume that is mounted at the trainer's root does not hide them.
IMAGE = pathlib.Path("/opt/lora-forge")
COMPLETE = ".complete"  # written last; an environment cannot be renamed, so it is built in place
LOCK_TIMEOUT = 1800  # seconds to wait for another controller that builds the same environment


def key(lock: pathlib.Path) -> str:
    """The name of a lock's environment: the first 16 hex digits of the file's SHA-256."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:16]


def packages(lock: pathlib.Path) -> int:
    """How many packages a lock pins."""
    return len(re.findall(r"^[A-Za-z0-9][A-Za-z0-9._-]*==", lock.read_text(encoding="utf-8"), re.MULTILINE))


def present(home: pathlib.Path) -> bool:
    """Whether an environment was built to its end."""
    return (home / COMPLETE).exists() and (home / "bin/python").exists()


def adopt(root: pathlib.Path, lock: pathlib.Path, image: pathlib.Path = IMAGE) -> bool:
    """Take the environment of a lock from the training image that this host was started from, as a link.

    Args:
        root: ``<trainer_root>/env``.
        lock: The hash-locked requirements.
        image: The image's folder.

    Returns:
        Whether the environment is there now; False when the image has none of this very lock, or there is no image.
    """
    home, baked = root / key(lock), image / "env" / key(lock)
    if not present(baked):
        return False
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{home.name}.lock").open("a") as guard:
        _take(guard, home)
        if not present(home):
            _clear(home)
            home.symlink_to(baked)
    return True


def ensure(root: pathlib.Path, lock: pathlib.Path, uv: str, python: str, download: bool, torch_backend: str) -> bool:
    """Build the environment of a lock unless it is there; what an earlier, cut-off build left is made whole.

    Args:
        root: ``<trainer_root>/env``.
        lock: The hash-locked requirements.
        uv: The uv program.
        python: The version it needs, such as ``3.11``.
        download: Whether uv may fetch that Python.
        torch_backend: uv's ``--torch-backend``; empty where torch comes from the registry or a wheel folder.

    Returns:
        Whether anything was done.

    Raises:
        ForgeError: No fitting Python, or an install that failed.
    """
    home = root / key(lock)
    if present(home):
        return False
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{home.name}.lock").open("a") as guard:
        _take(guard, home)
        if present(home):
            return False
        _clear(home)
        make(home, uv, python, download)
        sync(home, lock, uv, torch_backend)
        complete(home)
    return True


def make(home: pathlib.Path, uv: str, python: str, download: bool) -> None:
    """Make an environment without packages; arguments and errors are those of :func:`ensure`."""
    preference = [] if download else ["--no-python-downloads"]
    _uv(
        [uv, "venv", "--quiet", "--python", python, *preference, str(home)],
        f"no environment with Python {python} could be made. If there is none, install it (Debian, Ubuntu: "
        f"apt-get install python{python} "
        f"python{python}-venv), or let uv fetch one: -e trainer_python_download=true",
    )


def sync(home: pathlib.Path, lock: pathlib.Path, uv: str, torch_backend: str) -> None:
    """Give an environment the packages of a lock, and no others; what it has already is left as it is."""
    backend = ["--torch-backend", torch_backend] if torch_backend else []
    into = ["--python", str(home / "bin/python")]
    _uv(
        [uv, "pip", "sync", "--quiet", "--require-hashes", *into, *backend, str(lock)],
        f"the packages of {lock.name} could not be installed",
    )


def complete(home: pathlib.Path) -> None:
    """Note that an environment was built to its end."""
    (home / COMPLETE).write_text(time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()), encoding="utf-8")


def _clear(home: pathlib.Path) -> None:
    """Remove what a cut-off build left, or a link on this volume into an image that is not this host's."""
    if home.is_symlink():
        home.unlink()
    else:
        shutil.rmtree(home, ignore_errors=True)


def _take(guard: object, home: pathlib.Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ForgeError(f"another process has been building {home} for {LOCK_TIMEOUT} s") from None
            time.sleep(0.5)


def _uv(command: list[str], failure: str) -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    if not env.get("UV_FIND_LINKS") and env.get("PIP_FIND_LINKS"):
        env["UV_FIND_LINKS"] = env["PIP_FIND_LINKS"]  # a folder of wheels, named for pip only
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        text = done.stdout.strip()
        if "No space left" in text:
            failure = "the disk is full. Free some space and run the same command again; " + failure
        raise ForgeError(f"{failure}. uv says: {text[-1500:]}")


def find_uv(wanted: str, root: pathlib.Path, lock: Optional[pathlib.Path], python: str) -> str:
    """The uv program: the one that is named, or the pinned one, installed below the trainer's root.

    Args:
        wanted: A path; empty to use the pinned one.
        root: The trainer's root.
        lock: Pins uv with hashes.
        python: The Python whose pip installs it.

    Raises:
        ForgeError: uv is not there and cannot be installed.
    """
    if wanted:
        if not os.access(wanted, os.X_OK):
            raise ForgeError(f"trainer_uv is {wanted}, which is no program here")
        return wanted
    if lock is None:
        raise ForgeError("name uv by trainer_uv, or its lock by trainer_uv_lock")
    home = root / "tools" / f"uv-{key(lock)}"
    if not (home / "bin/uv").exists():
        partial = home.with_name(f"{home.name}.{os.getpid()}")
        _uv(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
             "--target", str(partial), "-r", str(lock)],
            f"pip of {python} could not install uv (Debian, Ubuntu: apt-get install python3-pip)",
        )  # fmt: skip
        try:
            partial.rename(home)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # another controller was first
    return str(home / "bin/uv")
