"""The project's callback under real Ansible: what a user reads, on a terminal or in a file, and a program."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fcntl import ioctl
from functools import partial
from termios import TIOCSWINSZ
from typing import Any

import pyte
import pytest
import yaml
from lab import PATIENCE, ROOT, eventually

PLAYBOOK = str(ROOT / ".venv/bin/ansible-playbook")
COLUMNS, ROWS = 100, 30
# An action that tells what a training would, and goes on when a file is there.
ACTION = """
import pathlib, sys, time
import ansible.module_utils
ansible.module_utils.__path__.append("{root}/module_utils")
from ansible.module_utils.lora_forge.controller.actions import ForgeAction
from ansible.module_utils.lora_forge.controller.display import show, tell

class ActionModule(ForgeAction):
    def act(self, args):
        home = pathlib.Path(args["home"])
        if args.get("table"):
            show(["agent", "state"], [["witness", "to train"]], warnings=["long examples"], host=self.host)
            return {{"changed": False, "show": {{"columns": ["agent"]}}}}
        for step in (1, 2, 3):
            figures = {{"loss": f"loss {{8 - step}}.5"}}
            text = f"  {{self.host}}-agent  step {{step}}/3  loss {{8 - step}}.5"
            tell(text, host=self.host, run=f"{{self.host}}-agent", progress=(step, 3), figures=figures)
            (home / f"{{self.host}}-{{step}}").touch()
            while not (home / f"go-{{step}}").exists():
                time.sleep(0.02)
        tell(f"  {{self.host}}-agent  verified", host=self.host, stage="Collect", ends=True)
        return {{"changed": True, **args.get("answer", {{}})}}
