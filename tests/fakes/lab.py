"""Run directories with the fake trainer in them, and real supervisor processes; everything ends with the test."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import uuid
from typing import Any, Callable

import rundir
from ansible.module_utils.lora_forge.trainer.launching import Launch

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "fakes" / "trainer.py"
PATIENCE = 120.0  # seconds; what has not happened by then, on however slow a machine, never will


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return the first true value of a condition; fail when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {condition}")


def alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    return rundir.process_start(pid) is not None


class Lab:
    """A folder of runs on one pretended trainer.

    Attributes:
        python: The Python that supervisors and their fake trainers run on; this one, unless a test sets another.
    """

    def __init__(self, root: pathlib.Path):
        self.python = sys.executable
        self.root = root
        self.made: list[pathlib.Path] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def spec(
        self,
        run_id: str,
        lane: str = "cpu",
        stop_timeout: float = PATIENCE,
        turn: int = 0,
        processes: int = 1,
        answer_command: tuple[str, ...] = (),
        **fake: Any,
    ) -> dict[str, Any]:
        """Return what becomes run.json; ``fake`` are settings of the fake trainer, in lower case."""
        env = {f"FAKE_{name.upper()}": str(value) for name, value in fake.items()}
        command = [self.python, str(FAKE)]
        return {"run_id": run_id, "launch": uuid.uuid4().hex, "lane": lane, "lane_dir": str(self.root),
                "turn": turn, "processes": processes, "command": command, "env": env,
                "answer_command": [*answer_command], "stop_timeout": stop_timeout}  # fmt: skip

    def launch(self, run_id: str = "witness-0", facts: dict[str, Any] | None = None, **settings: Any) -> Launch:
        """Return what ``launching.start`` takes; see :meth:`spec`."""
        spec = self.spec(run_id, **settings)
        return Launch.from_dict(spec | {"environment": spec["env"], "facts": facts or {}})

    def stage(self, run_id: str = "witness-0", where: pathlib.Path | None = None) -> pathlib.Path:
        """Make a run directory with supervisor.py (of a faster pulse), and what it imports, in it."""
        run_dir = (where or self.root) / run_id
        programs = run_dir / rundir.PROGRAMS
        programs.mkdir(parents=True)
        text = (ROOT / "roles/run/files/supervisor.py").read_text()
        for old, new in (
            ("HEARTBEAT = 5.0 ", "HEARTBEAT = 0.3 "),
            ("TICK = 0.2 ", "TICK = 0.03 "),
            ("PAUSES = (2.0, 4.0, 8.0, 16.0)", "PAUSES = (0.1, 0.2, 0.3, 0.4)"),
        ):
            assert old in text
            text = text.replace(old, new)
        (programs / "supervisor.py").write_text(text)
        for beside in ("roles/run/files/slurm_job.py", "module_utils/lora_forge/rundir.py"):
            shutil.copy(ROOT / beside, programs)
        self.made.append(run_dir)
        return run_dir

    def make(self, run_id: str = "witness-0", where: pathlib.Path | None = None, **settings: Any) -> pathlib.Path:
        """Make a run directory that is ready for its supervisor."""
        run_dir = self.stage(run_id, where)
        rundir.write_json(run_dir / "run.json", self.spec(run_id, **settings))
        return run_dir

    def change(self, run_dir: pathlib.Path, **settings: Any) -> None:
        """Give a run other settings for its next start."""
        rundir.write_json(run_dir / "run.json", self.spec(run_dir.name, **settings))

    def supervise(self, run_dir: pathlib.Path) -> subprocess.Popen[bytes]:
        """Start a supervisor, as a backend does."""
        with (run_dir / "supervisor.out").open("ab") as out:
            command = [self.python, str(run_dir / rundir.PROGRAMS / "supervisor.py"), str(run_dir)]
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self.started.append(process)
        return process

    def close(self) -> None:
        """Kill what is left, supervisors first, so that they start nothing new."""
        for process in self.started:
            process.kill()
            process.wait()
        for run_dir in self.made:
            noted = rundir.read_json(run_dir / "status.json").get("supervisor")
            if rundir.is_alive(noted) and noted["pid"] != os.getpid():
                os.kill(noted["pid"], signal.SIGKILL)
            eventually(lambda run_dir=run_dir: not kill_all(rundir.run_processes(run_dir)))


def kill_all(pids: list[int]) -> list[int]:
    """Kill processes; returns their pids."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def status(run_dir: pathlib.Path) -> dict[str, Any]:
    """status.json as it is now."""
    return rundir.read_json(run_dir / "status.json")


def until(run_dir: pathlib.Path, *states: str, seconds: float = PATIENCE) -> dict[str, Any]:
    """Wait until status.json says one of the states."""
    try:
        eventually(lambda: status(run_dir).get("state") in states, seconds)
    except AssertionError:
        words = [(run_dir / name).read_text() for name in ("supervisor.log", "train.log") if (run_dir / name).exists()]
        raise AssertionError(f"{run_dir.name} is not {states}: {status(run_dir)}\n" + "\n".join(words)) from None
    return status(run_dir)


def events(run_dir: pathlib.Path, kind: str = "") -> list[dict[str, Any]]:
    """Return the events of metrics.jsonl."""
    found, _ = rundir.read_events(run_dir / "metrics.jsonl")
    return [event for event in found if not kind or event["event"] == kind]


def reached(run_dir: pathlib.Path, step: int) -> None:
    """Wait until a step was logged."""
    eventually(lambda: any(event["step"] >= step for event in events(run_dir, "log")))


def go_on(run_dir: pathlib.Path) -> None:
    """Let a trainer go on from where it hangs or stays."""
    (run_dir / "go").touch()


def one_after_the_other(*run_dirs: pathlib.Path) -> bool:
    """Tell whether each run's last training had ended, as it noted itself, when the next one's began."""
    begins = [events(run_dir, "begin")[0]["time"] for run_dir in run_dirs]
    ends = [events(run_dir, "end")[-1]["time"] for run_dir in run_dirs]
    return all(end <= begin for end, begin in zip(ends, begins[1:]))


def starts(run_dir: pathlib.Path) -> list[int]:
    """List the steps from which the trainers of the run started."""
    path = run_dir / "starts.txt"
    return [int(line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []


def counted_steps(run_dir: pathlib.Path) -> list[int]:
    """List the logged steps of the history that counts."""
    return [event["step"] for event in rundir.surviving_events(events(run_dir)) if event["event"] == "log"]
