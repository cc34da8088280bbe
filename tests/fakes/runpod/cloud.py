"""The cloud behind the API: pods on machines, from order to end, with what they cost."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import pathlib
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from catalog import CPU_PRICE, PLACES, Catalog, Gpu, offered, version
from containers import Backend, BackendError, LogLine, LogReader, PodSpec, write_log
from contract import Problem
from faults import NO_CAPACITY, Faults

MACHINES = 3  # of each GPU type
FIRST_ADDRESS = 10  # machine 0 is 127.0.0.10
STATUS_DELAY = 0.2  # seconds that PROVISIONING and STARTING each last at least
SSH_DELAY = 0.5  # seconds from a container's start to its command
ENV_LIMIT = 50
BILL_FACTOR = 1.05  # a bill is a little more than what one's own clock says
ACTIONS = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
}
BUCKETS = ("hour", "day", "week", "month", "year")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a pod is put, and what it costs there; ``price`` is USD an hour for the whole pod."""

    data_center: str
    ip: str
    cuda: str | None
    price: float


@dataclasses.dataclass
class Pod:
    """One pod, also after its end.

    Attributes:
        order: The body of the request that made it.
        key: What it may look at, act on and delete itself with.
        listed_from: Lists have it from this time on (seconds since the epoch, as all times here).
        factor: Of the cost it shows to what it costs.
        boot: Counts its boots, stops and its end; what works for an older one gives up.
        stale: Until when ssh.direct shows which port in place of its own.
        banked: USD up to ``since``; the clock runs on from there unless it is stopped.
        handling: Held while its container is made or removed.
    """

    id: str
    order: dict[str, Any]
    place: Place
    key: str
    created: float
    listed_from: float
    factor: float
    gpu_word: str
    log: pathlib.Path
    name: str = ""
    status: str = "PROVISIONING"
    boot: int = 0
    port: int | None = None
    stale: tuple[float, int | None] = (0.0, None)
    started: float | None = None
    ended: float | None = None
    ended_by: str | None = None
    banked: float = 0.0
    since: float = 0.0
    restarts: int = 0
    hides_host_keys: bool = False
    handling: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def gpu(self) -> str | None:
        """Its GPU type; None for a CPU pod."""
        gpu: dict[str, str] = self.order.get("gpu", {})
        return gpu.get("id")

    @property
    def ssh(self) -> bool:
        """Whether its port 22 is to be reached."""
        return "22/tcp" in self.order.get("ports", [])

    @property
    def volume(self) -> str | None:
        """The network volume it has, if any."""
        return _network(self.order)

    @property
    def folder(self) -> str:
        """What lies behind its volume's path, below disk/."""
        return f"volumes/{self.volume}" if self.volume else f"pods/{self.id}"

    @property
    def path(self) -> str:
        """Its volume's path inside; official images have this one without any volume too."""
        mounts = self.order.get("mounts", {})
        mount: dict[str, str] = mounts.get("persistent") or (mounts.get("network") or [{}])[0]
        return mount.get("path", "/workspace")

    @property
    def keeps(self) -> bool:
        """Whether what is below its volume's path survives a stop."""
        mounts = self.order.get("mounts", {})
        return bool(mounts.get("persistent") or mounts.get("network"))

    def charged(self) -> bool:
        """Tell whether its clock runs."""
        return self.ended is None and self.status != "EXITED"

    def usd(self) -> float:
        """Return what it has cost by the simulator's clock, in USD."""
        running = time.time() - self.since if self.charged() else 0.0
        return self.banked + running / 3600 * self.place.price

    def bank(self) -> None:
        """Settle its clock; to be called before what it depends on changes."""
        self.banked, self.since = self.usd(), time.time()

    def shown_port(self) -> int | None:
        """Return the port that the API says leads to its SSH."""
        until, port = self.stale
        return port if port is not None and (time.time() < until or self.port is None) else self.port