"""


class Stage:
    """A small playbook with the project's settings, and an action that tells what a training would."""

    def __init__(self, home: pathlib.Path):
        self.home = home
        (home / "actions").mkdir()
        for name in ("deliver_run", "start_runs", "training_plan"):
            (home / "actions" / f"{name}.py").write_text(ACTION.format(root=ROOT))
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "ANSIBLE_NOCOLOR")},
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ACTION_PLUGINS": str(home / "actions"),
            "TERM": "xterm-256color",
            "PYTHONUNBUFFERED": "1",
        }

    def command(self, plays: list[dict[str, Any]], *options: str) -> list[str]:
        (self.home / "play.yml").write_text(yaml.safe_dump(plays))
        return [
            PLAYBOOK,
            "-i",
            "gpu-1,gpu-2",
            "-e",
            "ansible_connection=local",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            str(self.home / "play.yml"),
            *options,
        ]

    def run(self, plays: list[dict[str, Any]], *options: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(plays, *options), cwd=self.home, env=self.environment | more, capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip

    def go(self, *steps: int) -> None:
        for step in steps:
            (self.home / f"go-{step}").touch()


class Screen:
    """A terminal of a size, and what is on it."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: pathlib.Path):
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.file, inside = pty.openpty()
        ioctl(inside, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
        )
        os.close(inside)
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.file, 65536)
            except OSError:
                return
            if not data:
                return
            self.stream.feed(data)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def has(self, *words: str) -> bool:
        """Tell whether a line holds all of some words."""
        return any(all(word in line for word in words) for line in self.lines())

    def text(self) -> str:
        return "\n".join(self.lines())

    def end(self) -> int:
        code = self.process.wait(PATIENCE)
        self.reading.join(PATIENCE)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reading.join(PATIENCE)
        os.close(self.file)


@pytest.fixture
def stage(tmp_path: pathlib.Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def on_screen(stage: Stage) -> Iterator[Any]:
    opened: list[Screen] = []

    def start(plays: list[dict[str, Any]], *options: str, **more: str) -> Screen:
        opened.append(Screen(stage.command(plays, *options), stage.environment | more, stage.home))
        return opened[-1]

    yield start
    for screen in opened:
        screen.close()


def play(stage: Stage, *tasks: dict[str, Any], hosts: str = "all", name: str = "Train") -> dict[str, Any]:
    return {"name": name, "hosts": hosts, "gather_facts": False, "strategy": "free", "tasks": list(tasks)}


def training(stage: Stage, **answer: Any) -> dict[str, Any]:
    return {"name": "Deliver | Watch and collect", "deliver_run": {"home": str(stage.home), "answer": answer}}


def planning(stage: Stage) -> dict[str, Any]:
    return {"name": "Plan | Plan", "training_plan": {"home": str(stage.home), "table": True}}


def test_a_file_gets_a_line_for_each_progress_and_nothing_of_ansibles(stage: Stage) -> None:
    stage.go(1, 2, 3)
    done = stage.run([play(stage, planning(stage), hosts="gpu-1", name="Plan"), play(stage, training(stage))])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.rstrip("─ ") for line in lines[:4]] == [
        "Plan",
        "  agent    state",
        "  witness  to train",
        "  ! long examples",
    ]
    assert sum(line.startswith("Watch ─") for line in lines) >= 1
    for host in ("gpu-1", "gpu-2"):
        steps = [line for line in lines if line.startswith(f"  {host}-agent  step")]
        assert [line.split("  ")[2] for line in steps] == ["step 1/3", "step 2/3", "step 3/3"]
        assert f"  {host}-agent  verified" in lines
    assert not [word for word in ("TASK", "PLAY", "***", "ok:", "changed", "included", "\x1b") if word in done.stdout]
    assert done.stderr == ""


def test_on_a_terminal_two_runs_share_a_block_that_is_drawn_in_place(stage: Stage, on_screen: Any) -> None:
    screen = on_screen([play(stage, training(stage))])
    for step in (1, 2, 3):
        for host in ("gpu-1", "gpu-2"):
            eventually(partial(screen.has, f"{host}-agent", f"{step}/3"))
        bars = [line for line in screen.lines() if "-agent" in line]
        assert len(bars) == 2, bars
        assert all("━" in line and f"loss {8 - step}.5" in line for line in bars)
        stage.go(step)
    assert screen.end() == 0
    assert [line for line in screen.lines() if "verified" not in line and "─" not in line] == []
    assert sum("verified" in line for line in screen.lines()) == 2
    assert not screen.screen.cursor.hidden


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_a_terminal_gets_lines(stage: Stage, on_screen: Any, more: dict[str, str]) -> None:
    stage.go(1, 2, 3)
    screen = on_screen([play(stage, training(stage), hosts="gpu-1")], **more)
    assert screen.end() == 0
    assert [line.split("  ")[2] for line in screen.lines() if "step" in line] == ["step 1/3", "step 2/3", "step 3/3"]


def test_an_error_is_printed_once_and_the_recap_follows(stage: Stage) -> None:
    failing = {"name": "Fail", "ansible.builtin.fail": {"msg": "there is no agent «x»; did you mean «y»?"}}
    done = stage.run([play(stage, failing, hosts="gpu-1")])
    assert done.returncode == 2
    assert done.stdout.splitlines() == ["ERROR  gpu-1: there is no agent «x»; did you mean «y»?", "gpu-1: failures=1"]
    assert done.stderr == ""


def test_an_error_that_is_raised_again_is_not_printed_again(stage: Stage) -> None:
    again = {
        "name": "Try",
        "block": [{"name": "Fail", "ansible.builtin.fail": {"msg": "no room"}}],
        "rescue": [{"name": "Again", "ansible.builtin.fail": {"msg": "no room"}}],
    }
    done = stage.run([play(stage, again, hosts="gpu-1")])
    assert done.stdout.count("no room") == 1
    assert done.returncode == 2


def test_what_ansible_finds_wrong_has_its_place(stage: Stage) -> None:
    wrong = {"name": "Wrong", "ansible.builtin.set_fact": {"x": "{{ nothing_of_this_name }}"}}
    done = stage.run([play(stage, wrong, hosts="gpu-1")])
    assert "nothing_of_this_name" in done.stdout
    assert f"{stage.home}/play.yml:" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_failure_that_is_ignored_is_none(stage: Stage) -> None:
    ignored = {"name": "Fail", "ansible.builtin.fail": {"msg": "never mind"}, "ignore_errors": True}
    done = stage.run([play(stage, ignored, hosts="gpu-1")])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_with_v_everything_is_shown_as_ansible_does(stage: Stage) -> None:
    stage.go(1, 2, 3)
    plays = [play(stage, planning(stage), {"name": "Ok", "ansible.builtin.ping": {}}, training(stage), hosts="gpu-1")]
    done = stage.run(plays, "-v")
    assert done.returncode == 0, done.stdout
    for part in (
        "PLAY [Train] ***",
        "TASK [Ok] ***",
        "ok: [gpu-1]",
        "changed: [gpu-1] =>",
        "PLAY RECAP ***",
        "  witness  to train",
    ):
        assert part in done.stdout
    assert "  gpu-1-agent  step 2/3  loss 6.5" in done.stdout


@pytest.mark.parametrize("callback", ["ansible.posix.json", "minimal", "oneline", "default"])
def test_another_callback_prints_as_it_does_and_people_read_standard_error(stage: Stage, callback: str) -> None:
    stage.go(1, 2, 3)
    plays = [play(stage, planning(stage), training(stage), hosts="gpu-1")]
    done = stage.run(plays, ANSIBLE_STDOUT_CALLBACK=callback)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/3" not in done.stdout
    assert "  gpu-1-agent  step 2/3  loss 6.5\n" in done.stderr
    assert "  witness  to train\n" in done.stderr
    if callback == "ansible.posix.json":
        tasks = json.loads(done.stdout)["plays"][0]["tasks"]
        assert tasks[0]["hosts"]["gpu-1"]["show"] == {"columns": ["agent"]}


def test_the_log_of_ones_own_has_the_recap(stage: Stage) -> None:
    log = stage.home / "ansible.log"
    done = stage.run(
        [play(stage, {"name": "Ok", "ansible.builtin.ping": {}}, hosts="gpu-1")], ANSIBLE_LOG_PATH=str(log)
    )
    assert done.stdout == ""
    assert "gpu-1: ok=1" in log.read_text()


def test_ctrl_c_says_what_goes_on_and_leaves_the_terminal_as_it_was(stage: Stage, on_screen: Any) -> None:
    (stage.home / "actions/start_runs.py").write_text(
        "from ansible.plugins.action import ActionBase\n\nclass ActionModule(ActionBase):\n    def run(self, tmp=None, "
        'task_vars=None):\n        return {"runs": [{"state": "absent", "run_id": "witness-1", "agent": "witness"}]}\n'
    )
    launching = {"name": "Launch | Start it", "start_runs": {}}
    screen = on_screen([play(stage, launching, training(stage), hosts="gpu-1")])
    eventually(lambda: "1/3" in screen.text())
    os.killpg(screen.process.pid, signal.SIGINT)
    assert screen.end() != 0
    text = " ".join(screen.text().split())
    assert "witness-1 keeps running on gpu-1; the same command attaches to it" in text
    assert "playbooks/stop.yml -e role=witness" in text
    assert "Interrupted." in text
    assert "[ERROR]" not in text
    assert "━" not in text, "the bar is gone"
    assert not screen.screen.cursor.hidden


def test_the_same_words_of_two_tasks_are_two_errors_with_their_tasks(stage: Stage) -> None:
    tasks = [
        {"name": "Try", "block": [{"name": "First", "command": "false"}], "rescue": [{"name": "Go on", "ping": {}}]},
        {"name": "Second", "ansible.builtin.shell": "echo no space; false"},
    ]
    done = stage.run([play(stage, *tasks, hosts="gpu-1")])
    assert done.stdout.count("ERROR  gpu-1: non-zero return code") == 2
    for part in ("in the task «First», ", "in the task «Second», ", "no space", f"{stage.home}/play.yml:"):
        assert part in done.stdout


def test_nothing_of_a_task_that_may_not_be_logged_is_printed(stage: Stage) -> None:
    secret = {"name": "Log in", "ansible.builtin.shell": "echo s3cret >&2; echo s3cret; false", "no_log": True}
    done = stage.run([play(stage, secret, hosts="gpu-1")])
    assert "s3cret" not in done.stdout + done.stderr
    assert "why is hidden by no_log" in done.stdout
    assert "in the task «Log in»" in done.stdout


def test_what_a_debug_task_says_is_printed_and_a_handler_is_no_news(stage: Stage) -> None:
    tasks = [
        {"name": "Say", "ansible.builtin.debug": {"msg": "hello \x1b[2J there"}},
        {"name": "Change", "ansible.builtin.command": "true", "notify": ["Handle"]},
    ]
    handled = play(stage, *tasks, hosts="gpu-1") | {"handlers": [{"name": "Handle", "ansible.builtin.ping": {}}]}
    done = stage.run([handled])
    assert done.stdout == "hello  [2J there\n"


def interrupted(stage: Stage, screen: Screen) -> str:
    os.killpg(screen.process.pid, signal.SIGINT)
    assert screen.end() != 0
    return " ".join(screen.text().split())


@pytest.mark.parametrize("options", [(), ("-v",)])
def test_ctrl_c_while_only_watching_says_that_the_training_goes_on(
    stage: Stage, on_screen: Any, options: tuple[str, ...]
) -> None:
    skipped = {"name": "Order", "when": False, "runpod_pod": {}}
    (stage.home / "actions/runpod_pod.py").write_text(ACTION.format(root=ROOT))
    of_a_sweep = ACTION.replace('run=f"{{self.host}}-agent"', 'run="witness r=8"').format(root=ROOT)
    (stage.home / "actions/deliver_run.py").write_text(of_a_sweep)
    screen = on_screen([play(stage, skipped, training(stage), hosts="gpu-1")], *options)
    eventually(lambda: "1/3" in screen.text())
    text = interrupted(stage, screen)
    assert "witness r=8 keeps running on gpu-1; the same command attaches to it" in text
    assert text.count("playbooks/stop.yml -e role=witness") == 1
    assert "Nothing was launched" not in text
    assert "ordered" not in text


@pytest.mark.parametrize("options", [(), ("-v",)])
def test_ctrl_c_while_a_pod_is_ordered_says_that_it_may_cost(
    stage: Stage, on_screen: Any, options: tuple[str, ...]
) -> None:
    (stage.home / "actions/runpod_pod.py").write_text(
        "import pathlib, time\nfrom ansible.plugins.action import ActionBase\n\nclass ActionModule(ActionBase):\n    "
        f"def run(self, tmp=None, task_vars=None):\n        pathlib.Path({str(stage.home / 'began')!r}).touch()\n"
        "        time.sleep(600)\n"
    )
    screen = on_screen([play(stage, {"name": "Order", "runpod_pod": {}}, hosts="gpu-1")], *options)
    eventually((stage.home / "began").exists)
    text = interrupted(stage, screen)
    assert "gpu-1 was being ordered: it may be rented, and cost, already" in text


def test_nothing_is_drawn_over_a_question(stage: Stage, on_screen: Any) -> None:
    (stage.home / "actions/start_runs.py").write_text(
        "from ansible.plugins.action import ActionBase\n\nclass ActionModule(ActionBase):\n    def run(self, tmp=None, "
        "task_vars=None):\n        return {}\n"
    )
    asking = play(stage, {"name": "Say", "ansible.builtin.fail": {"msg": "it is {{ colour }}"}}, hosts="gpu-1")
    asking["vars_prompt"] = [{"name": "colour", "prompt": "Which colour", "private": False}]
    screen = on_screen([play(stage, {"name": "Launch | Start", "start_runs": {}}, {"command": "sleep 1"}), asking])
    eventually(partial(screen.has, "Which colour"))
    os.write(screen.file, b"r")
    eventually(partial(screen.has, "Which colour: r"))
    time.sleep(1.5)  # time in which it would be drawn
    assert screen.lines() == ["Which colour: r"]
    os.write(screen.file, b"ed\n")
    screen.end()
    assert "ERROR  gpu-1: it is red" in screen.lines()


def test_where_nobody_reads_any_longer_the_command_ends_all_the_same(stage: Stage) -> None:
    stage.go(1, 2, 3)
    process = subprocess.Popen(
        stage.command([play(stage, planning(stage), training(stage))]), cwd=stage.home, env=stage.environment,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    try:
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_pipe_gets_each_line_at_once(stage: Stage) -> None:
    buffered = {name: value for name, value in stage.environment.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        stage.command([play(stage, training(stage), hosts="gpu-1")]), cwd=stage.home, env=buffered,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    for step in (1, 2, 3):  # the action waits until its last line was read here
        while f"step {step}/3".encode() not in process.stdout.readline():
            assert process.poll() is None
        stage.go(step)
    assert process.wait(PATIENCE) == 0
    process.stdout.close()


@pytest.mark.parametrize(("hosts", "shown"), [("localhost", False), ("gpu-1", True)])
def test_only_the_controllers_own_play_may_say_that_an_error_is_told_already(
    stage: Stage, hosts: str, shown: bool
) -> None:
    failing = {"name": "Fail", "fail_again": {"failure": {"msg": "not verified", "told": True}}}
    plays = [play(stage, failing, hosts=hosts)]
    done = stage.run(plays, ANSIBLE_ACTION_PLUGINS=str(ROOT / "action_plugins"))
    assert done.returncode == 2
    assert ("ERROR  gpu-1: not verified" in done.stdout) == shown
