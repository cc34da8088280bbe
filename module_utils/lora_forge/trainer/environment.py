"""The trainer's Python environment: made by uv from a hash-locked file, once per lock. Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import cpython

# Where the training image keeps its environments: a volume that is mounted at the trainer's root does not hide them.
IMAGE = pathlib.Path("/opt/lora-forge")
COMPLETE = ".complete"  # written last; an environment cannot be renamed, so it is built in place
# What uv says where PyTorch's index cannot be reached, or a folder of wheels has no such build, or not for this Python.
_TORCH = re.compile(r"download[\w-]*\.pytorch\.org|no version of torch(vision)?==|torch(vision)?==\S+ has no wheels")
# What it says of a folder of its own that it cannot lock: ENOLCK, ENOSYS, EOPNOTSUPP.
_NO_LOCKS = re.compile(r"failed to lock `([^`]*)`.*\(os error (37|38|95)\)")
# What an environment takes on disk, by its lock, on x86_64. trainer-cuda was measured with CPython 3.12 and 3.13;
# trainer-cpu is that without CUDA's libraries and with a smaller torch.
_GIGABYTES = {"trainer-cuda": 7.5, "trainer-cpu": 3.7}
LOCK_TIMEOUT = 1800  # seconds to wait for another controller that builds the same environment


class TorchUnreachableError(UserError):
    """The builds of torch that a lock names cannot be had from here."""


class NoLocksError(UserError):
    """A folder of uv's own lies on a file system without locks, and uv does not work there."""


def environment_name(lock: pathlib.Path) -> str:
    """Name a lock's environment: the lock's, and the first 16 hex digits of the file's SHA-256."""
    return f"{lock.stem}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"


def packages(lock: pathlib.Path) -> int:
    """Count the packages that a lock pins."""
    return len(re.findall(r"^[A-Za-z0-9][A-Za-z0-9._-]*==", lock.read_text(encoding="utf-8"), re.MULTILINE))