class Cloud:
    """All pods of a simulator; safe for threads. What containers need is done in a thread for each pod.

    Args:
        state: The folder for disks and logs; what lies in its seed/, every pod's volume begins with.
        backend: What pods are made of.
        faults: What goes wrong.
    """

    def __init__(self, state: pathlib.Path, backend: Backend, faults: Faults) -> None:
        self.state, self.backend, self.faults = state, backend, faults
        self.catalog = Catalog()
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.pods: dict[str, Pod] = {}
        self.bills: dict[str, tuple[float, float, float]] = {}  # pod -> first and last second, USD
        self.troubles: list[str] = []  # what the simulator itself could not do
        self.turns: dict[str, Iterator[int]] = {}  # GPU -> which machine is next
        self.threads: set[threading.Thread] = set()
        self.port = 0  # of the API, which a pod's environment may name
        for folder in (state / "logs", state / "disk" / "pods"):  # of an earlier simulator; its volumes stay
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    # Ordering

    def create(self, order: dict[str, Any]) -> Pod:
        """Order a pod; it boots by itself.

        Args:
            order: The request's body, in accord with the contract.

        Raises:
            Problem: 422 or 400 for a rule that the description has in prose, 400 too when there is no capacity.
        """
        check_order(order, self.catalog)
        gpu = order.get("gpu", {}).get("id")
        with self.lock:
            place = self._place(order)
            facts = {"gpu": gpu, "ip": place.ip}
            usual = "two" if order.get("gpu", {}).get("count") == 2 else "a100"
            now = time.time()
            pod_id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(14))
            pod = Pod(
                id=pod_id,
                name=order["name"],
                order=order,
                place=place,
                key=f"pod-scoped-{secrets.token_hex(16)}",
                created=now,
                since=now,
                listed_from=now + self.faults.number("late_list", 0, gpu=gpu),
                factor=self.faults.number("wrong_cost", 1, gpu=gpu),
                gpu_word=(self.faults.take("gpu", **facts) or {}).get("word", usual),
                log=self.state / "logs" / f"{pod_id}.log",
            )
            self.pods[pod_id] = pod
            write_log(pod.log, f"create pod on machine {place.ip}: {order.get('image')}")
            self._boot(pod)
        return pod

    def _place(self, order: dict[str, Any]) -> Place:
        """Find a machine; machines of a type take turns."""
        data_centers = order.get("dataCenterIds") or list(PLACES)
        if volume := _network(order):
            data_centers = [self.catalog.volumes[volume]["dataCenter"]]
        cloud = order.get("cloud", "SECURE")
        if cpu := order.get("cpu"):
            price = cpu["vcpuCount"] * CPU_PRICE
            return Place(data_centers[0], address(len(self.catalog.gpus) * MACHINES), None, price)
        gpu = self.catalog.gpus[order["gpu"]["id"]]
        count = order["gpu"]["count"]
        where = [place for place in data_centers if place in gpu.places]
        machines = self._machines(gpu, order["gpu"])
        if not where or not machines or offered(gpu, cloud, count) == "NONE":
            raise Problem(400, NO_CAPACITY[0])
        number = machines[next(self.turns.setdefault(gpu.id, itertools.count())) % len(machines)]
        first = list(self.catalog.gpus).index(gpu.id) * MACHINES
        price = gpu.prices[cloud.lower()] * count
        return Place(where[0], address(first + number), gpu.cuda[number % len(gpu.cuda)], price)

    def _machines(self, gpu: Gpu, wanted: dict[str, Any]) -> list[int]:
        """List the numbers of the type's machines whose CUDA version is wanted."""
        count = min(MACHINES, int(self.faults.number("machines", MACHINES, gpu=gpu.id)))
        exact, least = wanted.get("allowedCudaVersions"), wanted.get("minCudaVersion")
        found = []
        for number in range(count):
            cuda = gpu.cuda[number % len(gpu.cuda)]
            if (not exact or cuda in exact) and (not least or version(cuda) >= version(least)):
                found.append(number)
        return found

    # Looking

    def find(self, pod_id: str) -> Pod:
        """Return a pod that is there.

        Raises:
            Problem: 404.
        """
        with self.lock:
            pod = self.pods.get(pod_id)
            if pod is None or pod.ended is not None:
                raise Problem(404, "pod not found")
            return pod

    def listed(self) -> list[dict[str, Any]]:
        """List the pods that lists have, as the API shows them."""
        with self.lock:
            now = time.time()
            return [self.show(pod) for pod in self.pods.values() if pod.ended is None and pod.listed_from <= now]

    def owner(self, key: str) -> str | None:
        """Return the pod whose key this is; also of a pod that is gone, None when it is nobody's."""
        with self.lock:
            return next((pod.id for pod in self.pods.values() if pod.key == key), None)

    def show(self, pod: Pod) -> dict[str, Any]:
        """Return a pod as the API shows it, its environment in clear."""
        with self.lock:
            order, running = pod.order, pod.status == "RUNNING"
            port = pod.shown_port() if running and pod.ssh else None
            assigned = pod.status != "PROVISIONING"
            proxy = _endpoint("ssh.runpod.io", 22, f"{pod.id}-{pod.id[:8]}") if assigned else None
            shown: dict[str, Any] = {
                "id": pod.id,
                "name": pod.name,
                "image": order.get("image", ""),
                "args": order.get("args", ""),
                "disk": order.get("disk", 20),
                "ports": order.get("ports", []),
                "env": order.get("env", {}),
                "registry": order.get("registry"),
                "status": pod.status,
                "actions": ACTIONS[pod.status],
                "mounts": order.get("mounts", {}),
                "cloud": order.get("cloud", "SECURE"),
                "dataCenterId": pod.place.data_center,
                "cudaVersion": pod.place.cuda if assigned else None,
                "ssh": {"proxy": proxy, "direct": _endpoint(pod.place.ip, port, "root") if port else None},
                "template": None,
                "cost": round(pod.place.price * pod.factor, 4) if pod.charged() else 0.0,
                "locked": False,
                "globalNetworking": {"enabled": False},
                "runtime": _runtime(pod, port) if running else None,
                "createdAt": iso(pod.created),
                "startedAt": iso(pod.started) if pod.started else None,
            }
            if "gpu" in order:
                shown["gpu"] = {"id": pod.gpu, "count": order["gpu"]["count"]}
            else:
                shown["cpu"] = {**order["cpu"], "memory": order["cpu"]["vcpuCount"] * 2}
            return shown

    def follow(
        self, pod_id: str, tail: int, wanted: Callable[[LogLine], bool], gone: Callable[[], bool]
    ) -> Iterator[bytes]:
        """Stream a pod's log as server-sent events, for as long as the pod is there.

        Args:
            pod_id: The pod.
            tail: How many of the lines that are there; of those that come, all.
            wanted: Which lines.
            gone: Whether nobody listens any more.
        """
        pod = self.find(pod_id)
        reader = LogReader(pod.log)

        def lines() -> list[LogLine]:
            found = [line for line in reader.read() if wanted(line)]
            if pod.hides_host_keys:
                found = [line for line in found if "SHA256:" not in line.text]
            return found

        def events() -> Iterator[bytes]:
            yield b"".join(line.event() for line in backfill[len(backfill) - min(tail, len(backfill)) :])
            while not self.closing.is_set() and pod.ended is None and not gone():
                yield b"".join(line.event() for line in lines())
                self.closing.wait(0.1)
            yield b"".join(line.event() for line in lines())

        backfill = lines()  # now, not when the answer's first piece goes out: what comes between is new
        return events()

    # Acting

    def rename(self, pod_id: str, name: str) -> Pod:
        """Give a pod another name.

        Raises:
            Problem: 404.
        """
        with self.lock:
            pod = self.find(pod_id)
            pod.name = name
            return pod

    def act(self, pod_id: str, action: str, by: str) -> Pod:
        """Start, stop, restart or terminate a pod.

        Args:
            pod_id: The pod.
            action: One of ACTIONS' values.
            by: Who asked: account or pod.

        Raises:
            Problem: 404, or 409 when its status does not allow it.
        """
        with self.lock:
            pod = self.find(pod_id)
            if action not in ACTIONS[pod.status]:
                raise Problem(409, f"cannot {action} a pod that is {pod.status}")
            if action == "terminate":
                self.end(pod_id, by)
            elif action == "stop":
                self._halt(pod, "EXITED")
            else:
                self._set(pod, "STARTING")
                in_place = action == "restart" and self._take("restart_keeps_port", pod) is not None
                self._boot(pod, in_place)
            return pod

    def end(self, pod_id: str, by: str) -> None:
        """End a pod for ever.

        Args:
            pod_id: The pod.
            by: Who asked: account, pod or sim.

        Raises:
            Problem: 404.
        """
        with self.lock:
            pod = self.find(pod_id)
            pod.bank()
            pod.ended, pod.ended_by = time.time(), by
            self._halt(pod, "TERMINATED")

    def do(self, pod_id: str, what: str, stale_seconds: float) -> None:
        """Do something to a pod behind everybody's back.

        Args:
            pod_id: The pod.
            what: vanish, exit, error, crash (PID 1 is killed) or move_port (a new container, as after a restart of
                the machine, while the status stays RUNNING).
            stale_seconds: How long the API goes on with the old port after move_port.

        Raises:
            Problem: 404, or 409 when it has no container to crash or move.
            ValueError: There is no such thing to do.
        """
        with self.lock:
            pod = self.find(pod_id)
            if what in ("crash", "move_port") and pod.status != "RUNNING":
                raise Problem(409, f"{pod_id} is {pod.status}; it must be RUNNING")
            if what == "vanish":
                self.end(pod_id, "sim")
            elif what in ("exit", "error"):
                self._halt(pod, {"exit": "EXITED", "error": "ERROR"}[what])
            elif what == "move_port":
                pod.stale, pod.port = (time.time() + stale_seconds, pod.port), None
                self._boot(pod)
            elif what != "crash":
                raise ValueError(f"«{what}» is none of vanish, exit, error, crash, move_port")
        if what == "crash":
            with pod.handling:
                self.backend.crash(pod_id)

    # What happens to a pod by itself

    def _boot(self, pod: Pod, in_place: bool = False) -> None:
        """Begin to boot; what is under way for this pod gives up."""
        pod.boot += 1
        self._thread(self._booting, pod, pod.boot, in_place)

    def _booting(self, pod: Pod, boot: int, in_place: bool) -> None:
        silent = pod.status == "RUNNING"  # a moved pod: nobody is told
        delay = 0.0 if silent else self._number("status_delay", pod, STATUS_DELAY)
        if pod.status == "PROVISIONING":
            self.closing.wait(delay)
            if self._take("stuck_provisioning", pod) or not self._reach(pod, boot, "STARTING"):
                return
        if fault := self._take("boots_to", pod):
            write_log(pod.log, f"error: the container does not start ({fault['status']})")
            with self.lock:
                if pod.boot == boot:
                    self._halt(pod, fault["status"])
            return
        with pod.handling:
            if pod.boot != boot or self.closing.is_set() or not self._contain(pod, boot, in_place):
                return
        self.closing.wait(delay)
        if not silent:
            self._reach(pod, boot, "RUNNING")

    def _contain(self, pod: Pod, boot: int, in_place: bool) -> bool:
        """Make the container, or start it again in place; whether that went well."""
        write_log(pod.log, f"start container {pod.order.get('image')}")
        pod.started = time.time()
        try:
            if in_place:
                self.backend.restart(pod.id)
                return True
            if boot > 1:
                self.backend.remove(pod.id)
            if not pod.keeps:
                self._wipe(pod)
            folder = self.state / "disk" / pod.folder
            folder.mkdir(parents=True, exist_ok=True)
            if (self.state / "seed").is_dir():
                shutil.copytree(self.state / "seed", folder, symlinks=True, dirs_exist_ok=True)
            pod.hides_host_keys = self._take("no_host_keys_in_log", pod) is not None
            pod.restarts = 0
            pod.port = self.backend.start(self._spec(pod))
        except (BackendError, ValueError, OSError) as error:
            write_log(pod.log, f"error: {error}")
            with self.lock:
                self.troubles.append(f"pod {pod.id}: {error}")
                if pod.boot == boot:
                    self._halt(pod, "ERROR")
            return False
        return True

    def _spec(self, pod: Pod) -> PodSpec:
        env = {name: self._reachable(value) for name, value in pod.order.get("env", {}).items()}
        return PodSpec(
            id=pod.id,
            image=pod.order.get("image", ""),
            args=pod.order.get("args", ""),
            env={**env, "RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": pod.key},
            ip=pod.place.ip,
            ssh=pod.ssh,
            folder=pod.folder,
            path=pod.path,
            gpu_word=pod.gpu_word,
            ssh_delay=self._number("ssh_delay", pod, SSH_DELAY),
            log=pod.log,
        )

    def _reachable(self, value: str) -> str:
        """Put into a text an address of the simulator that leads to it from inside a container."""
        for host in ("127.0.0.1", "localhost"):
            value = value.replace(f"http://{host}:{self.port}", f"http://{self.backend.gateway}:{self.port}")
        return value

    def _reach(self, pod: Pod, boot: int, status: str) -> bool:
        """Go on to a status; not if the pod has been told something else meanwhile."""
        with self.lock:
            if pod.boot != boot or self.closing.is_set():
                return False
            if status == "RUNNING" and (fault := self._take("stale_port", pod)):
                pod.stale = (time.time() + float(fault.get("seconds", 5)), _closed_port(pod.place.ip))
            self._set(pod, status)
            return True

    def _halt(self, pod: Pod, status: str) -> None:
        """Take the container away, and with it what no volume keeps."""
        self._set(pod, status)
        pod.boot += 1
        pod.port, pod.stale = None, (0.0, None)
        self._thread(self._removing, pod, pod.boot)

    def _removing(self, pod: Pod, boot: int) -> None:
        with pod.handling:
            if pod.boot != boot:
                return  # it boots again, and that begins with this
            try:
                self.backend.remove(pod.id)
            except BackendError as error:
                self.troubles.append(f"pod {pod.id}: {error}")
            if not pod.volume and (pod.ended is not None or not pod.keeps):
                self._wipe(pod)

    def _wipe(self, pod: Pod) -> None:
        shutil.rmtree(self.state / "disk" / "pods" / pod.id, ignore_errors=True)

    def _set(self, pod: Pod, status: str) -> None:
        pod.bank()
        pod.status = status
        write_log(pod.log, f"status {status}")

    def _take(self, fault: str, pod: Pod) -> dict[str, Any] | None:
        return self.faults.take(fault, gpu=pod.gpu, ip=pod.place.ip)

    def _number(self, fault: str, pod: Pod, default: float) -> float:
        return self.faults.number(fault, default, gpu=pod.gpu, ip=pod.place.ip)

    def _thread(self, work: Callable[..., None], *words: Any) -> None:
        thread = threading.Thread(target=work, args=words, daemon=True)
        with self.lock:
            self.threads = {one for one in self.threads if one.is_alive()} | {thread}
            thread.start()

    # For tests

    def bill(self, pod_id: str, factor: float) -> list[str]:
        """Let billing records appear, of what a pod has cost until now.

        Args:
            pod_id: The pod, also one that is gone; all for all.
            factor: Of the bill to the simulator's clock.

        Returns:
            The ids of the pods.

        Raises:
            Problem: 404.
        """
        with self.lock:
            if pod_id != "all" and pod_id not in self.pods:
                raise Problem(404, "pod not found")
            pods = [pod for pod in self.pods.values() if pod_id in ("all", pod.id)]
            for pod in pods:
                self.bills[pod.id] = (pod.created, pod.ended or time.time(), pod.usd() * factor)
            return [pod.id for pod in pods]

    def report(self) -> list[dict[str, Any]]:
        """List all pods that ever were; times are seconds since the epoch."""
        with self.lock:
            pods = list(self.pods.values())
        for pod in pods:
            if pod.status == "RUNNING":
                pod.restarts = max(pod.restarts, self.backend.restarts(pod.id))
        return [
            {
                "id": pod.id,
                "name": pod.name,
                "status": pod.status,
                "created": pod.created,
                "ended": pod.ended,
                "ended_by": pod.ended_by,
                "usd": pod.usd(),
                "ip": pod.place.ip,
                "port": pod.port,
                "gpu": pod.gpu,
                "data_center": pod.place.data_center,
                "restarts": pod.restarts,
            }
            for pod in pods
        ]

    def close(self) -> None:
        """Wait for what is under way, and remove all containers."""
        self.closing.set()
        for thread in list(self.threads):
            thread.join(30)
        self.backend.close()


