"""The machines behind the simulator: pods as podman containers with SSH, or as nothing at all; and their logs."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import secrets
import shlex
import signal
import subprocess
from typing import Protocol

ROOT = pathlib.Path(__file__).resolve().parents[3]
HOSTS = ROOT / "tests" / "hosts"
CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
GATEWAY = "host.containers.internal"  # what podman calls this machine inside a container
LABEL = "lora-forge-simulator"
# Of its containers; in a sandbox they are known by its name (tests/sandbox.py).
PREFIX = f"{pathlib.PurePath(os.environ.get('LORA_FORGE_SANDBOX', 'lora-forge')).name}-sim-"

# What is PID 1 until it makes way for the image's command. It runs again when a container starts again.
PROLOGUE = """\
set -eu
link=$1 folder=$2 word=$3 delay=$4; shift 4
mkdir -p "$(dirname "$link")"
rmdir "$link" 2>/dev/null || :
ln -sfn "$folder" "$link"
echo "$word" >/etc/fake-gpu
cat /simulator/environment >/etc/environment
sleep "$delay"
exec "$@"
"""


class BackendError(Exception):
    """A container could not be handled: the command and what it said."""


@dataclasses.dataclass(frozen=True)
class PodSpec:
    """What a container is made of.

    Attributes:
        args: The request's; the image's start script when empty.
        env: Of PID 1.
        ip: The loopback address of its machine.
        ssh: Whether port 22 is published there.
        folder: Below disk/, what lies behind its volume's path.
        path: The volume's path inside.
        gpu_word: What its nvidia-smi says, a word of tests/fakes/nvidia-smi.
        ssh_delay: Seconds from its start to its command.
        log: The file that its output is appended to.
    """

    id: str
    image: str
    args: str
    env: dict[str, str]
    ip: str
    ssh: bool
    folder: str
    path: str
    gpu_word: str
    ssh_delay: float
    log: pathlib.Path


class Backend(Protocol):
    """What pods are made of; each method but prepare and close is about one pod, and slow."""

    gateway: str

    def prepare(self) -> None:
        """Make ready what pods share, and remove what a killed simulator left."""

    def start(self, spec: PodSpec) -> int | None:
        """Start a pod's container; returns the port on its machine's address that leads to its port 22."""

    def restart(self, pod_id: str) -> None:
        """Start the same container again in place."""

    def crash(self, pod_id: str) -> None:
        """Kill PID 1; the container starts again by itself."""

    def restarts(self, pod_id: str) -> int:
        """Return how often the container started again by itself; 0 when there is none."""

    def remove(self, pod_id: str) -> None:
        """Remove the container, if there is one, and its disk."""

    def close(self) -> None:
        """Remove all containers of this simulator."""


class Nothing:
    """Pods without containers: each has a port that nobody listens on, and host keys that nobody has."""

    gateway = "127.0.0.1"

    def __init__(self) -> None:
        self.ports = 40000
        self.counts: dict[str, int] = {}

    def prepare(self) -> None:
        """Do nothing."""

    def start(self, spec: PodSpec) -> int | None:
        """Say what a start script says."""
        for kind in ("ECDSA", "ED25519", "RSA"):
            write_log(spec.log, f"256 SHA256:{secrets.token_urlsafe(32)} root@{spec.id} ({kind})", "stdout")
        self.counts[spec.id] = 0
        self.ports += 1
        return self.ports if spec.ssh else None

    def restart(self, pod_id: str) -> None:
        """Do nothing."""

    def crash(self, pod_id: str) -> None:
        """Count."""
        self.counts[pod_id] += 1

    def restarts(self, pod_id: str) -> int:
        """Return what was counted."""
        return self.counts.get(pod_id, 0)

    def remove(self, pod_id: str) -> None:
        """Forget the count."""
        self.counts.pop(pod_id, None)

    def close(self) -> None:
        """Do nothing."""


class Podman:
    """Pods as containers of the image of the test hosts.

    Args:
        state: The simulator's folder: disk/ is mounted in every pod.
    """

    gateway = GATEWAY

    def __init__(self, state: pathlib.Path) -> None:
        self.state = state
        self.label = f"{LABEL}={state}"
        self.image = self.shared = ""
        self.wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
        self.env = {**os.environ, "CONTAINERS_CONF": str(HOSTS / "containers.conf")}

    def prepare(self) -> None:
        """Make the image (a minute the first time), what pods share (tests/hosts/shared.sh), and what they mount.

        Raises:
            BackendError: The image could not be made; only root can.
        """
        self.image = self._run([str(HOSTS / "image.sh")]).strip().splitlines()[-1]
        self.close()
        (self.state / "disk").mkdir(exist_ok=True)
        mounted = self.state / "mounted"
        mounted.mkdir(exist_ok=True)
        lines = [f"SSL_CERT_FILE={CERTIFICATES}", f"PIP_CERT={CERTIFICATES}", "UV_CACHE_DIR=/shared/uv-cache"]
        lines += ["PYTHONPYCACHEPREFIX=/shared/pycache"]  # or each pod compiles the same thousands of files again
        lines += ["OMP_NUM_THREADS=1"]  # trainings that each take all cores spin in each other's way, ten times slower
        lines += [f"UV_FIND_LINKS={self.wheels}"] if self.wheels else []
        (mounted / "environment").write_text("\n".join(lines) + "\n")
        # The start script of an image that forgot about SSH.
        (mounted / "no-sshd.sh").write_text("#!/bin/sh\nexec sleep infinity\n")
        (mounted / "no-sshd.sh").chmod(0o755)
        self.shared = self._run([str(HOSTS / "shared.sh")]).strip()

    def start(self, spec: PodSpec) -> int | None:
        """Start a container; its output goes to the log, after what is there.

        Returns:
            The port on ``spec.ip`` that leads to its port 22; None when it is not published.

        Raises:
            BackendError: podman refused.
            ValueError: The request's args are no words of a shell.
        """
        root = self.state / "disk" / spec.folder / "lora-forge"
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "env").is_symlink():  # all pods use one environment
            (root / "env").symlink_to("/shared/env")
        start_script = self.state / "mounted" / "no-sshd.sh" if "no-sshd" in spec.image else HOSTS / "pod.sh"
        mounts = {
            f"{self.state}/disk": "/disk",
            self.shared: "/shared",
            f"{self.state}/mounted/environment": "/simulator/environment:ro",
            str(start_script): "/start.sh:ro",
            str(ROOT / "tests" / "fakes" / "nvidia-smi"): "/usr/bin/nvidia-smi:ro",
            str(CERTIFICATES): f"{CERTIFICATES}:ro",
        }
        mounts |= {self.wheels: f"{self.wheels}:ro"} if self.wheels else {}
        options = [f"--name={PREFIX}{spec.id}", f"--hostname={spec.id}", f"--label={self.label}"]
        options += ["--restart=always"]
        options += ["--log-driver=k8s-file", f"--log-opt=path={spec.log}"]
        options += [f"--volume={here}:{there}" for here, there in mounts.items()]
        options += [f"--publish={spec.ip}::22"] if spec.ssh else []
        # By name alone, so that a value is in no process list; unless podman itself has something of that name.
        inherited = {name: value for name, value in spec.env.items() if name not in self.env}
        options += [f"--env={name}" if name in inherited else f"--env={name}={spec.env[name]}" for name in spec.env]
        prologue = [spec.path, f"/disk/{spec.folder}", spec.gpu_word, str(spec.ssh_delay)]
        command = shlex.split(spec.args) or ["/start.sh"]
        self._podman(
            "run", "--detach", *options, self.image, "sh", "-c", PROLOGUE, "sh", *prologue, *command, env=inherited
        )
        return int(self._podman("port", PREFIX + spec.id, "22/tcp").rsplit(":", 1)[1]) if spec.ssh else None

    def restart(self, pod_id: str) -> None:
        """Start the same container again: its disk, its host keys and its port stay.

        Raises:
            BackendError: podman refused.
        """
        self._podman("restart", "--time=0", PREFIX + pod_id)

    def crash(self, pod_id: str) -> None:
        """Kill PID 1 as the kernel does when memory runs out: podman is not told, and starts it again.

        Raises:
            BackendError: There is no such container.
        """
        os.kill(int(self._inspect(pod_id, "{{.State.Pid}}")), signal.SIGKILL)

    def restarts(self, pod_id: str) -> int:
        """Return how often podman started it again; 0 when there is none."""
        try:
            return int(self._inspect(pod_id, "{{.RestartCount}}"))
        except BackendError:
            return 0

    def remove(self, pod_id: str) -> None:
        """Remove a container at once, if it is there.

        Raises:
            BackendError: podman could not.
        """
        self._podman("rm", "--force", "--ignore", "--time=0", PREFIX + pod_id)

    def close(self) -> None:
        """Remove every container with this simulator's label."""
        if left := self._podman("ps", "--all", "--quiet", f"--filter=label={self.label}").split():
            self._podman("rm", "--force", "--ignore", "--time=0", *left)

    def _inspect(self, pod_id: str, form: str) -> str:
        return self._podman("inspect", f"--format={form}", PREFIX + pod_id).strip()

    def _podman(self, *words: str, env: dict[str, str] | None = None) -> str:
        return self._run(["podman", *words], env)

    def _run(self, command: list[str], env: dict[str, str] | None = None) -> str:
        # A session of its own: Ctrl-C must not end what cleans up.
        done = subprocess.run(
            command, env={**self.env, **(env or {})}, capture_output=True, text=True, start_new_session=True
        )
        if done.returncode:
            raise BackendError(f"{' '.join(command[:2])}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


@dataclasses.dataclass(frozen=True)
class LogLine:
    """A line of a pod's log; ``number`` counts from 1, ``time`` is RFC 3339."""

    number: int
    time: str
    source: str
    text: str

    def event(self) -> bytes:
        """Write the line as a server-sent event."""
        data = json.dumps({"ts": self.time, "source": self.source, "line": self.text})
        return f"id: {self.time}/{self.number:012}\ndata: {data}\n\n".encode()


def write_log(path: pathlib.Path, text: str, stream: str = "system") -> None:
    """Append a line to a pod's log, in podman's form."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{now} {stream} F {text}\n")


class LogReader:
    """Reads a pod's log as it grows.

    Args:
        path: The file that podman (k8s-file) and :func:`write_log` append to.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.offset = 0
        self.number = 0
        self.begun: dict[str, str] = {}  # stream -> the beginning of a line whose end is still to come

    def read(self) -> list[LogLine]:
        """Read the whole lines that came since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read()
        except FileNotFoundError:
            return []
        content = content[: content.rfind(b"\n") + 1]
        self.offset += len(content)
        lines = []
        for raw in content.decode(errors="replace").split("\n")[:-1]:
            when, stream, whole, text = [*raw.split(" ", 3), "", "", ""][:4]
            self.begun[stream] = self.begun.get(stream, "") + text
            if whole == "P":
                continue
            self.number += 1
            source = "system" if stream == "system" else "container"
            lines.append(LogLine(self.number, when.replace("+00:00", "Z"), source, self.begun.pop(stream)))
        return lines
