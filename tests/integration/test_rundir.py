"""What a run directory notes of processes, with real ones."""

from __future__ import annotations

import os
import subprocess
import sys

import rundir
from lab import eventually


def test_an_identity_names_one_process_for_good():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        noted = rundir.identity(process.pid)
        assert rundir.is_alive(noted)
        assert not rundir.is_alive({**noted, "start": noted["start"] + 1})
        assert not rundir.is_alive({**noted, "boot": "another"})
        process.kill()
        eventually(lambda: not rundir.is_alive(noted))  # a zombie until it is waited for
    assert not rundir.is_alive(rundir.identity(process.pid))


def test_processes_of_a_run_are_found_by_the_marker_alone(tmp_path):
    def child(value):
        env = {**os.environ, rundir.MARKER: value}
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=env)

    mine, other = child(str(tmp_path)), child(f"{tmp_path}-2")
    try:
        eventually(lambda: rundir.run_processes(tmp_path) == [mine.pid])
    finally:
        for process in (mine, other):
            process.kill()
            process.communicate()
    assert rundir.run_processes(tmp_path) == []
