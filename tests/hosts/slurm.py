#!/usr/bin/env python3
"""A Slurm cluster of containers: ``login`` (slurmctld, sshd) and the nodes ``c1`` and ``c2`` (slurmd), two GPUs each.

By hand, as root::

    tests/hosts/slurm.py up               leaves a cluster running, and prints how to get in; with --trains it has the
                                          environment and uv's cache of the test hosts, as /shared
    tests/hosts/slurm.py kill c1 slurmd   calls a method of Cluster; any of its methods that takes words
    tests/hosts/slurm.py down             removes it

In a test::

    with slurm.Cluster() as cluster:
        job = cluster.sbatch("exec sleep 600", "--gres=gpu:1")
        cluster.wait(job, "RUNNING")
        cluster.cut("c1")

The machines have a /proc, a /tmp and a boot id of their own, and /home in common. The GPUs are devices without anything
behind them. In a sandbox (tests/sandbox.py) the cluster has the sandbox's name and a port of its own, and the janitor
removes what a test could not; by hand, a checkout has one cluster.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import os
import pathlib
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, Optional

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
import sandbox  # noqa: E402

NODES = ("c1", "c2")
MACHINES = ("login", *NODES)
USERS = ("ann", "lin", "ops")  # as the image has them; ops may use sudo
PATIENCE = 120.0  # seconds; what has not happened by then, on however slow a machine, never will
DAEMONS = {"login": "slurmctld", "c1": "slurmd", "c2": "slurmd"}
SLURM = """\
ClusterName=test
SlurmctldHost=login
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType={proctrack}
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# A node may claim more cores than this machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
KillWait=30
MinJobAge=300
SlurmctldTimeout=10
SlurmdTimeout=30
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptParameters=send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=c[1-2] CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=c[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=c[1-2] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
GRES = "NodeName=c[1-2] Name=gpu File=/dev/fakegpu[0-1]\n"
CGROUPS = pathlib.Path("/sys/fs/cgroup")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# What a shared folder answers that was mounted without locks; here all folders do.
NO_FLOCK = {"names": ["flock"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}
CAPABILITIES = "--cap-add=SYS_ADMIN,SYS_NICE,SYS_RESOURCE,MKNOD"


class Problem(Exception):
    """The cluster did not do what it was asked; with what it said."""


class Cluster:
    """A cluster, which need not run yet; as a context it is made anew, and removed however that ends.

    Args:
        settings: Lines of slurm.conf that are to be others, by their names: ``{"KillWait": "5"}``.
        volumes: What else all machines mount, as podman's ``--volume`` has it.
        cgroup: Whether Slurm is to keep jobs by cgroups, where this machine has those that it needs.
        trains: Whether they mount what the test hosts train with, as /shared (tests/hosts/shared.sh).
        flock: Whether their folders have locks. Where they have none, jobs are not kept by cgroups.

    Attributes:
        name: What its containers' names begin with.
        port: Of the login node's sshd, on 127.0.0.1.
        state: Its folder here, with ``ssh_config`` (``ssh -F … login``), ``key`` and ``known_hosts``.
        home: The folder that is /home on all machines.
    """

    def __init__(
        self,
        settings: Optional[Mapping[str, str]] = None,
        volumes: Iterable[str] = (),
        cgroup: bool = True,
        trains: bool = False,
        flock: bool = True,
    ):
        self.settings, self.volumes, self.trains = dict(settings or {}), tuple(volumes), trains
        self.flock, self.cgroup = flock, cgroup and flock  # Slurm itself locks cgroups
        self.environment = ""  # of every login, as /etc/environment has it
        self.name, self.port, self.number = place()
        self.state = ROOT / ".hosts" / self.name
        self.home, self.conf = self.state / "home", self.state / "conf"

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # Its life

    def up(self) -> None:
        """Make it, in place of one that is there; returns when its nodes are idle.

        Raises:
            Problem: It did not start.
        """
        self.down()
        try:
            image = run([str(HERE / "image.sh"), "slurm"], seconds=600).stdout.split()[-1]
            volumes = [*self.volumes, *(self._downloads() if self.trains else ())]
            plugins, why = self._plugins(), ""
            while refused := self._start(image, volumes, plugins.pop(0), why):
                if not plugins:
                    raise Problem(refused)
                why = f"Slurm cannot use this machine's cgroups: {refused}"
        except Problem as error:
            said = self.logs()
            self.down()
            raise Problem(f"{error}\n{said}") from None
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Remove it, and whatever runs on it; nothing where there is none."""
        podman("rm", "--force", "--ignore", "--time", "0", *map(self.container, MACHINES))
        shutil.rmtree(self.state, ignore_errors=True)

    @property
    def without_cgroup(self) -> str:
        """Why Slurm does not keep jobs by cgroups here, for a test that needs it to be skipped; empty where it does."""
        return (self.conf / "without_cgroup").read_text()

    def _plugins(self) -> list[str]:
        """List what may keep a job's processes together here, the best first: Slurm's cgroup plugins, and none."""
        signs = {"cgroup/v1": CGROUPS / "freezer", "cgroup/v2": CGROUPS / "cgroup.controllers"}
        return [plugin for plugin, sign in signs.items() if sign.exists() and self.cgroup] + [""]

    def _start(self, image: str, volumes: list[str], plugin: str, why: str) -> str:
        """Start the machines with one of the plugins; returns why a node does not run with it, or nothing."""
        podman("rm", "--force", "--ignore", "--time", "0", *map(self.container, MACHINES))
        shutil.rmtree(self.state, ignore_errors=True)
        self._configure(plugin, why or "there is none that Slurm knows, or none is wanted")
        starting = [start(self._command(machine, image, volumes)) for machine in MACHINES]
        try:
            for done in [finish(process, check=False) for process in starting]:
                if done.returncode:
                    raise Problem(f"«{shlex.join(done.args)}» ended with {done.returncode}: {done.stderr}")
        finally:
            for process in starting:
                process.kill()
                process.wait()
        refused = eventually(lambda: self._refused() or self._idle(NODES), "the nodes are idle")
        if isinstance(refused, str):
            return refused
        eventually(lambda: self.ssh("true", check=False).returncode == 0, "the login node answers SSH")
        return ""

    def _refused(self) -> str:
        """Return why a node's slurmd has given up; empty where none has."""
        for node in NODES:
            if podman("inspect", "--format", "{{.State.Running}}", self.container(node)).stdout.strip() != "true":
                done = podman("logs", self.container(node), check=False)
                return f"{node} ended: {done.stdout}{done.stderr}".strip()
            fatal = "grep --max-count=1 --only-matching 'fatal:.*' /var/log/slurm/slurmd.log"
            if said := self.sh(node, f"systemctl --quiet is-failed slurmd && {fatal}", check=False).stdout.strip():
                return f"slurmd of {node}: {said}"
        return ""

    def _downloads(self) -> list[str]:
        """List what machines mount to train as test hosts do: the environment, uv's cache, and the way to packages."""
        shared = run([str(HERE / "shared.sh")], seconds=1800).stdout.split()[-1]
        wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
        variables = {"SSL_CERT_FILE": CERTIFICATES, "PIP_CERT": CERTIFICATES, "UV_FIND_LINKS": wheels,
                     "UV_CACHE_DIR": "/shared/uv-cache", "PYTHONPYCACHEPREFIX": "/shared/pycache",
                     "OMP_NUM_THREADS": "1"}  # fmt: skip
        self.environment = "".join(f"{name}={value}\n" for name, value in variables.items())
        return [f"{shared}:/shared", *(f"{path}:{path}:ro" for path in (CERTIFICATES, wheels) if path)]

    def _configure(self, plugin: str, why: str) -> None:
        """Write what the machines mount, with new keys; ``why`` there is no plugin, where there is none."""
        for folder in (self.home, self.conf):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
        (self.conf / "without_cgroup").write_text("" if plugin else f"Slurm keeps jobs by process ids here: {why}")
        (self.conf / "environment").write_text(self.environment)
        (self.conf / "slurm.conf").write_text(configuration(bool(plugin), self.settings))
        (self.conf / "gres.conf").write_text(GRES)
        (self.conf / "cgroup.conf").write_text(
            f"CgroupPlugin={plugin}\nCgroupMountpoint=/sys/fs/cgroup\nConstrainRAMSpace=yes\n"
            if plugin
            else "CgroupPlugin=disabled\n"
        )
        allowed = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [] if self.flock else [NO_FLOCK]}
        (self.conf / "seccomp.json").write_text(json.dumps(allowed))
        (self.conf / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.conf / "munge.key").chmod(0o400)
        for key in (self.conf / "host_key", self.state / "key"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)])
        shutil.copy(self.state / "key.pub", self.conf)
        kind, key = (self.conf / "host_key.pub").read_text().split()[:2]
        (self.state / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")
        (self.state / "ssh_config").write_text(
            f"Host login\n HostName 127.0.0.1\n Port {self.port}\n User ann\n IdentityFile {self.state}/key\n"
            f" IdentitiesOnly yes\n UserKnownHostsFile {self.state}/known_hosts\n LogLevel ERROR\n"
        )

    def _command(self, machine: str, image: str, volumes: list[str]) -> list[str]:
        """Return the command that starts a machine."""
        addresses = {name: f"10.88.{200 + self.number // 64}.{self.number % 64 * 4 + at}"
                     for at, name in enumerate(MACHINES, 1)}  # fmt: skip
        options = ["--name", self.container(machine), "--hostname", machine, "--ip", addresses[machine]]
        options += ["--publish", f"127.0.0.1:{self.port}:22"] if machine == "login" else []
        options += [] if self.flock else [f"--security-opt=seccomp={self.conf}/seccomp.json"]
        options += [f"--add-host={name}:{address}" for name, address in addresses.items()]
        folders = (f"{self.home}:/home", f"{self.conf}:/etc/slurm:ro", f"{HERE}/slurm_node.sh:/slurm_node.sh:ro",
                   f"{ROOT}/tests/fakes/nvidia-smi:/usr/bin/nvidia-smi:ro")  # fmt: skip
        options += [f"--volume={volume}" for volume in (*folders, *volumes)]
        role = "login" if machine == "login" else "node"
        return ["podman", "run", "--detach", "--quiet", "--systemd=always", "--stop-timeout=5", CAPABILITIES, *options,
                image, "/slurm_node.sh", role]  # fmt: skip

    def furnish(self, seconds: str = "1") -> None:
        """Give ann a trainer root, ~/lora-forge, in whose environment a stand-in for Axolotl trains.

        Args:
            seconds: How long that takes.
        """
        sys.path.insert(0, str(HERE.parent / "fakes"))
        import fleet_hosts  # needs Ansible, which nothing else here does

        root = self.home / "ann/lora-forge"
        libraries = f"/shared/env/{fleet_hosts.environment.environment_name(fleet_hosts.LOCK)}/lib"
        fleet_hosts.furnish(root, libraries, float(seconds))
        self.sh("login", "chown -hR ann: /home/ann/lora-forge && chmod 700 /home/ann/lora-forge")

    def trainer(self, **changes: Any) -> dict[str, Any]:
        """Return the variables of the login node as a trainer, for rehearsals of ann's; ``changes`` go before them."""
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "ann",
            "ansible_ssh_private_key_file": str(self.state / "key"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.state}/known_hosts -o StrictHostKeyChecking=yes",
            "trainer_root": "/home/ann/lora-forge",
            "trainer_lock": "trainer-cpu",
            "datasets_dir": "examples/datasets",
            "run_profile": "rehearsal",
            "run_backend": "slurm",
            "run_slurm": {"partition": "gpu", "time": "0-1", "cpus": 3, "memory": "3G"},  # a run on each node
            **changes,
        }

    # What it is asked

    def container(self, machine: str) -> str:
        """Return the name of a machine's container."""
        return f"{self.name}-{machine}"

    def sh(self, machine: str, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a machine as root, past its network.

        Raises:
            Problem: It failed, and ``check`` is set.
        """
        return podman("exec", self.container(machine), "sh", "-c", command, check=check)

    def ssh(
        self, command: str, user: str = "ann", stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node as a user does; see :meth:`sh`."""
        return run(["ssh", "-F", str(self.state / "ssh_config"), "-l", user, "login", command], stdin, check)

    def sbatch(self, script: str, *options: str, user: str = "ann") -> int:
        """Submit a script of bash's; returns the job's number.

        Args:
            script: With or without its first line.
            options: Of sbatch; by default a job has one core of a node, and no GPU.
            user: Whose job it is.

        Raises:
            Problem: Slurm refused it.
        """
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}\n"
        return int(self.ssh(shlex.join(["sbatch", "--parsable", *options]), user, text).stdout.split(";")[0])

    def jobs(self) -> dict[int, dict[str, Any]]:
        """Return ``squeue --json`` by the jobs' numbers: everybody's, and those that ended a while ago, too."""
        said = self.sh("login", "squeue --all --states=all --json").stdout
        return {job["job_id"]: job for job in json.loads(said)["jobs"]}

    def requests(self, user: str) -> int:
        """Return how many requests of a user's the controller has counted (``sdiag``)."""
        by_user = self.sh("login", "sdiag").stdout.partition("statistics by user")[2]
        return sum(
            int(line.split("count:")[1].split()[0]) for line in by_user.splitlines() if line.split()[:1] == [user]
        )

    def wait(self, job: int, *states: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait until a job is in one of some states (``RUNNING``, ``COMPLETED`` …); returns what squeue says of it."""

        def there() -> Optional[dict[str, Any]]:
            found = self.jobs().get(job)
            return found if found and set(found["job_state"]) & set(states) else None

        return eventually(there, f"job {job} is {' or '.join(states)}", lambda: f"{self.jobs().get(job)}", seconds)

    def until_saved(self, job: int) -> None:
        """Wait until slurmctld has on its disk what it knows of a job; it writes up to 5 s later.

        Killed before that, it comes back with less: such a job is forgotten, or FAILED, and its node kills it.
        """
        word = secrets.token_hex(8)
        self.sh("login", f"scontrol update JobId={job} AdminComment={word}")
        saved = f"grep --quiet {word} /var/lib/slurm/slurmctld/job_state"
        eventually(lambda: self.sh("login", saved, check=False).returncode == 0, f"job {job} is on slurmctld's disk")

    def nodes(self) -> dict[str, tuple[str, str]]:
        """Return the nodes' states and GPUs, as sinfo has them: ``{"c1": ("idle", "gpu:2"), …}``."""
        lines = self.sh("login", "sinfo --noheader --Node --partition=gpu --format='%N %t %G'").stdout.splitlines()
        return {name: (state, gpus) for name, state, gpus in (line.split() for line in lines)}

    def until_idle(self, *nodes: str, seconds: float = PATIENCE) -> None:
        """Wait until nodes, or all of them, are idle."""
        wanted = nodes or NODES
        eventually(lambda: self._idle(wanted), f"{' and '.join(wanted)} are idle", self._queue, seconds)

    def _queue(self) -> str:
        return self.sh("login", "sinfo --Node --long; squeue --all --long; scontrol show node", check=False).stdout

    def _idle(self, nodes: Iterable[str]) -> bool:
        with contextlib.suppress(Problem, KeyError):  # the controller need not be there yet
            found = self.nodes()
            return all(found[node][0] == "idle" for node in nodes)
        return False

    def boot_id(self, machine: str) -> str:
        """Return the boot id that programs of a machine see."""
        return self.sh(machine, "cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def logs(self) -> str:
        """Return the end of what each machine says of itself, for somebody who looks for a fault."""
        said = []
        for machine in MACHINES:
            command = f"tail -n 30 /var/log/slurm/*.log; systemctl --failed; systemctl status {DAEMONS[machine]}"
            done = self.sh(machine, command, check=False)
            said.append(f"=== {machine}\n{done.stdout}{done.stderr}")
        return "\n".join(said)

    def clear(self) -> None:
        """Kill all jobs, give nodes that are down or drained jobs again, and wait until all nodes are idle."""
        jobs = "squeue --noheader --format=%i | xargs --no-run-if-empty scancel"
        self.sh("login", f"{jobs} --signal=KILL --full; {jobs}")
        # Each time anew: a node that did not answer for a while may be given up only now, and is not asked again soon.
        names = "sinfo --noheader --Node --partition=gpu --states=down,drain --format=%N"
        resume = f"for node in $({names}); do scontrol update NodeName=$node State=RESUME; done"
        eventually(
            lambda: self.sh("login", resume, check=False) and self._idle(NODES), "all nodes are idle", self._queue
        )

    @contextlib.contextmanager
    def configured(self, **settings: str) -> Iterator[None]:
        """Have other lines in slurm.conf for a while, by their names; no job may run as that changes."""
        path = self.conf / "slurm.conf"
        before = path.read_text()
        kept = [line for line in before.splitlines() if line.partition("=")[0] not in settings]
        try:
            path.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in settings.items())]) + "\n")
            self.sh("login", "scontrol reconfigure")
            self.until_idle()
            yield
        finally:
            path.write_text(before)
            self.sh("login", "scontrol reconfigure")

    # What befalls it

    def kill(self, machine: str, daemon: str) -> None:
        """Kill slurmctld or slurmd by SIGKILL; jobs go on. (munge would come back at once: :meth:`stop` it.)"""
        self.sh(machine, f"systemctl kill --kill-whom=main --signal=KILL {daemon}")
        eventually(lambda: not self.active(machine, daemon), f"{daemon} of {machine} is gone")

    def stop(self, machine: str, daemon: str) -> None:
        """Stop slurmctld, slurmd or munge in good order."""
        self.sh(machine, f"systemctl stop {daemon}")

    def start(self, machine: str, daemon: str) -> None:
        """Start a daemon that was stopped or killed."""
        self.sh(machine, f"systemctl reset-failed {daemon}; systemctl start {daemon}")
        if daemon == "slurmctld":
            eventually(lambda: self.sh("login", "scontrol ping", check=False).returncode == 0, "slurmctld answers")

    def active(self, machine: str, service: str) -> bool:
        """Tell whether systemd says that a service is there."""
        return self.sh(machine, f"systemctl --quiet is-active {service}", check=False).returncode == 0

    def reboot(self, machine: str, grace: int = 5) -> None:
        """Reboot a machine: SIGTERM to all, SIGKILL after the grace in seconds. Returns when its daemon is there."""
        before = self.boot_id(machine)
        podman("restart", "--time", str(grace), self.container(machine))
        eventually(lambda: self.active(machine, DAEMONS[machine]), f"{machine} is back", self.logs)
        assert self.boot_id(machine) != before

    def switch_off(self, machine: str) -> None:
        """Take a machine its power."""
        podman("kill", self.container(machine))

    def switch_on(self, machine: str) -> None:
        """Let a machine that was switched off boot. Returns when its daemon is there."""
        podman("start", self.container(machine))
        eventually(lambda: self.active(machine, DAEMONS[machine]), f"{machine} is back", self.logs)

    def lose_power(self, machine: str) -> None:
        """Kill a machine and boot it at once; nobody on it is told. Returns when its daemon is there again."""
        before = self.boot_id(machine)
        self.switch_off(machine)
        self.switch_on(machine)
        assert self.boot_id(machine) != before

    def cut(self, machine: str) -> None:
        """Cut a machine off the network. /home is there all the same, as it is a folder of this machine."""
        self._ip(machine, "link", "set", "eth0", "down")

    def mend(self, machine: str) -> None:
        """Let a machine that was cut off have its network again."""
        gateway = podman("inspect", "--format", "{{.NetworkSettings.Gateway}}", self.container(machine)).stdout.strip()
        self._ip(machine, "link", "set", "eth0", "up")
        self._ip(machine, "route", "replace", "default", "via", gateway)

    def _ip(self, machine: str, *words: str) -> None:
        pid = podman("inspect", "--format", "{{.State.Pid}}", self.container(machine)).stdout.strip()
        run(["nsenter", "--target", pid, "--net", "ip", *words])

    def drain(self, node: str, reason: str = "test") -> None:
        """Give a node no more jobs."""
        self.sh("login", f"scontrol update NodeName={node} State=DRAIN Reason={shlex.quote(reason)}")

    def resume(self, node: str) -> None:
        """Give a node that was drained, or is down, jobs again."""
        self.sh("login", f"scontrol update NodeName={node} State=RESUME")

    def hold(self, job: int | str) -> None:
        """Hold a job in the queue, as an administrator."""
        self.sh("login", f"scontrol hold {job}")

    def release(self, job: int | str) -> None:
        """Let a job that is held go on in the queue."""
        self.sh("login", f"scontrol release {job}")

    def requeue(self, job: int | str) -> None:
        """Put a running job back in the queue, where it stands for two minutes; see :meth:`start_now`."""
        self.sh("login", f"scontrol requeue {job}")

    def start_now(self, job: int | str) -> None:
        """Let a requeued job start in two seconds, when it has left its node.

        Not sooner: a node knows by the second since when it takes what it knew of the job for old, and refuses it.
        """
        self.sh("login", f"scontrol update JobId={job} StartTime=now+2")