def unhashed_requirements(lock: pathlib.Path) -> list[str]:
    """List the packages of a lock whose files are not known by a hash."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [entry.partition("==")[0] for entry in entries if "==" in entry and "--hash=" not in entry]


def is_complete(home: pathlib.Path) -> bool:
    """Tell whether an environment was built to its end."""
    return (home / COMPLETE).exists() and (home / "bin/python").exists()


def built_from(home: pathlib.Path, locks: Sequence[pathlib.Path]) -> Optional[pathlib.Path]:
    """Tell which of some locks an environment was built from; None while it was not built to its end.

    Args:
        home: ``<trainer_root>/env/<key>``, which may be a link to another lock's environment.
        locks: The lock that names it, first.
    """
    if not is_complete(home):
        return None
    target = os.readlink(home) if home.is_symlink() else home.name
    return next((lock for lock in locks if pathlib.PurePath(target).name == environment_name(lock)), locks[0])


def adopt(root: pathlib.Path, lock: pathlib.Path, image: pathlib.Path = IMAGE) -> bool:
    """Take the environment of a lock from the training image that this host was started from, as a link.

    Args:
        root: ``<trainer_root>/env``.
        lock: The hash-locked requirements.
        image: The image's folder.

    Returns:
        Whether the environment is there now; False when the image has none of this very lock, or there is no image.
    """
    home, baked = root / environment_name(lock), image / "env" / environment_name(lock)
    if not is_complete(baked):
        return False
    root.mkdir(parents=True, exist_ok=True)
    with _building(home):
        if not is_complete(home):
            _clear(home)
            home.symlink_to(baked)
    return True


def ensure(
    root: pathlib.Path,
    lock: pathlib.Path,
    uv: str,
    python: str,
    torch_backend: str,
    instead: Optional[pathlib.Path] = None,
) -> bool:
    """Build the environment of a lock unless it is there; what an earlier, cut-off build left is made whole.

    Args:
        root: ``<trainer_root>/env``.
        lock: The hash-locked requirements.
        uv: The uv program.
        python: What :func:`interpreter` returned.
        torch_backend: uv's ``--torch-backend``; empty where torch comes from the registry or a wheel folder.
        instead: The lock that is taken where this one's builds of torch cannot be had. Its environment has a folder of
            its own, and this one's becomes a link to it.

    Returns:
        Whether anything was done.

    Raises:
        UserError: No fitting Python, or an install that failed.
    """
    home = root / environment_name(lock)
    if is_complete(home):
        return False
    root.mkdir(parents=True, exist_ok=True)
    with _building(home):
        if is_complete(home):
            return False
        _clear(home)
        try:
            make(home, uv, python, root.parent)
            sync(home, lock, uv, torch_backend)
            mark_complete(home)
        except TorchUnreachableError:
            if instead is None:
                raise
            adopt(root, instead) or ensure(root, instead, uv, python, "")
            _clear(home)
            home.symlink_to(environment_name(instead))
    return True


def interpreter(wanted: str, download: bool, root: pathlib.Path) -> str:
    """Choose the interpreter that an environment is made with.

    Args:
        wanted: A version (``3.13``), a path, or empty for any that the locks are for.
        download: Whether uv may fetch one where the host has none.
        root: The trainer's root.

    Returns:
        A path, or else the version that uv is to fetch.

    Raises:
        UserError: There is none, and uv may fetch none.
    """
    if wanted.startswith("/"):
        named = cpython.probe(wanted, cpython.VERSIONS)
        if named is None:
            raise UserError(f"trainer_python_version is {wanted}, which is no {_any()} here")
        return named.path
    if wanted and wanted not in cpython.VERSIONS:
        raise UserError(f"trainer_python_version is {wanted}; it is a path, or a version of {_any()}, such as 3.13")
    versions = (wanted,) if wanted else cpython.VERSIONS
    installed = cpython.find_interpreter(versions, root, dict(os.environ))
    if installed:
        return installed.path
    if download:
        return versions[0]
    looked = "on PATH, in /usr/bin, and where uv and pyenv keep theirs"
    advice = (
        "Let uv fetch it (-e trainer_python_download=true), or leave trainer_python_version empty for any that is there"
        if wanted
        else cpython.install_advice(_release())
    )
    raise UserError(f"no {_any(*versions)} was found ({looked}). {advice}")


def _any(*versions: str) -> str:
    first, *others = versions or cpython.VERSIONS
    return f"CPython {first} to {others[-1]}" if others else f"CPython {first}"


def _release() -> str:
    try:
        return pathlib.Path("/etc/os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def make(home: pathlib.Path, uv: str, python: str, root: pathlib.Path) -> None:
    """Make an environment without packages.

    Args:
        home: Where.
        uv: The uv program.
        python: What :func:`interpreter` returned.
        root: The trainer's root; an interpreter that is fetched goes to ``<root>/python``.

    Raises:
        UserError: uv could not fetch the interpreter, or not use it.
    """
    if python.startswith("/"):
        _uv([uv, "venv", "--quiet", "--python", python, str(home)], f"{python} makes no environment")
        return
    command = [uv, "venv", "--quiet", "--managed-python", "--python", python, str(home)]
    failure = (
        f"this host has no {_any(python)}, and uv could not fetch it (UV_PYTHON_INSTALL_MIRROR names a mirror). "
        f"Or install it yourself, and name it by trainer_python_version unless it is on PATH"
    )
    try:
        _uv(command, failure, UV_PYTHON_INSTALL_DIR=str(root / "python"))
    except NoLocksError:  # uv's own folder is in the home, which may be on another file system
        _uv(command, failure)


def sync(home: pathlib.Path, lock: pathlib.Path, uv: str, torch_backend: str) -> None:
    """Give an environment the packages of a lock, and no others; what it has already is left as it is.

    Raises:
        TorchUnreachableError: The lock's builds of torch cannot be had here.
        UserError: The disk has no room for it, which is told before anything is installed, or something else failed.
    """
    hashes = (
        "--verify-hashes" if unhashed_requirements(lock) else "--require-hashes"
    )  # one that is known is checked either way
    command = [uv, "pip", "sync", hashes, "--python", str(home / "bin/python")]
    failure = f"the packages of {lock.name} could not be installed"
    # With a backend uv looks for torch on that one's index alone, and not in a folder of wheels.
    backend = ["--torch-backend", torch_backend] if torch_backend else []
    ways: list[list[str]] = [[], backend] if _wheels() and backend else [backend]
    for way in ways:
        with contextlib.suppress(UserError):
            # What is in uv's cache is installed without a question to the registry, whose lists alone are 80 MB.
            _uv([*command, *way, "--offline", "--quiet", str(lock)], failure)
            return
        _room(home, lock, uv)
        try:
            _uv([*command, *way, "--quiet", str(lock)], failure)
            return
        except TorchUnreachableError:
            if way is ways[-1]:
                raise


def _room(home: pathlib.Path, lock: pathlib.Path, uv: str) -> None:
    """Fail where torch, most of an environment, is still to come, and the disk has no room for the whole.

    On one disk uv links the environment's files to those of its cache, and they need room once.
    """
    torch = re.search(r"^torch==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if torch is None or any(home.glob("lib/python*/site-packages/torch-*.dist-info")):
        return
    python = ["--python", str(home / "bin/python")]
    with contextlib.suppress(UserError):
        command = [uv, "pip", "install", "--offline", "--dry-run", "--no-deps", *python, f"torch=={torch.group(1)}"]
        if "Would download" not in _uv(command, ""):
            return
    needed = _GIGABYTES.get(lock.stem, 0.0)
    cache = pathlib.Path(_uv([uv, "cache", "dir"], "uv has no cache").strip())
    cache = next((path for path in (cache, *cache.parents) if path.exists()), cache)
    for place in (home, *([] if os.stat(home).st_dev == os.stat(cache).st_dev else [cache])):
        free = shutil.disk_usage(place).free / 1e9
        if free < needed:
            raise UserError(
                f"{lock.name} takes about {needed:g} GB, and the disk of {place} has {free:.1f} GB left. Make room "
                f"there (uv cache clean removes what uv has ever downloaded; playbooks/prune.yml tells of environments "
                f"that no lock names), or {'put trainer_root' if place == home else 'set UV_CACHE_DIR to a folder'} on "
                "a larger disk"
            )


def mark_complete(home: pathlib.Path) -> None:
    """Note that an environment was built to its end."""
    (home / COMPLETE).write_text(time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()), encoding="utf-8")


def _clear(home: pathlib.Path) -> None:
    """Remove what a cut-off build left, or a link on this volume into an image that is not this host's."""
    if home.is_symlink():
        home.unlink()
    else:
        shutil.rmtree(home, ignore_errors=True)


