"""What stands on the terminal: headings, seconds, rows, errors, and what is said when a command is interrupted."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pyte
import pytest
from ansible.module_utils.lora_forge.controller import display
from ansible.module_utils.lora_forge.controller.display import Line
from ansible.module_utils.lora_forge.controller.progress_block import ProgressBlock
from ansible.module_utils.lora_forge.controller.terminal import (
    Row,
    Terminal,
    error_text,
    explains_itself,
    is_repeated,
    what_goes_on,
)
from wire import Clock


class Told:
    """A terminal with a clock that is set by hand, and what was printed."""

    def __init__(self, draws: bool = False):
        self.clock = Clock()
        self.terminal = Terminal(draws, self.clock.now)
        self.printed: list[str] = []

    def begin(self, host: str, stage: str | None, task: str = "") -> None:
        self.printed += self.terminal.begin(host, stage, task)

    def end(self, host: str) -> None:
        self.printed += self.terminal.end(host)

    def tell(self, text: str, **about: Any) -> None:
        self.printed += self.terminal.tell(Line(text, **about))

    def step(self, host: str, run: str, done: int, **figures: str) -> None:
        self.tell(f"  {run}  step {done}/12", host=host, run=run, progress=(done, 12), figures=figures)


@pytest.fixture
def told() -> Told:
    return Told()


# --- headings -------------------------------------------------------------------------------------------------------


def test_a_stage_of_one_line_is_one_line(told):
    told.begin("gpu-1", "Launch")
    told.tell("  gpu-1: witness-1 started", host="gpu-1")
    assert told.printed == ["Launch ── gpu-1: witness-1 started"]


def test_what_follows_stands_under_the_heading(told):
    told.begin("gpu-1", "Provision")
    told.tell("  gpu-1: 3 files staged", host="gpu-1")
    told.tell("  gpu-1: the environment is made", host="gpu-1")
    assert told.printed == ["Provision ── gpu-1: 3 files staged", "  gpu-1: the environment is made"]


def test_progress_and_tables_stand_under_a_rule(told):
    told.begin("gpu-1", "Watch")
    told.step("gpu-1", "witness", 1)
    told.step("gpu-1", "witness", 2)
    assert [line.rstrip("─") for line in told.printed] == ["Watch ", "  witness  step 1/12", "  witness  step 2/12"]


def test_two_hosts_in_one_stage_share_a_heading_and_other_stages_get_theirs(told):
    told.begin("gpu-1", "Launch")
    told.begin("gpu-2", "Launch")
    told.tell("  gpu-1: a started", host="gpu-1")
    told.tell("  gpu-2: b started", host="gpu-2")
    told.begin("gpu-1", "Watch")
    told.step("gpu-1", "a", 1)
    told.tell("  gpu-2: c started", host="gpu-2")
    assert [line.split(" ── ")[0].rstrip("─ ") for line in told.printed] == [
        "Launch", "  gpu-2: b started", "Watch", "  a  step 1/12", "Launch",
    ]  # fmt: skip


def test_what_belongs_to_no_stage_has_no_heading(told):
    told.tell("  agent  run", host="localhost")
    told.begin("localhost", "")
    told.tell("witness is ready", host="localhost")
    assert told.printed == ["  agent  run", "witness is ready"]


def test_an_action_may_begin_a_stage_itself(told):
    told.begin("gpu-1", "Watch")
    told.tell("  gpu-1: verifying", host="gpu-1", stage="Collect", passing=True)
    told.tell("  witness  verified", host="gpu-1")
    assert [line.rstrip("─ ") for line in told.printed] == ["Collect", "  witness  verified"]


# --- seconds --------------------------------------------------------------------------------------------------------


def test_the_end_of_a_stage_says_how_long_it_took(told):
    told.begin("gpu-1", "Launch")
    told.clock.sleep(3.4)
    told.tell("  gpu-1: witness-1 started\n    resumes by itself", host="gpu-1", ends=True)
    assert told.printed == ["Launch ── gpu-1: witness-1 started, 3 s\n    resumes by itself"]


def test_provisioning_says_when_it_is_done(told):
    told.begin("gpu-1", "Provision")
    told.begin("gpu-1", None)
    told.clock.sleep(130)
    told.begin("gpu-1", "Launch")
    assert told.printed == ["Provision ── gpu-1: fit to train, 2:10"]


def test_a_host_that_was_fit_at_once_is_no_news(told):
    told.begin("gpu-1", "Provision")
    told.clock.sleep(0.5)
    told.begin("gpu-1", "Launch")
    assert told.printed == []


def test_check_mode_makes_no_host_fit(told):
    told.terminal = Terminal(False, told.clock.now, checks=True)
    told.begin("gpu-1", "Provision")
    told.clock.sleep(30)
    told.begin("gpu-1", "Launch")
    assert told.printed == []


def test_a_stage_that_fails_is_not_told_as_done(told):
    told.begin("gpu-1", "Provision")
    told.clock.sleep(30)
    assert told.terminal.end("gpu-1", failed=True) == []
    told.begin("gpu-1", "Launch")
    assert told.printed == []


def test_the_end_of_a_play_ends_all_stages(told):
    told.begin("gpu-1", "Provision")
    told.begin("gpu-2", "Provision")
    told.clock.sleep(5)
    printed = told.terminal.finish()
    assert printed == ["Provision ── gpu-1: fit to train, 5 s", "  gpu-2: fit to train, 5 s"]
    assert told.terminal.rows() == []


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_on_a_terminal_progress_is_drawn_and_not_printed():
    told = Told(draws=True)
    told.begin("gpu-1", "Watch")
    told.step("gpu-1", "witness", 3, loss="loss 7.6", eta="eta 0:10")
    told.step("gpu-1", "witness", 4, eval="eval 7.5")
    assert told.printed == []
    (row,) = told.terminal.rows()
    assert (row.who, row.progress) == ("witness", (4, 12))
    assert row.figures == {"loss": "loss 7.6", "eta": "eta 0:10", "eval": "eval 7.5"}


def test_before_its_first_step_a_run_says_what_it_waits_for():
    told = Told(draws=True)
    told.begin("gpu-1", "Watch")
    told.tell("  witness  started; it takes a while", host="gpu-1", run="witness", progress=(0, 0))
    (row,) = told.terminal.rows()
    assert (row.progress, row.text) == (None, "started; it takes a while")
    told.step("gpu-1", "witness", 1)
    assert told.terminal.rows()[0].progress == (1, 12)


def test_each_run_of_a_host_has_a_row_and_a_host_without_one_says_what_it_waits_for():
    told = Told(draws=True)
    told.begin("gpu-1", "Watch")
    told.step("gpu-1", "a", 1)
    told.step("gpu-1", "b", 2)
    told.begin("gpu-2", "Provision", "Make the environment")
    assert [(row.who, row.text) for row in told.terminal.rows()] == [
        ("a", "step 1/12"),
        ("b", "step 2/12"),
        ("gpu-2", "Make the environment"),
    ]
    told.tell("  gpu-2: 3.2 of 15.2 GB", host="gpu-2", passing=True)
    assert told.terminal.rows()[-1].text == "3.2 of 15.2 GB"
    told.end("gpu-1")
    assert [row.who for row in told.terminal.rows()] == ["gpu-2"]


def test_what_only_passes_is_printed_nowhere(told):
    told.begin("gpu-1", "Collect")
    told.tell("  gpu-1: fetching", host="gpu-1", passing=True)
    assert told.printed == []


def test_a_screen_takes_the_place_of_the_one_before_and_stays_at_the_end():
    told = Told(draws=True)
    told.tell("first", screen=True)
    told.tell("second", screen=True)
    assert told.printed == []
    assert told.terminal.screen == "second"
    assert told.terminal.finish() == ["second"]
    assert told.terminal.screen == ""


def test_where_nothing_is_drawn_each_screen_is_printed(told):
    told.tell("first", screen=True)
    told.tell("second", screen=True)
    assert told.printed == ["first", "second"]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_block_shows_a_bar_and_goes_without_a_trace(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file, clock = Tty(), Clock()
    block = ProgressBlock(file, clock.now)
    row = Row("witness", "Watch", "", clock.now(), (6, 12), {"eta": "eta 0:10", "loss": "loss 7.6"})
    waiting = Row("gpu-2", "Provision", "Make the environment", clock.now())
    block.draw([row, waiting])
    drawn = file.getvalue()
    assert "witness" in drawn
    assert " 6/12  50%" in drawn
    assert drawn.index("loss 7.6") < drawn.index("eta 0:10")
    assert "gpu-2" not in drawn, "what has just begun would only flicker"
    clock.sleep(12)
    block.draw([row, waiting])
    assert "0:12" in file.getvalue()
    assert file.getvalue().count("\x1b[?25h") >= file.getvalue().count("\x1b[?25l"), "a killed command leaves a cursor"
    block.erase()
    assert file.getvalue().endswith("\x1b[1A\x1b[2K"), "the cursor is where the block began, and its lines are empty"


@pytest.fixture
def draw(monkeypatch):
    """Draw on a terminal of a size; return its lines."""

    def drawn(columns: int, height: int, rows: list[Row], screen: str = "") -> list[str]:
        for name, value in {"TERM": "xterm", "COLUMNS": str(columns), "LINES": str(height)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)
        terminal, file = pyte.Screen(columns, height), Tty()
        block = ProgressBlock(file, Clock().now)
        block.draw(rows, screen)
        stream = pyte.Stream(terminal)
        stream.feed(file.getvalue().replace("\n", "\r\n"))
        lines = [line.rstrip() for line in terminal.display]
        before = len(file.getvalue())
        block.erase()
        stream.feed(file.getvalue()[before:].replace("\n", "\r\n"))
        assert not "".join(terminal.display).strip(), "nothing of it stays"
        return lines

    return drawn


def training(name: str) -> Row:
    return Row(name, "Watch", "", 0.0, (3, 12), {"loss": "loss 7.6", "eval": "eval 7.5", "eta": "eta 0:10"})


def test_what_is_higher_than_the_terminal_is_cut_and_leaves_nothing_behind(draw):
    lines = draw(80, 6, [training(f"agent-{number}") for number in range(20)])
    assert [line.split()[0] for line in lines[:4]] == ["agent-0", "agent-1", "agent-2", "agent-3"]
    assert lines[4:] == ["  and 16 more", ""]
    lines = draw(80, 6, [training("agent")], "\n".join(f"row {number}" for number in range(20)))
    assert lines == ["row 0", "row 1", "row 2", "row 3", "row 4", ""]


@pytest.mark.parametrize("columns", [28, 40, 60, 80])
def test_a_narrow_terminal_shows_who_and_how_far(draw, columns):
    lines = draw(columns, 6, [training("witness"), training("mayor")])
    assert all("3/12  25%" in line for line in lines[:2]), lines
    assert lines[0].startswith("  witness ")
    assert ("━" in lines[0]) == (columns >= 80)


@pytest.mark.parametrize(("columns", "bar"), [(80, 8), (90, 16), (118, 24)])
def test_the_bar_gives_way_to_the_figures_and_the_time_left_is_seen(draw, columns, bar):
    figures = {"loss": "loss 7.627", "eval": "eval 7.636", "speed": "2.7 k tok/s", "eta": "eta 0:12"}
    (line,) = draw(columns, 3, [Row("witness", "Watch", "", 0.0, (3, 12), figures)])[:1]
    assert line.endswith("  25%  loss 7.627  eval 7.636  2.7 k tok/s  eta 0:12")
    assert line.count("━") + line.count("╺") == bar


def test_what_waits_has_the_whole_line_where_nothing_has_a_bar(draw):
    words = "started; Axolotl takes about half a minute until its first step"
    line = draw(90, 3, [Row("witness", "Watch", words, Clock().now() - 1)])[0]
    assert line == f"  witness  Watch  0:01  {words}"


def test_wide_letters_do_not_break_a_row(draw):
    lines = draw(80, 6, [training("エージェント"), training("🚀")])
    assert all("3/12  25%" in line and "loss 7.6" in line for line in lines[:2]), lines


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_error_is_a_sentence():
    answer = {"msg": "Task failed: Action failed: there is no agent «x»\nAgents: crew"}
    assert error_text(answer, "") == "ERROR  there is no agent «x»\n       Agents: crew"


def test_an_error_names_its_host_once():
    assert error_text({"msg": "no GPU"}, "gpu-1") == "ERROR  gpu-1: no GPU"
    assert error_text({"msg": "gpu-1 has no GPU"}, "gpu-1") == "ERROR  gpu-1 has no GPU"
    lost = {"msg": "Failed to connect to the host via ssh: refused", "unreachable": True}
    told, advice = error_text(lost, "gpu-1").splitlines()
    assert told == "ERROR  gpu-1 does not answer: refused"
    assert "What runs there goes on" in advice
    explained = {"msg": "Task failed: gpu-1 refuses the login: no\nCorrect ansible_user", "unreachable": True}
    told = error_text(explained, "gpu-1", "play.yml:4")
    assert told == "ERROR  gpu-1 refuses the login: no\n       Correct ansible_user"


def test_what_a_program_printed_as_it_failed_is_shown():
    text = error_text({"msg": "non-zero return code", "stderr": "\n".join(map(str, range(30)))}, "gpu-1")
    assert text.splitlines()[0] == "ERROR  gpu-1: non-zero return code"
    assert [line.strip() for line in text.splitlines()[1:]] == [str(number) for number in range(20, 30)]


def test_an_error_without_words_is_one():
    assert error_text({}, "gpu-1") == "ERROR  gpu-1: it failed"


def test_what_a_program_printed_elsewhere_is_shown_where_it_said_nothing_as_an_error():
    assert error_text({"msg": "non-zero return code", "stdout": "no space\n", "stderr": ""}, "gpu-1").splitlines() == [
        "ERROR  gpu-1: non-zero return code",
        "       no space",
    ]


def test_an_error_of_a_loop_names_the_item():
    assert error_text({"msg": "no"}, "gpu-1", item="mayor") == "ERROR  gpu-1: no (item mayor)"


def test_what_may_not_be_logged_says_so():
    answer = {"censored": "the output has been hidden", "changed": True}
    assert error_text(answer, "gpu-1", item="secret") == "ERROR  gpu-1: it failed; why is hidden by no_log"


def test_a_file_that_is_not_there_is_the_reason():
    assert error_text({"reason": "Could not find x.yml\nmore"}, "gpu-1") == "ERROR  gpu-1: Could not find x.yml"


@pytest.mark.parametrize(
    ("action", "does"),
    [("start_runs", True), ("ansible.builtin.fail", True), ("ansible.builtin.command", False), ("a.b.c", False)],
)
def test_which_failures_need_the_name_of_their_task(action, does):
    assert explains_itself(action) == does


# --- an interruption ------------------------------------------------------------------------------------------------


def test_an_interruption_says_what_goes_on_what_it_costs_and_the_ways_on():
    text = what_goes_on([("witness-1", "witness", "pod-1")], [("pod-1", 0.49, 0.0)], "-i inventory/runpod.yml ")
    assert "witness-1 keeps running on pod-1; the same command attaches to it" in text
    assert "ansible-playbook -i inventory/runpod.yml playbooks/stop.yml -e role=witness" in text
    assert "pod-1 costs 0.49 USD/h" in text
    assert "ansible-playbook -i inventory/runpod.yml playbooks/release.yml -e pod=pod-1" in text


def test_an_interruption_before_a_launch_says_so():
    assert "Nothing was launched" in what_goes_on([], [], "", begun={"Plan", "Provision"})
    assert what_goes_on([], [], "", begun={"Plan"}).strip() == "Nothing was started."
    assert what_goes_on([], [], "") == "", "a command that only looks has nothing to say"


def test_the_commands_it_names_find_the_same_run_and_show_no_secret():
    given = ['{"recipe": {"lora_r": 8}}', "role=witness", "run_notify_url=https://hooks.example.org/T0/x", "fresh=true"]
    assert [text for text in given if is_repeated(text)] == ['{"recipe": {"lora_r": 8}}', "fresh=true"]
    text = what_goes_on([("witness-1", "witness", "gpu-1")], [], "", options=" -e fresh=true")
    assert "playbooks/stop.yml -e role=witness -e fresh=true" in text
    assert "playbooks/logs.yml -e role=witness -e follow=true -e fresh=true" in text


def test_an_interruption_while_a_pod_is_ordered_says_that_it_may_cost():
    text = what_goes_on([], [], "-i inventory/runpod.yml ", ["pod-1"])
    assert "pod-1 was being ordered: it may be rented, and cost, already" in text
    assert "ansible-playbook -i inventory/runpod.yml playbooks/release.yml -e pod=pod-1" in text


# --- what a trainer may have said -----------------------------------------------------------------------------------


def test_what_is_told_cannot_move_the_cursor_or_turn_the_writing():
    line = Line("  gpu-1: \x1b]0;title\x07\x1b[2Jgone\u202e abc\r\x9b31m\ttab\nnext")
    assert line == "  gpu-1:  ]0;title  [2Jgone  abc  31m\ttab\nnext"


def test_a_line_goes_through_a_queue_with_what_it_is_about():
    line = pickle.loads(pickle.dumps(Line("x", host="gpu-1", run="witness", progress=(1, 2), figures={"loss": "1"})))
    assert (line, line.host, line.run, line.progress, line.figures) == ("x", "gpu-1", "witness", (1, 2), {"loss": "1"})


class Heard:
    """Ansible's display, and what went to it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bool]] = []

    def display(self, text: str, color: str | None = None, stderr: bool = False) -> None:
        self.heard.append((text, stderr))


@pytest.mark.parametrize("ours", [True, False])
def test_under_another_callback_people_are_told_on_standard_error(monkeypatch, ours):
    heard = Heard()
    monkeypatch.setattr(display, "Display", lambda: heard)
    monkeypatch.setattr(display, "CALLBACK_IS_OURS", ours)
    display.show(["agent"], [["witness"]], ["below"], ["careful"])
    display.tell("passes", passing=True)
    shown = [("  agent\n  witness\nbelow", not ours), ("  ! careful", not ours)]
    assert heard.heard == [*shown, *([("passes", False)] if ours else [])]