def place() -> tuple[str, int, int]:
    """Return the name, the port and the number of this process's cluster; its addresses go by the number.

    By hand they go by the checkout, so that several of them can have one each.
    """
    if "LORA_FORGE_SANDBOX" in os.environ:
        return f"{sandbox.name()}-slurm", sandbox.port(4), (sandbox.port(0) - sandbox.RANGE.start) // sandbox.SHARE
    number = zlib.crc32(str(ROOT).encode()) % 700
    return f"{sandbox.NAME}-slurm-{number}", sandbox.RANGE.stop + number, len(sandbox.RANGE) * 5 + number


def configuration(cgroup: bool, settings: Mapping[str, str]) -> str:
    """Return slurm.conf.

    Args:
        cgroup: Whether jobs are kept by cgroups.
        settings: Lines that are to be others, or are not there, by their names.
    """
    lines = SLURM.format(proctrack="proctrack/cgroup" if cgroup else "proctrack/linuxproc").splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in settings]
    return "\n".join([*kept[:1], *(f"{name}={value}" for name, value in settings.items()), *kept[1:]]) + "\n"


def eventually(
    condition: Callable[[], Any], what: str, told: Callable[[], str] = lambda: "", seconds: float = PATIENCE
) -> Any:
    """Return the first true value of a condition.

    Raises:
        Problem: There was none in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise Problem(f"not within {seconds:.0f} s: {what}\n{told()}")


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command, with podman's configuration of the test hosts."""
    environment = {**os.environ, "CONTAINERS_CONF": str(HERE / "containers.conf")}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(
    process: subprocess.Popen[str], stdin: str = "", check: bool = True, seconds: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Wait for a command; see :func:`run`."""
    words = shlex.join(process.args)  # type: ignore[arg-type]
    try:
        out, err = process.communicate(stdin, seconds)
    except subprocess.TimeoutExpired:
        raise Problem(f"«{words}» takes more than {seconds:.0f} s") from None
    finally:
        process.kill()
    if check and process.returncode:
        raise Problem(f"«{words}» ended with {process.returncode}: {out}{err}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(
    command: list[str], stdin: str = "", check: bool = True, seconds: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run a command.

    Raises:
        Problem: It failed, and ``check`` is set, or took longer than ``seconds``.
    """
    return finish(start(command), stdin, check, seconds)


def podman(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman; see :func:`run`."""
    return run(["podman", *words], check=check)


def main(words: list[str]) -> int:
    """Make or remove a cluster by hand, or call a method of it."""
    usage = "usage: slurm.py up [--trains] | down | METHOD WORD…, where METHOD is one of\n  "
    methods = [name for name, value in vars(Cluster).items() if inspect.isfunction(value) and name[0] != "_"]
    if not words or words[0] not in methods:
        sys.exit(usage + " ".join(methods))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cluster = Cluster(trains=words[1:] == ["--trains"])
    words = words[:1] if cluster.trains else words
    try:
        found = getattr(cluster, words[0])(*(int(word) if word.isdecimal() else word for word in words[1:]))
    except (Problem, TypeError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if words[0] == "up":
        print(f"as a user (ann, lin, ops, root): ssh -F {cluster.state}/ssh_config [-l USER] login")
        print(f"/home of all machines: {cluster.home}")
        print(f"on a machine: podman exec -it {cluster.container('c1')} bash")
        print(cluster.without_cgroup or "Slurm keeps jobs by cgroups")
    elif isinstance(found, subprocess.CompletedProcess):
        sys.stdout.write(found.stdout + found.stderr)
    elif found is not None:
        print(found if isinstance(found, str) else json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