def check_order(order: dict[str, Any], catalog: Catalog) -> None:
    """Check what the description of a create says in prose only.

    Args:
        order: The request's body.
        catalog: The GPU types and volumes there are.

    Raises:
        Problem: 422, 404 or 400; also the 400 that speaks of capacity when gpu.count is missing.
    """
    mounts, places = order.get("mounts", {}), order.get("dataCenterIds") or []
    gpu, volume = order.get("gpu", {}), _network(order)
    if ("gpu" in order) == ("cpu" in order):
        raise Problem(422, "Request validation failed.", ["$: exactly one of gpu and cpu must be set"])
    if "templateId" in order:
        raise Problem(404, "template not found")
    if "persistent" in mounts and "network" in mounts:
        raise Problem(400, "mounts.persistent and mounts.network are mutually exclusive")
    if "persistent" in mounts and "cpu" in order:
        raise Problem(400, "mounts.persistent is invalid for CPU pods")
    if gpu.get("minCudaVersion") and gpu.get("allowedCudaVersions"):
        raise Problem(400, "gpu.minCudaVersion and gpu.allowedCudaVersions are mutually exclusive")
    if len(order.get("env", {})) > ENV_LIMIT:
        raise Problem(400, f"a pod has at most {ENV_LIMIT} environment variables")
    if unknown := [place for place in places if place not in PLACES]:
        raise Problem(400, f"unknown data center {unknown[0]}")
    if volume and volume not in catalog.volumes:
        raise Problem(400, f"network volume {volume} not found")
    if volume and places and catalog.volumes[volume]["dataCenter"] not in places:
        raise Problem(400, f"network volume {volume} is not in {', '.join(places)}")
    if "gpu" in order and gpu["id"] not in catalog.gpus:
        raise Problem(400, f"unknown GPU type {gpu['id']}")
    if "gpu" in order and "count" not in gpu:
        raise Problem(400, NO_CAPACITY[0])  # not true, and the real API says so too


