"""A host is asked whether it is there while a call takes its time; silence is told, and has a bound."""

from __future__ import annotations

import subprocess

import pytest
from ansible.module_utils.lora_forge.controller.pulse import Pulse
from lab import alive

PATIENCE = 60.0


class Program:
    """Ends when it is told to."""

    def __init__(self):
        self.code, self.killed = None, False

    def poll(self):
        return self.code

    def kill(self):
        self.killed = True

    def wait(self):
        return self.code


class Scene:
    def __init__(self, **more):
        self.knocks, self.told = [], []
        self.pulse = Pulse(self.knock, self.told.append, PATIENCE, **more)

    def knock(self):
        self.knocks.append(Program())
        return self.knocks[-1]

    def silence(self, begin: float, end: float) -> float | None:
        """Let seconds pass; returns when it was enough."""
        time = begin
        while time <= end:
            if self.pulse.look(time):
                return time
            time += 0.5
        return None


def test_a_call_that_is_over_soon_asks_nothing():
    scene = Scene()
    assert scene.silence(100, 114) is None
    assert (scene.knocks, scene.told, scene.pulse.silent) == ([], [], False)


@pytest.mark.parametrize("took", [30.0, 33.0])
def test_a_look_at_a_run_that_waits_for_news_is_asked_beside_once(took):
    scene = Scene()
    for tenth in range(round(10 * took)):
        for program in scene.knocks:
            program.code = 0
        assert not scene.pulse.look(tenth / 10)
    assert len(scene.knocks) == 1


def test_a_silent_host_is_told_after_half_a_minute_and_given_up_after_a_minute_and_a_quarter():
    scene = Scene()
    assert scene.silence(100, 129.5) is None
    assert scene.told == []
    assert scene.silence(130, 1000) == 175
    assert scene.told == ["no answer for 0:30; it is waited for until 1:15"]
    assert len(scene.knocks) == 1, "the same question is waited for; more of them would wait behind it"
    assert scene.pulse.silent


@pytest.mark.parametrize("code", [0, 255])
def test_any_answer_will_do_and_it_is_asked_again_and_again(code):
    scene = Scene()
    for second in range(0, 3600):
        for program in scene.knocks:
            program.code = code
        assert not scene.pulse.look(float(second))
    assert 150 < len(scene.knocks) < 180
    assert scene.told == []


def test_a_host_that_falls_silent_later_is_told_as_soon():
    scene = Scene()
    scene.silence(0, 15)
    scene.knocks[0].code = 0
    assert scene.silence(15.5, 1000) == pytest.approx(90.5)
    assert scene.told == ["no answer for 0:30; it is waited for until 1:15"]


def test_that_it_answers_again_is_told():
    scene = Scene()
    scene.silence(0, 40)
    scene.knocks[0].code = 0
    assert scene.silence(40.5, 50) is None
    assert scene.told[1:] == ["it answers again"]
    assert not scene.pulse.silent


def test_a_connection_that_ssh_gives_up_is_no_answer_of_a_silent_host():
    scene = Scene()
    scene.silence(0, 40)
    scene.knocks[0].code = 255
    assert scene.silence(40.5, 55) is None
    assert scene.told == ["no answer for 0:30; it is waited for until 1:15"]
    assert scene.pulse.silent
    scene.silence(55.5, 61)
    scene.knocks[1].code = 0
    scene.silence(61.5, 62)
    assert scene.told[1:] == ["it answers again"]


def test_behind_a_transfer_an_answer_may_come_late():
    scene = Scene(holds=4.0)
    assert scene.silence(0, 1000) == 255
    assert scene.told == ["no answer for 0:30; it is waited for until 4:15"]


def test_where_no_process_can_be_started_the_calls_own_limit_is_left():
    scene = Scene()
    scene.pulse._knock = lambda: (_ for _ in ()).throw(OSError("no more processes"))
    assert scene.silence(0, 1000) is None


def test_nothing_is_left_and_nothing_begins_behind_the_end():
    programs = []

    def knock():
        programs.append(subprocess.Popen(["sleep", "600"]))
        return programs[-1]

    pulse = Pulse(knock, lambda words: None, PATIENCE)
    for time in (0, 20):
        pulse.look(time)
    pulse.end()
    assert not alive(programs[0].pid)
    assert not pulse.look(1000)
    assert len(programs) == 1
