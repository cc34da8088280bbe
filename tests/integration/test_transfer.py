"""Fetching by the real rsync from a host that sends what it likes: nothing else is written here, and it ends."""

from __future__ import annotations

import os
import pathlib
import stat
import types
from typing import Any
from unittest import mock

import pytest
from ansible.module_utils.lora_forge.controller import transfer
from wire import load

SSH = """#!/bin/sh
# In ssh's place: the host's own shell is this one. What follows the host's name is the command.
while [ "$1" != there ]; do shift; done
shift
exec sh -c "$*"
"""


@pytest.fixture
def site(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a host's folder, a folder here, and what fetches between them."""
    program = tmp_path / "ssh"
    program.write_text(SSH)
    program.chmod(0o755)
    connection = mock.Mock(transport="ssh", become=None)
    options = {"ssh_executable": str(program), "host": "there"}
    connection.get_option = options.__getitem__
    connection._build_command = lambda *words: [str(program).encode()]
    plugin = load("action_plugins/transfer")
    monkeypatch.setattr(plugin, "tell", lambda *words, **about: None)

    def fetch(files: dict[str, int], **more: Any) -> dict[str, Any]:
        listed = [{"path": path, "bytes": most} for path, most in files.items()]
        args = {"from": str(there), "to": str(here), "files": listed, "timeout": 10, **more}
        action = plugin.ActionModule(
            mock.Mock(args=args, check_mode=False, async_val=0), connection, *[mock.Mock()] * 4
        )
        return action.run(task_vars={"inventory_hostname": "there"})

    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    return types.SimpleNamespace(there=there, here=here, fetch=fetch, bin=tmp_path / "bin", connection=connection)


def write(folder: pathlib.Path, **files: str) -> None:
    for name, text in files.items():
        place = folder / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def rsync_that(site: Any, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put another rsync before the real one: what an old client does that a host plays with."""
    site.bin.mkdir()
    program = site.bin / "rsync"
    program.write_text(f"#!/bin/bash\nfor to; do :; done\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{site.bin}:{os.environ['PATH']}")


def test_what_was_asked_for_comes_and_is_private(site):
    write(site.there, output__a="aaa", b="bb", c="not asked for")
    found = site.fetch({"output/a": 3, "b": 5})
    assert (found["changed"], sorted(found["sent"])) == (True, ["b", "output/a"])
    assert (site.here / "output/a").read_text() == "aaa"
    assert sorted(path.name for path in site.here.rglob("*")) == ["a", "b", "output"]
    assert [stat.S_IMODE((site.here / name).stat().st_mode) for name in ("output", "b")] == [0o700, 0o600]
    assert site.fetch({"output/a": 3, "b": 5})["changed"] is False


@pytest.mark.parametrize(
    ("method", "password", "words"),
    [("sudo", None, ""), ("sudo", "x", "uses sudo with a password"), ("doas", None, "uses doas")],
)
def test_rsync_runs_as_the_user_whom_become_names_or_it_is_said_why_not(site, monkeypatch, method, password, words):
    options = {"become_user": "some one", "become_pass": password}
    site.connection.become = mock.Mock(get_option=lambda name, playcontext: options[name])
    site.connection.become.name = method
    rsync_that(site, monkeypatch, 'printf "%s\\n" "$@" >"$to/../said"')
    found = site.fetch({"a": 1})
    said = site.here.parent / "said"
    if words:
        assert f"as some one by sudo without a password only, and ansible_become {words}" in found["msg"]
        assert not said.exists()
    else:
        assert "--rsync-path\nsudo -n -H -u 'some one' rsync\n" in said.read_text()


@pytest.mark.parametrize("path", ["/etc/hostname", "../there2/x", "a/../../x", "a\nb"])
def test_a_path_that_leads_elsewhere_is_not_even_asked_for(site, path):
    write(site.there, a="a")
    found = site.fetch({"a": 1, path: 100})
    assert found["failed"]
    assert found["msg"].endswith("nothing was fetched")
    assert not site.here.exists()


def test_links_and_devices_are_not_taken(site):
    write(site.there, real="x")
    (site.there / "link").symlink_to("/etc/hostname")
    (site.there / "folder").symlink_to("/etc")
    os.mkfifo(site.there / "pipe")
    site.fetch({"real": 1, "link": 100, "folder/hostname": 100, "pipe": 100}, options=["--links", "--specials"])
    assert [path for path in site.here.rglob("*") if path.is_symlink()] == []
    assert {path.name for path in site.here.iterdir()} <= {"real", "folder"}


def test_a_link_that_lies_here_is_not_written_through(site, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "a").write_text("mine")
    site.here.mkdir()
    (site.here / "output").symlink_to(victim)
    (site.here / "b").symlink_to(victim / "a")
    write(site.there, output__a="theirs", b="theirs")
    assert not site.fetch({"output/a": 6, "b": 6}).get("failed")
    assert (victim / "a").read_text() == "mine"
    assert (site.here / "output/a").read_text() == (site.here / "b").read_text() == "theirs"


def test_a_folder_that_is_a_link_is_refused(site, tmp_path):
    (tmp_path / "victim").mkdir()
    site.here.symlink_to(tmp_path / "victim")
    write(site.there, a="a")
    assert site.fetch({"a": 1})["msg"].startswith(f"{site.here} is a link")
    assert list((tmp_path / "victim").iterdir()) == []


def test_what_lies_there_from_before_goes_and_a_part_of_a_file_is_continued(site):
    write(site.here, a="aaa", evil__sitecustomize="x", **{"output__b": "other"})
    write(site.there, a="aaaa")
    site.fetch({"a": 4})
    assert [path.name for path in site.here.rglob("*")] == ["a"]
    assert (site.here / "a").read_text() == "aaaa"


def test_a_file_larger_than_was_said_does_not_come(site):
    write(site.there, a="x" * 1000, b="b")
    site.fetch({"a": 10, "b": 1})
    assert not (site.here / "a").exists()


def test_what_nobody_asked_for_is_deleted_and_refused(site, monkeypatch):
    rsync_that(site, monkeypatch, 'echo a > "$to/a"; mkdir "$to/evil"; echo x > "$to/evil/x"; ln -s /etc "$to/link"')
    found = site.fetch({"a": 2})
    assert found["msg"] == (
        "there sent 'evil', which nobody asked for. It was deleted, and nothing else is taken: this trainer is not to "
        "be trusted, or was damaged"
    )
    assert [path.name for path in site.here.iterdir()] == ["a"]
    assert os.path.isdir("/etc"), "what a link leads to stays"


def test_a_file_that_grows_without_end_is_ended(site, monkeypatch):
    monkeypatch.setattr(transfer, "TOLD", 100_000)
    rsync_that(site, monkeypatch, 'exec cat /dev/zero > "$to/a"')
    found = site.fetch({"a": 1000})
    assert "there sent 'a', which is larger than it may be" in found["msg"]
    assert not (site.here / "a").exists()


def test_many_files_that_grow_are_ended(site, monkeypatch):
    monkeypatch.setattr(transfer, "_LOOK", 0.05)
    rsync_that(site, monkeypatch, 'for n in $(seq 1 100000); do head -c 100000 /dev/zero > "$to/$n"; done')
    found = site.fetch({"a": 1000})
    assert "which nobody asked for" in found["msg"]
    assert list(site.here.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "limits", "words"),
    [
        ("yes", {"TOLD": 100_000}, "it says more than any transfer has to say"),
        ("sleep 600", {"GRACE": 0.1}, "it is not over after 0.0 h"),
        ("sleep 600", {"LEFT_FREE": 1 << 60}, "is nearly full"),
    ],
)
def test_a_transfer_that_would_never_end_is_ended_with_the_reason(site, monkeypatch, script, limits, words):
    for name, value in {"_LOOK": 0.05, "_LAST": 1.0, **limits}.items():
        monkeypatch.setattr(transfer, name, value)
    rsync_that(site, monkeypatch, f"exec {script}")
    found = site.fetch({"a": 1000}, max_bytes=1000)
    assert words in found["msg"]
    assert found["msg"].startswith("the transfer with there was ended")


def test_a_disk_without_the_room_is_told_before_anything_comes(site):
    write(site.there, a="a")
    found = site.fetch({"a": 1 << 60})
    assert "up to 1,152,921,504,606,846,976 bytes would come" in found["msg"]
    assert "Free some space there" in found["msg"]
    assert list(site.here.iterdir()) == []