def lock_file(home: pathlib.Path) -> pathlib.Path:
    """Return the file that whoever builds an environment, or removes it, holds locked."""
    return home.with_name(f"{home.name}.lock")


@contextlib.contextmanager
def _building(home: pathlib.Path) -> Iterator[None]:
    """Hold the lock of an environment's builders.

    Raises:
        UserError: Another one builds it for longer than LOCK_TIMEOUT.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(rundir.locked(lock_file(home), LOCK_TIMEOUT))
        except BlockingIOError:
            raise UserError(f"another process has been building {home} for {LOCK_TIMEOUT} s") from None
        yield


def _uv(command: list[str], failure: str, **more: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    env |= more
    if _wheels():
        env["UV_FIND_LINKS"] = _wheels()
    process = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if process.returncode:
        text = process.stdout.strip()
        if "No space left" in text:
            failure = "the disk is full. Free some space and run the same command again; " + failure
        elif "quota exceeded" in text:  # of the home, mostly, where uv has its cache
            failure = (
                "the disk quota of this user is used up. Free some space, or put uv's cache elsewhere (export "
                "UV_CACHE_DIR=… in the first lines of ~/.bashrc there), and run the same command again; " + failure
            )
        if unlocked := _NO_LOCKS.search(text):
            raise NoLocksError(
                f"uv has to lock {unlocked.group(1)}, and {rundir.NO_LOCKS}. Or put what uv keeps into a folder with "
                "locks (export UV_CACHE_DIR=… UV_PYTHON_INSTALL_DIR=… in the first lines of ~/.bashrc there), and run "
                f"the same command again; {failure}"
            )
        raise (TorchUnreachableError if _TORCH.search(text) else UserError)(f"{failure}. uv says: {text[-1500:]}")
    return process.stdout


def _wheels() -> str:
    """Return the folder of wheels that this host is told of, be it for pip only."""
    return os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""


def find_uv(wanted: str, root: pathlib.Path, lock: Optional[pathlib.Path], python: str) -> str:
    """Return the uv program: the one that is named, or the pinned one, installed below the trainer's root.

    Args:
        wanted: A path; empty to use the pinned one.
        root: The trainer's root.
        lock: Pins uv with hashes.
        python: The Python whose pip installs it.

    Raises:
        UserError: uv is not there and cannot be installed.
    """
    if wanted:
        if not os.access(wanted, os.X_OK):
            raise UserError(f"trainer_uv is {wanted}, which is no program here")
        return wanted
    if lock is None:
        raise UserError("name uv by trainer_uv, or its lock by trainer_uv_lock")
    home = root / "tools" / environment_name(lock)
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
