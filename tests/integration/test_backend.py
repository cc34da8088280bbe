"""What keeps a supervisor running, for real: a tmux session, and a process without any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import backend
from ansible.module_utils.lora_forge.trainer.backend import Choice
from lab import eventually, go_on, status, until


@pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")
def test_a_real_tmux_session_owns_the_run(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("TMUX_TMPDIR", str(tmp_path))  # a server of its own
    monkeypatch.delenv("TMUX", raising=False)
    run = lab.make("test-tmux-1", where=tmp_path / "a folder", stay_at=1)
    other = lab.make("test-tmux-1", where=tmp_path / "another", lane="GPU-2", steps=2)
    tmux = Choice("tmux", "", "")
    try:
        look = backend.start(tmux, run.name, run, 10)
        assert look.startswith("tmux attach -t test-tmux-1-")
        until(run, "running")
        with pytest.raises(UserError, match="duplicate session"):
            backend.start(tmux, run.name, run, 10)
        assert backend.start(tmux, other.name, other, 10) != look  # of another checkout
        until(other, "finished")
        go_on(run)
        until(run, "finished")
        eventually(lambda: backend.run_command(["tmux", "has-session", "-t", look.split()[-1]])[0] != 0)
        assert backend.start(tmux, run.name, run, 10)  # the name is free again
    finally:
        subprocess.run(["tmux", "kill-server"], capture_output=True, check=False)


def test_a_real_detached_process_outlives_the_one_that_started_it(lab):
    run = lab.make(hang_at=1)
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]; import ansible.module_utils as m; "
        "m.__path__.append(sys.argv[2]); from ansible.module_utils.lora_forge.trainer import backend as b; "
        "print(b.start(b.Choice('process', '', ''), 'w', pathlib.Path(sys.argv[1]), 9))"
    )
    utils = str(backend.__file__).partition("/lora_forge/")[0]
    done = subprocess.run([sys.executable, "-c", code, str(run), utils], capture_output=True, text=True, check=True)
    assert done.stdout == f"tail -f {run}/supervisor.log\n"
    noted = until(run, "running")["supervisor"]
    assert rundir.is_alive(noted)
    assert os.getsid(noted["pid"]) == noted["pid"]
    assert status(run)["state"] == "running"
