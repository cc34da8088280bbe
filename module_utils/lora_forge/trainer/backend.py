"""What keeps a supervisor running on a trainer: systemd, tmux, or a process of its own session; Slurm has slurm.py.

One contract for all three: :func:`choose`, :func:`start`, :func:`remove_unit`. Whether a run is alive is asked of
the run directory, never of them. Runs on trainers: Python 3.9 or newer.
"""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import slurm_commands

_BACKENDS = ("systemd", "tmux", "process", "slurm")
SYSTEM_UNITS = pathlib.Path("/etc/systemd/system")

_UNIT = """\
[Unit]
Description=lora-forge run {run_id}
After=network-online.target
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=exec
{user}ExecStart={command}
WorkingDirectory={run_dir}
# The supervisor ends with 0 for every decided end, so this restarts only one that died.
Restart=on-failure
RestartSec=5
# SIGTERM to the supervisor alone; it stops the trainer with a checkpoint. Where the supervisor dies, what is left is
# killed at once: it costs the steps since the last checkpoint, and nothing trains on that systemd does not know of.
KillMode=mixed
TimeoutStopSec={stop_timeout}

[Install]
WantedBy={target}
"""


@dataclasses.dataclass(frozen=True)
class Host:
    """What the choice of a backend depends on.

    Attributes:
        systemd: systemd is PID 1 here.
        root: This process is root.
        sudo: sudo works for this user without asking for a password.
        lingering: The user's own systemd instance runs without a login.
        tmux: tmux is installed.
        login_node: Jobs of Slurm can be submitted here, and there is no GPU; looked for where any backend will do.
        slurm: Jobs of Slurm can be submitted here; looked for where that is wanted.
    """

    systemd: bool
    root: bool
    sudo: bool
    lingering: bool
    tmux: bool
    login_node: bool = False
    slurm: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """A backend, and what follows from it.

    Attributes:
        backend: One of :data:`_BACKENDS`.
        scope: Of its unit, ``system`` or ``user``; empty without systemd.
        message: What it means for a reboot.
    """

    backend: str
    scope: str
    message: str


_Runner = Callable[[list[str]], "tuple[int, str]"]


def run_command(command: list[str]) -> tuple[int, str]:
    """Run a short command, and return its exit code and everything it printed."""
    # A user's systemd is found by this variable, which only a session that PAM has made has set.
    env = {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}", **os.environ}
    process = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )
    return process.returncode, process.stdout.strip()


def probe_host(wanted: str, run: Optional[_Runner] = None) -> Host:
    """Find out what this host offers.

    Args:
        wanted: As :func:`choose` takes it; what only one backend needs is looked for where that one is wanted.
        run: Runs a command; a parameter for tests.
    """
    user = getpass.getuser()
    systemd, root = pathlib.Path("/run/systemd/system").is_dir(), os.geteuid() == 0
    return Host(
        systemd=systemd,
        root=root,
        sudo=systemd
        and not root
        and shutil.which("sudo") is not None
        and (run or run_command)(["sudo", "-n", "true"])[0] == 0,
        lingering=pathlib.Path(f"/var/lib/systemd/linger/{user}").exists(),
        tmux=shutil.which("tmux") is not None,
        login_node=wanted == "auto" and slurm_commands.is_login_node(),
        slurm=wanted == "slurm" and slurm_commands.has_slurm(),
    )


def choose(wanted: str, host: Host) -> Choice:
    """Pick the backend.

    Args:
        wanted: ``auto`` or one of :data:`_BACKENDS`.
        host: What the host offers.

    Raises:
        UserError: The wanted backend is not to be had on this host.
    """
    scope = "system" if host.root or host.sudo else "user"
    can_systemd = host.systemd and (host.root or host.sudo or host.lingering)
    if wanted == "auto" and host.login_node:
        raise UserError(slurm_commands.LOGIN_NODE)
    if wanted == "slurm":
        if not host.slurm:
            raise UserError(slurm_commands.NO_SBATCH)
        return Choice("slurm", "", "Slurm starts it when its turn comes, and again after a preemption or a reboot")
    if wanted == "auto":
        wanted = "systemd" if can_systemd else "tmux" if host.tmux else "process"
    linger = f"an administrator can change that with: loginctl enable-linger {getpass.getuser()}"
    if wanted == "systemd":
        if not host.systemd:
            raise UserError("run_backend is systemd, but systemd does not run here. Use tmux, process or auto.")
        if not can_systemd:
            raise UserError(f"run_backend is systemd, but this user has neither root, sudo nor lingering; {linger}")
        return Choice("systemd", scope, "resumes by itself after a reboot")
    if wanted == "tmux" and not host.tmux:
        raise UserError("run_backend is tmux, but tmux is not installed here. Install it, or use process or auto.")
    if wanted not in _BACKENDS:
        raise UserError(f"run_backend is «{wanted}»; it is one of auto, {', '.join(_BACKENDS)}")
    message = "does not resume by itself after a reboot; the same command resumes it"
    return Choice(wanted, "", f"{message}; {linger}" if host.systemd and not can_systemd else message)


def unit_text(run_id: str, command: list[str], run_dir: str, stop_timeout: int, user: Optional[str]) -> str:
    """Write the systemd unit of a run.

    Args:
        run_id: The run.
        command: The supervisor's command line.
        run_dir: The run directory.
        stop_timeout: Seconds the trainer has for its checkpoint.
        user: The account to run as in a system unit; None in a user unit.
    """
    return _UNIT.format(
        run_id=run_id,
        command=" ".join(
            '"' + part.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") + '"'
            for part in command
        ),
        run_dir=run_dir.replace("%", "%%"),
        stop_timeout=stop_timeout + 30,
        user=f"User={user}\n" if user else "",
        target="multi-user.target" if user else "default.target",
    )


