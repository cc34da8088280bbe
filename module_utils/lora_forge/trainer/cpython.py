"""Find the CPython that a trainer's environment is made with, wherever a host keeps one. Python 3.9 or newer."""

from __future__ import annotations

import glob
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

VERSIONS = ("3.12", "3.13", "3.14")  # what the trainers' locks are for, the one that uv fetches first
PROBE_TIMEOUT = 20  # seconds for an interpreter to say what it is
# A virtual environment's answers for the interpreter that it was made from. A build without the GIL takes other wheels.
_PROBE = (
    "import platform, sys, sysconfig;"
    "print(platform.python_implementation(), platform.python_version(),"
    " 'free-threaded' if sysconfig.get_config_var('Py_GIL_DISABLED') else 'usual',"
    " getattr(sys, '_base_executable', '') or sys.executable)"
)
# Distributions whose own package python3 is new enough, from a release on.
_PACKAGED = {"debian": 13.0, "ubuntu": 24.04, "fedora": 39.0}


class Interpreter(NamedTuple):
    """An interpreter: its version (``3.12.3``) and its path."""

    version: str
    path: str

    def __str__(self) -> str:
        return f"CPython {self.version} ({self.path})"


def _candidates(versions: Sequence[str], root: pathlib.Path, environ: dict[str, str]) -> Iterator[str]:
    """List where an interpreter may be, the likeliest first: PATH, what uv fetched, and pyenv's folder.

    pyenv puts scripts on PATH that end with an error unless a version is chosen, so its folder is looked into as well.

    Args:
        versions: Those that will do, such as ``3.12``, the best first.
        root: The trainer's root; uv fetches into ``<root>/python``.
        environ: The environment variables.
    """
    folders = [folder for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    folders += [folder for folder in ("/usr/local/bin", "/usr/bin") if folder not in folders]
    for name in ("python3", *(f"python{version}" for version in versions)):
        yield from (f"{folder}/{name}" for folder in folders)
    home = pathlib.Path(environ.get("HOME") or "/")
    data = pathlib.Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
    fetched = [root / "python", pathlib.Path(environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv/python")]
    pyenv = pathlib.Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    for version in versions:
        for folder in fetched:
            yield from sorted(glob.glob(f"{glob.escape(str(folder))}/cpython-{version}.*/bin/python{version}"))
        yield from sorted(glob.glob(f"{glob.escape(str(pyenv))}/{version}.*/bin/python{version}"))


def probe(path: str, versions: Sequence[str]) -> Optional[Interpreter]:
    """Tell what an interpreter is, if it is a CPython of one of the versions.

    Args:
        path: A program.
        versions: Those that will do.

    Returns:
        None where there is none, where it does not run, or where it is another one.
    """
    if not os.access(path, os.X_OK):
        return None
    try:
        process = subprocess.run(
            [path, "-I", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=PROBE_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    answer = re.fullmatch(r"CPython ((\d+\.\d+)\.\d+) usual (/.*)\n", process.stdout)
    if process.returncode or answer is None or answer.group(2) not in versions:
        return None
    return Interpreter(answer.group(1), answer.group(3))


def find_interpreter(versions: Sequence[str], root: pathlib.Path, environ: dict[str, str]) -> Optional[Interpreter]:
    """Find the first interpreter that will do; arguments are those of :func:`_candidates`."""
    seen = set()
    for path in _candidates(versions, root, environ):
        real = os.path.realpath(path)
        if real not in seen:
            if os.path.basename(real).startswith("python"):  # or else a shim, which goes by the name it is called by
                seen.add(real)
            interpreter = probe(path, versions)
            if interpreter:
                return interpreter
    return None


def install_advice(release: str) -> str:
    """Tell how to get an interpreter on this distribution, in a sentence.

    Args:
        release: The text of ``/etc/os-release``.
    """
    known = dict(re.findall(r'^(ID|VERSION_ID)="?([^"\n]*)"?$', release, re.MULTILINE))
    name, number = known.get("ID", ""), re.match(r"\d+(\.\d+)?", known.get("VERSION_ID", ""))
    if name in _PACKAGED and (number is None or float(number.group()) >= _PACKAGED[name]):  # Debian sid has no number
        return f"Install it: {'dnf' if name == 'fedora' else 'apt-get'} install python3"
    here = f"{name} {known.get('VERSION_ID', '')}".strip() or "this system"
    return (
        f"No package of {here} is known to have it: let uv fetch one (-e trainer_python_download=true), "
        "or name one by trainer_python_version"
    )
