"""Containers with sshd as trainers, an inventory of them, and a clock around whole commands: for tests and benchmarks.

A trainer's environment is the one that all test hosts share (``tests/hosts/shared.sh``), mounted read-only, so that
nothing is installed in a measurement. With a stub its interpreter runs ``stub.py`` where Axolotl is asked for, and is
itself for everything else, the verification of adapters included.

Needs root and podman.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any, Optional

import ansible.module_utils
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import sandbox  # noqa: E402

ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.adapters import store  # noqa: E402, F401
from ansible.module_utils.lora_forge.trainer import environment  # noqa: E402

STUB = pathlib.Path(__file__).with_name("stub_axolotl.py")
LOCK = ROOT / "requirements/trainer-cpu.txt"
PORT = sandbox.port(10)  # of the first host, on 127.0.0.1
DEAD_PORT = 9  # nobody listens there
TRAINER_ROOT = "/workspace/lora-forge"
LIBRARIES = "/opt/trainer-lib"  # where the environment's packages are mounted
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
    "CONTAINERS_CONF": str(ROOT / "tests/hosts/containers.conf"),
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_NOCOLOR": "1",
}
# The interpreter of a stub's environment.
WRAPPER = """#!/bin/sh
here=${{0%/*}}
if [ "$1 $2" = "-m axolotl.cli.train" ]; then
  shift 2
  PYTHONPATH="$PYTHONPATH:$here" # which PYTHONSAFEPATH leaves out
  exec "$here/python3" "$here/stub.py" --seconds {seconds} "$@"
fi
exec "$here/python3" "$@"
"""


def container(number: int) -> str:
    """Return the name of a host's container."""
    return f"{sandbox.name()}-fleet-{number}"


@dataclasses.dataclass(frozen=True)
class Taken:
    """What one command took.

    Attributes:
        seconds: By the wall clock.
        cpu: CPU seconds of the command and of all that it started here.
        own: Of them those of its first process: Ansible's loop, which more cores do not make faster.
        hosts_cpu: CPU seconds of the containers meanwhile; None where the kernel does not tell.
        text: What it printed.
        code: Its exit code.
    """

    seconds: float
    cpu: float
    own: float
    hosts_cpu: Optional[float]
    text: str
    code: int = 0


def sh(*command: str, **options: Any) -> str:
    """Run a command in the checkout; returns what it printed."""
    done = subprocess.run(
        command, check=True, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, **options
    )  # fmt: skip
    return done.stdout.strip()


def clock(
    command: list[str], log: pathlib.Path, variables: Optional[dict[str, str]] = None, fails: bool = False
) -> Taken:
    """Run a command in the checkout and take its time.

    Args:
        command: The command line.
        log: Where its output goes.
        variables: Added to its environment.
        fails: Whether it may fail.

    Raises:
        RuntimeError: It failed; with the end of its output.
    """
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT | (variables or {}), stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.monotonic() - began
        ticks = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        _, status, usage = os.wait4(process.pid, 0)
    own = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(errors="replace")
    if process.returncode and not fails:
        raise RuntimeError(f"{shlex.join(command)} ended with {process.returncode}:\n{text[-4000:]}")
    return Taken(seconds, usage.ru_utime + usage.ru_stime, own, None, text, process.returncode)


def furnish(root: pathlib.Path, libraries: str, stub: Optional[float]) -> None:
    """Make the environment of the CPU lock, as far as :func:`environment.is_complete` and the trainings ask for it.

    Args:
        root: A trainer's root, as it is here.
        libraries: Its packages, as they are on the trainer.
        stub: Seconds a stub trains; None for real trainings with Axolotl.
    """
    home = root / "env" / environment.environment_name(LOCK)
    (home / "bin").mkdir(parents=True)
    (home / "lib").symlink_to(libraries)
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (home / "bin/python3").symlink_to("/usr/bin/python3")
    if stub is None:
        (home / "bin/python").symlink_to("python3")
    else:
        (home / "bin/python").write_text(WRAPPER.format(seconds=stub))
        (home / "bin/python").chmod(0o755)
        shutil.copy(STUB, home / "bin/stub.py")
        shutil.copy(STUB.with_name("expecting.py"), home / "bin")
        shutil.copy(ROOT / "module_utils/lora_forge/rundir.py", home / "bin")
    (home / environment.COMPLETE).touch()


class Hosts:
    """Containers that sshd makes trainers, each with a root of its own, in a temporary folder.

    Args:
        count: How many.
        stub: Seconds a stub trains; None for real trainings with Axolotl.
    """

    def __init__(self, count: int, stub: Optional[float] = None):
        self.count, self.stub = count, stub
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="lora-forge-fleet-"))
        self.output = self.home / "output"
        self.plays = 0
        self.usage_files: list[pathlib.Path] = []

    def __enter__(self) -> Hosts:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        names = [container(number) for number in range(self.count)]
        subprocess.run(
            ["podman", "rm", "--force", "--ignore", "--time", "0", *names], env=ENVIRONMENT, stdout=subprocess.DEVNULL
        )
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self) -> None:
        """Start the containers, pin their keys, and wait until they answer."""
        libraries = pathlib.Path(sh("tests/hosts/shared.sh")) / "env" / environment.environment_name(LOCK) / "lib"
        image = sh("tests/hosts/image.sh")
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.home / "key"))
        public = (self.home / "key.pub").read_text()
        for number in range(self.count):
            self.disk(number).mkdir(parents=True)
            sh("podman", "run", "--detach", "--quiet", "--replace", "--name", container(number),
               "--publish", f"127.0.0.1:{PORT + number}:22", "--env", f"PUBLIC_KEY={public}",
               "--volume", f"{self.disk(number)}:/workspace", "--volume", f"{libraries}:{LIBRARIES}:ro",
               image, "/pod.sh")  # fmt: skip
        known = ""
        for number in range(self.count):
            known += f"[127.0.0.1]:{PORT + number} {self.host_key(number)}\n"
            path = sh("podman", "inspect", "--format", "{{.State.CgroupPath}}", container(number))
            self.usage_files += [
                file
                for file in (
                    pathlib.Path(f"/sys/fs/cgroup{path}/cpu.stat"),
                    pathlib.Path(f"/sys/fs/cgroup/cpuacct{path}/cpuacct.usage"),
                )
                if path and file.exists()
            ][:1]
        (self.home / "known_hosts").write_text(known)
        for count in range(1, self.count + 1):
            self.write_inventory(f"{count}.yml", count, PORT)
        config = [f"Host *\n User root\n HostName 127.0.0.1\n IdentityFile {self.home}/key\n"
                  f" UserKnownHostsFile {self.home}/known_hosts\n LogLevel ERROR"]  # fmt: skip
        config += [f"Host host-{number}\n Port {PORT + number}" for number in range(self.count)]
        (self.home / "ssh_config").write_text("\n".join(config) + "\n")
        deadline = time.monotonic() + 60
        while self.bare(self.count, fails=True).code and time.monotonic() < deadline:
            time.sleep(0.2)  # a host has its keys before it answers
        self.reset()

    def disk(self, number: int) -> pathlib.Path:
        """Return a host's /workspace."""
        return self.home / f"disk/{number}"

    def root(self, number: int) -> pathlib.Path:
        """Return a host's trainer_root."""
        return self.disk(number) / pathlib.PurePath(TRAINER_ROOT).name

    def host_key(self, number: int) -> str:
        """Return a host's public key, once it has made one."""
        read = ["podman", "exec", container(number), "cat", "/etc/ssh/ssh_host_ed25519_key.pub"]
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(read, env=ENVIRONMENT, capture_output=True, text=True)
            if done.returncode == 0:
                return " ".join(done.stdout.split()[:2])
            if time.monotonic() > deadline:
                raise RuntimeError(f"host {number} made no SSH key within 60 s: {done.stderr}")
            time.sleep(0.2)

    def write_inventory(self, name: str, count: int, port: int) -> None:
        """Write an inventory of the first hosts into the home folder.

        Args:
            name: The file.
            count: How many hosts.
            port: Of the first one; DEAD_PORT is everybody's.
        """
        hosts = {
            f"host-{number}": {"ansible_port": port if port == DEAD_PORT else port + number} for number in range(count)
        }
        shared = {
            "ansible_host": "127.0.0.1",
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.home / "key"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.home}/known_hosts",
            "trainer_root": TRAINER_ROOT,
            "trainer_lock": LOCK.stem,
            "run_profile": "rehearsal",
            "datasets_dir": "examples/datasets",
        }
        if self.stub is not None:
            shared["run_wandb"] = "disabled"  # a stub records nothing
        made = {"all": {"vars": {"output_dir": str(self.output)}}, "trainers": {"hosts": hosts, "vars": shared}}
        (self.home / name).write_text(yaml.safe_dump(made))

    def reset(self, count: Optional[int] = None) -> None:
        """Empty the roots of the first hosts but for the environment, and the output folder; what trains is ended."""
        shutil.rmtree(self.output, ignore_errors=True)
        for number in range(self.count if count is None else count):
            # All but sshd, which is process 1: a training would outlive the folder of its run.
            sh("podman", "exec", container(number), "sh", "-c", "kill -KILL -1 2>/dev/null || true")
            for folder in self.disk(number).iterdir():
                shutil.rmtree(folder, ignore_errors=True)
            furnish(self.root(number), LIBRARIES, self.stub)

    def used(self) -> Optional[float]:
        """Return the CPU seconds that all containers have used so far; None where the kernel does not tell."""
        if len(self.usage_files) < self.count:
            return None
        total = 0.0
        for file in self.usage_files:
            words = file.read_text().split()
            total += int(words[1]) / 1e6 if file.name == "cpu.stat" else int(words[0]) / 1e9
        return total

    def clock(self, command: list[str], variables: Optional[dict[str, str]] = None, fails: bool = False) -> Taken:
        """Run :func:`clock`, with the CPU seconds of the containers."""
        before = self.used()
        taken = clock(command, self.home / "log.txt", variables, fails)
        after = self.used()
        return dataclasses.replace(taken, hosts_cpu=None if before is None or after is None else after - before)

    def play(
        self,
        playbook: str,
        *arguments: str,
        count: Optional[int] = None,
        dead: bool = False,
        variables: Optional[dict[str, str]] = None,
        fails: bool = False,
    ) -> Taken:
        """Run a playbook over the first hosts, with SSH connections of its own.

        Connections are shared within the command, as by default; none is left from the last one, which would flatter
        it, or for the next one.

        Args:
            playbook: Its path in the checkout.
            arguments: Further arguments of ansible-playbook.
            count: How many hosts; all by default.
            dead: Give every host a port where nobody listens: a connection to one fails.
            variables: Added to its environment.
            fails: Whether it may fail.
        """
        count = self.count if count is None else count
        inventory = f"{'dead-' if dead else ''}{count}.yml"
        if dead:
            self.write_inventory(inventory, count, DEAD_PORT)
        self.plays += 1
        sockets = self.home / f"c{self.plays}"
        sockets.mkdir()
        try:
            return self.clock(
                ["ansible-playbook", "-i", str(self.home / inventory), playbook, *arguments],
                {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets)} | (variables or {}),
                fails,
            )
        finally:
            for socket in sockets.iterdir():
                subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "host"], capture_output=True)

    def bare(self, count: int, fails: bool = False) -> Taken:
        """Run ``ssh host true`` on the first hosts, all at once."""
        names = " ".join(f"host-{number}" for number in range(count))
        ssh = f"ssh -n -F {self.home}/ssh_config HOST true"
        return self.clock(["sh", "-c", f"printf '%s\\n' {names} | xargs -P {count} -I HOST {ssh}"], fails=fails)
