"""What README and docs/ tell people to type works: each block that is marked as run is run, page by page, in a clone.

A reader types the commands of a page in the order in which they stand, in one terminal. What tests/pages.py takes for a
command is given to a bash of its own; the folder and what was exported go on from one to the next.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pages
import pytest

from .conftest import CONVERGE, ROOT, Checkout, eventually

PAGES = {page.path: page for page in pages.read_pages() if any(block.runs is not None for block in page.blocks)}
NOWHERE = "http://127.0.0.1:9"  # the port «discard», where nobody listens


class Terminal:
    """A reader's terminal in a clone: no account, no network, and environments that are there already.

    Args:
        checkout: The clone.
        log: Where what is printed goes.
    """

    def __init__(self, checkout: Checkout, log: pathlib.Path):
        self.home, self.log = checkout.home, log
        self.folder = self.home
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} | {
            "PATH": f"{self.home}/.venv/bin:{os.environ['PATH']}",
            "ANSIBLE_NOCOLOR": "1",
            "no_proxy": "localhost,127.0.0.1",
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE),
        }
        self._share_environments()
        # Another page, or another checkout on this machine, must not queue at the same lane.
        (self.home / "inventory/group_vars").mkdir()
        (self.home / "inventory/group_vars/all.yml").write_text(f"run_lane_dir: {self.home}\n")

    def _share_environments(self) -> None:
        """Give the clone the controller's environment; marks newer than the locks keep make from making it anew."""
        (self.home / ".venv").mkdir()
        for path in (ROOT / ".venv").iterdir():
            if not path.name.startswith("."):
                (self.home / ".venv" / path.name).symlink_to(path)
        for mark in (".controller", ".dev"):
            (self.home / ".venv" / mark).touch()

    def type(self, command: str, seconds: float = CONVERGE) -> int:
        """Run a command as bash does that ends at the first failure.

        Args:
            command: As it stands on the page.
            seconds: After which it is killed, with all that it started.

        Returns:
            Its exit code; that of timeout(1) where it was killed.
        """
        after = self.home.parent / "after"
        script = f"trap 'pwd >{after}; env -0 >>{after}' EXIT\nset -eu\n{command}\n"
        with self.log.open("ab") as log:
            log.write(f"\n$ {command}\n".encode())
            log.flush()
            process = subprocess.Popen(
                ["bash", "-c", script], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = 124
            finally:
                with contextlib.suppress(ProcessLookupError):  # what it left in the background, too
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if after.exists():
            folder, _, variables = after.read_text(errors="surrogateescape").partition("\n")
            self.folder = pathlib.Path(folder)
            self.environment = dict(line.partition("=")[::2] for line in variables.split("\0") if "=" in line)
            after.unlink()
        return code

    def said(self) -> str:
        """Return all that was typed and printed."""
        return self.log.read_text(errors="replace")


@pytest.fixture
def terminal(checkout: Checkout, tmp_path: pathlib.Path) -> Iterator[Terminal]:
    return Terminal(checkout, tmp_path / "log")


@pytest.mark.parametrize("path", PAGES)
def test_the_commands_of_a_page_work(path: str, terminal: Terminal) -> None:
    for block in PAGES[path].blocks:
        for command in block.commands() if block.runs is not None else ():
            code = terminal.type(command.text)
            assert code == block.runs, (
                f"{path}:{command.line}: this ended with {code}, and is to end with {block.runs}:\n{terminal.said()}"
            )
    assert "Traceback" not in terminal.said()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("true", 0),
        ("false; true", 1),
        ("exit 3", 3),
        ("echo $NOBODY_SAID_THIS", 1),
        ("sleep 60", 124),
        ("test -z \"${RUNPOD_API_KEY-}${WANDB_API_KEY-}\"", 0),
        ("ansible-playbook --version | grep -q \"^  config file = $PWD/ansible.cfg\"", 0),
        ("make setup", 0),
        ("curl --silent --max-time 20 https://example.org", 7),
    ],
)  # fmt: skip
def test_a_terminal_tells_how_a_command_ended(command: str, code: int, tmp_path: pathlib.Path) -> None:
    if command.startswith("curl") and not shutil.which("curl"):
        pytest.skip("this machine has no curl")
    terminal = Terminal(Checkout(tmp_path / "lora-forge"), tmp_path / "log")
    assert terminal.type(command, 2 if code == 124 else CONVERGE) == code, terminal.said()
    assert f"$ {command}\n" in terminal.said()


def test_a_terminal_remembers(tmp_path: pathlib.Path) -> None:
    terminal = Terminal(Checkout(tmp_path / "lora-forge"), tmp_path / "log")
    before = sorted(path.name for path in (ROOT / ".venv").iterdir())
    assert terminal.type("mkdir -p output/x && cd output/x; export GREETING='a\nb'; ONLY_HERE=1") == 0
    assert terminal.type('test "$(basename "$PWD") $GREETING" = "x a\nb" && test -z "${ONLY_HERE-}"') == 0, (
        terminal.said()
    )
    assert terminal.type("sleep 300 & echo $! >pid") == 0
    pid = (terminal.home / "output/x/pid").read_text().strip()
    eventually(lambda: not pathlib.Path(f"/proc/{pid}/cwd").exists(), "the end of what it left in the background")
    assert terminal.type("cd ../.. && make clean") == 0
    assert sorted(path.name for path in (ROOT / ".venv").iterdir()) == before
    assert (ROOT / ".trainer/env").is_dir()