def _checked(run: _Runner, command: list[str]) -> None:
    code, text = run(command)
    if code:
        raise UserError(f"«{shlex.join(command)}» failed with {code}: {text}")


def _unit_path(run_id: str, scope: str) -> pathlib.Path:
    """Return where the unit of a run lies."""
    folder = SYSTEM_UNITS if scope == "system" else pathlib.Path.home() / ".config/systemd/user"
    return folder / f"lora-forge-{run_id}.service"


def start(choice: Choice, run_id: str, run_dir: pathlib.Path, stop_timeout: int, run: _Runner = run_command) -> str:
    """Start the supervisor of a run, detached from this process and its connection.

    Args:
        choice: From :func:`choose`.
        run_id: The run.
        run_dir: The run directory, with the supervisor among its programs.
        stop_timeout: Seconds the trainer has for its checkpoint.
        run: Runs a command; a parameter for tests.

    Returns:
        The command that shows it to a person.

    Raises:
        UserError: The backend refused.
    """
    command = [sys.executable, str(run_dir / rundir.PROGRAMS / "supervisor.py"), str(run_dir)]
    if choice.backend == "systemd":
        path = _unit_path(run_id, choice.scope)
        text = unit_text(
            run_id, command, str(run_dir), stop_timeout, getpass.getuser() if choice.scope == "system" else None
        )
        if choice.scope == "system":
            (run_dir / path.name).write_text(text, encoding="utf-8")
            _checked(run, [*_sudo(), "install", "-m", "644", str(run_dir / path.name), str(path)])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        systemctl = _systemctl(choice.scope)
        _checked(run, [*systemctl, "daemon-reload"])
        if run([*systemctl, "is-failed", path.name])[0] == 0:
            _checked(run, [*systemctl, "reset-failed", path.name])
        _checked(run, [*systemctl, "enable", "--now", path.name])
        return f"journalctl {'--user ' if choice.scope == 'user' else ''}-u {path.name} -f"
    if choice.backend == "tmux":
        session = _session(run_id, run_dir)
        _checked(run, ["tmux", "new-session", "-d", "-s", session, f"exec {shlex.join(command)}"])
        return f"tmux attach -t {session}"
    with (run_dir / "supervisor.log").open("ab") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=run_dir, start_new_session=True)
    return shlex.join(["tail", "-f", f"{run_dir}/supervisor.log"])


def words(run_id: str, run_dir: pathlib.Path, noted: dict[str, Any], run: _Runner = run_command) -> str:
    """Return what systemd or tmux say of the supervisor of a run; empty where neither keeps it.

    Args:
        run_id: The run.
        run_dir: The run directory.
        noted: Its run.json.
        run: Runs a command; a parameter for tests.
    """
    if noted.get("backend") == "systemd":
        scope = next((scope for scope in ("system", "user") if _unit_path(run_id, scope).exists()), "")
        # Properties, and not «status»: that shows the end of the journal.
        names = "LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,MemoryPeak"
        show = [*(["systemctl"] if scope == "system" else _systemctl("user")), "show", "--property", names]
        command = [*show, _unit_path(run_id, scope).name]
        if not scope:
            return "its unit is gone"
    elif noted.get("backend") == "tmux":
        command = ["tmux", "has-session", "-t", f"={_session(run_id, run_dir)}"]
    else:
        return ""
    try:
        code, text = run(command)
    except (OSError, subprocess.SubprocessError) as error:
        return f"«{shlex.join(command)}» could not be run: {type(error).__name__}"
    return f"«{shlex.join(command)}» ended with {code}" + (f"\n{text}" if text else "")


def _session(run_id: str, run_dir: pathlib.Path) -> str:
    """Name the session of a run."""
    # Two checkouts of one user may train the same recipe on one host, and the server of tmux is one for both.
    return f"{run_id}-{hashlib.sha256(str(run_dir).encode()).hexdigest()[:4]}"


def restart_fault(run_id: str, run: _Runner = run_command) -> str:
    """Say why systemd starts the supervisor of a run no more; empty where it may, or has no unit of it.

    Args:
        run_id: The run.
        run: Runs a command; a parameter for tests.
    """
    for scope in ("system", "user"):
        path = _unit_path(run_id, scope)
        command = re.search(r'^ExecStart="((?:[^"\\\n]|\\.)*)"', _text(path), re.MULTILINE)
        if command is None:
            continue
        program = re.sub(r"\\(.)", r"\1", command.group(1)).replace("%%", "%").replace("$$", "$")
        if not os.access(program, os.X_OK):
            return f"systemd cannot start it: {program} is not there any more"
        try:
            failed = run(["systemctl", *(["--user"] if scope == "user" else []), "is-failed", path.name])[0] == 0
        except (OSError, subprocess.SubprocessError):  # no systemd here, or one that does not answer
            failed = False
        if failed:
            return f"systemd has given up {path.name}; its journal says why"
    return ""


def _text(path: pathlib.Path) -> str:
    """Read a file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def remove_unit(run_id: str, run: _Runner = run_command) -> bool:
    """Remove the unit of a run, in either scope; return whether there was one."""
    removed = False
    for scope in ("system", "user"):
        path = _unit_path(run_id, scope)
        if path.exists():
            systemctl = _systemctl(scope)
            _checked(run, [*systemctl, "disable", path.name])
            _checked(run, [*(_sudo() if scope == "system" else []), "rm", str(path)])
            _checked(run, [*systemctl, "daemon-reload"])
            removed = True
    return removed


def _sudo() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def _systemctl(scope: str) -> list[str]:
    return [*_sudo(), "systemctl"] if scope == "system" else ["systemctl", "--user"]
