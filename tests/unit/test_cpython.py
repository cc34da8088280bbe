"""Which CPython a trainer's environment is made with."""

from __future__ import annotations

import pathlib
import sys

import pytest
from ansible.module_utils.lora_forge.trainer import cpython

VERSIONS = cpython.VERSIONS


def interpreter(path: pathlib.Path, says: str, code: int = 0) -> str:
    """Write a program that answers as an interpreter would, and notes that it was asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho asked >>{path}.asked\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def environ(home: pathlib.Path, *folders: str, **more: str) -> dict[str, str]:
    return {"HOME": str(home), "PATH": ":".join(str(home / folder) for folder in folders), **more}


@pytest.fixture(autouse=True)
def _only_here(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Hide the interpreters of this machine."""
    probe = cpython.probe
    here = str(tmp_path)
    monkeypatch.setattr(cpython, "probe", lambda path, versions: probe(path, versions) if here in path else None)


def find(home: pathlib.Path, *folders: str, **more: str) -> cpython.Interpreter | None:
    return cpython.find_interpreter(VERSIONS, home / "root", environ(home, *folders, **more))


def test_python3_of_the_path_comes_first(tmp_path):
    interpreter(tmp_path / "a/python3.12", "CPython 3.12.3 usual /a/python3.12")
    interpreter(tmp_path / "b/python3", "CPython 3.13.5 usual /b/python3.13")
    assert find(tmp_path, "a", "b") == ("3.13.5", "/b/python3.13")


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ("CPython 3.11.2 usual /a/python3.11", 0),  # too old
        ("CPython 3.15.0 usual /a/python3.15", 0),  # too new
        ("CPython 3.14.0rc2 usual /a/python3.14", 0),  # not out yet
        ("CPython 3.13.5 free-threaded /a/python3.13t", 0),  # other wheels
        ("PyPy 3.12.1 usual /a/pypy", 0),
        ("CPython 3.12.1 usual /a/python3", 127),  # pyenv's, when no version is chosen
        ("CPython 3.12.1 usual python3", 0),  # no path
        ("\n", 0),
    ],
)
def test_what_will_not_do_is_passed_over(tmp_path, says, code):
    interpreter(tmp_path / "a/python3", says, code)
    interpreter(tmp_path / "a/python3.14", "CPython 3.14.2 usual /a/python3.14")
    assert find(tmp_path, "a") == ("3.14.2", "/a/python3.14")


@pytest.mark.parametrize(
    ("where", "more"),
    [
        ("root/python/cpython-3.12.11-linux-x86_64-gnu", {}),
        (".local/share/uv/python/cpython-3.12.11-linux-x86_64-gnu", {}),
        ("data/uv/python/cpython-3.12.11-linux-x86_64-gnu", {"XDG_DATA_HOME": "data"}),
        ("elsewhere/cpython-3.12.11-linux-x86_64-gnu", {"UV_PYTHON_INSTALL_DIR": "elsewhere"}),
        (".pyenv/versions/3.12.11", {}),
        ("pyenv/versions/3.12.11", {"PYENV_ROOT": "pyenv"}),
    ],
)
def test_it_is_found_where_uv_or_pyenv_keeps_it(tmp_path, where, more):
    path = interpreter(tmp_path / where / "bin/python3.12", f"CPython 3.12.11 usual {tmp_path}/{where}/bin/python3.12")
    assert find(tmp_path, **{name: str(tmp_path / folder) for name, folder in more.items()}) == ("3.12.11", path)


def test_the_best_version_comes_first_where_several_are_kept(tmp_path):
    for version in ("3.14.2", "3.12.1", "3.13.0"):
        short = version.rpartition(".")[0]
        interpreter(tmp_path / f".pyenv/versions/{version}/bin/python{short}", f"CPython {version} usual /{version}")
    assert find(tmp_path) == ("3.12.1", "/3.12.1")


def test_nobody_is_asked_twice(tmp_path):
    interpreter(tmp_path / "a/python3.11", "CPython 3.11.2 usual /a/python3.11")
    for name in ("python3", "python3.12"):
        (tmp_path / "a" / name).symlink_to("python3.11")
    assert find(tmp_path, "a", "a") is None
    assert (tmp_path / "a/python3.11.asked").read_text() == "asked\n"


def test_one_that_hangs_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(cpython, "PROBE_TIMEOUT", 0.2)
    path = tmp_path / "a/python3"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nexec sleep 600\n")
    path.chmod(0o755)
    assert find(tmp_path, "a") is None


def test_the_one_that_runs_this_is_itself(monkeypatch):
    monkeypatch.undo()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = cpython.probe(sys.executable, [version])
    assert found is not None
    assert found.version.startswith(version)
    assert found.path == sys._base_executable
    assert str(found) == f"CPython {found.version} ({found.path})"
    assert cpython.probe(sys.executable, ["2.7"]) is None


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ('ID=debian\nVERSION_ID="13"\n', "apt-get install python3"),
        ("ID=debian\n", "apt-get install python3"),  # sid
        ('ID=ubuntu\nVERSION_ID="24.04"\n', "apt-get install python3"),
        ('NAME="Fedora Linux"\nID=fedora\nVERSION_ID=43\n', "dnf install python3"),
        ('ID=debian\nVERSION_ID="12"\n', "No package of debian 12 is known to have it: let uv fetch one"),
        ('ID=ubuntu\nVERSION_ID="22.04"\n', "No package of ubuntu 22.04"),
        ("", "No package of this system"),
    ],
)
def test_the_advice_fits_the_distribution(release, said):
    assert said in cpython.install_advice(release)


def test_shims_that_are_links_to_one_program_are_asked_each(tmp_path):
    """It goes by the name that it is called by, so what it says under one name says nothing of another."""
    interpreter(tmp_path / "a/shim", "CPython 3.12.4 usual /opt/python3.12")
    text = (tmp_path / "a/shim").read_text().replace("#!/bin/sh\n", "#!/bin/sh\n[ ${0##*/} = python3.12 ] || exit 1\n")
    (tmp_path / "a/shim").write_text(text)
    for name in ("python3", "python3.12"):
        (tmp_path / "a" / name).symlink_to("shim")
    assert find(tmp_path, "a") == ("3.12.4", "/opt/python3.12")