def iso(seconds: float) -> str:
    """Write seconds since the epoch as RFC 3339 has it."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def address(machine: int) -> str:
    """Return the loopback address of a machine."""
    return f"127.0.0.{FIRST_ADDRESS + machine}"


def records(bills: dict[str, tuple[float, float, float]], size: str, first: float, last: float) -> list[dict[str, Any]]:
    """Return billing records: for each pod and bucket its share of the pod's bill, by time.

    Args:
        bills: Pod -> the first and the last second it is for, and USD.
        size: One of BUCKETS.
        first: Only buckets that end after this time, in seconds since the epoch.
        last: Only buckets that begin before.
    """
    found = []
    for pod, (begin, end, usd) in bills.items():
        start = bucket(begin, size)
        while start < max(end, begin + 0.001):
            stop = bucket(start + 1.05 * LENGTHS[size], size)
            share = (min(stop, end) - max(start, begin)) / max(end - begin, 0.001) * usd
            if stop > first and start < last:
                amounts = {"totalAmount": share, "gpuAmount": share, "cpuAmount": 0, "diskAmount": 0}
                found.append({"startTime": iso(start), "endTime": iso(stop), "podId": pod, **amounts})
            start = stop
    return sorted(found, key=lambda record: record["startTime"])


LENGTHS = dict(zip(BUCKETS, (3600, 86400, 7 * 86400, 31 * 86400, 366 * 86400), strict=True))  # seconds, at most


def bucket(seconds: float, size: str) -> float:
    """Return the beginning of the billing bucket that a time is in.

    Args:
        seconds: Since the epoch.
        size: One of BUCKETS.
    """
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    moment = moment.replace(minute=0, second=0, microsecond=0)
    moment = moment if size == "hour" else moment.replace(hour=0)
    if size == "week":
        moment -= datetime.timedelta(days=moment.weekday())
    elif size in ("month", "year"):
        moment = moment.replace(day=1, month=1 if size == "year" else moment.month)
    return moment.timestamp()


def _network(order: dict[str, Any]) -> str | None:
    mounts: list[dict[str, str]] = order.get("mounts", {}).get("network") or []
    return mounts[0]["volumeId"] if mounts else None


def _endpoint(host: str, port: int, user: str) -> dict[str, Any]:
    option = "" if port == 22 else f" -p {port}"
    return {"host": host, "port": port, "username": user, "command": f"ssh {user}@{host}{option}"}


def _runtime(pod: Pod, port: int | None) -> dict[str, Any]:
    ports = [{"private": 22, "public": port, "type": "tcp", "ip": pod.place.ip}] if port else []
    return {"uptime": int(time.time() - (pod.started or time.time())), "ports": ports}


def _closed_port(ip: str) -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as one:
        one.bind((ip, 0))
        return int(one.getsockname()[1])
