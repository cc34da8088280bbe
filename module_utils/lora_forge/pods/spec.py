"""What is asked for when a pod is ordered: a module's options, checked, and with what its runs need."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import costs, leash
from ansible.module_utils.lora_forge.pods.runpod import RunPod
from ansible.module_utils.lora_forge.pods.spending import Caps

_NEEDED = {"gpus": "[NVIDIA L40S]", "max_usd_per_hour": "1.20", "image": "runpod/pytorch:…"}  # each with an example
# What RunPod's description asks of an order, and the least that makes sense where it asks nothing.
_LEAST = {"gpu_count": 1, "disk": 1, "attempts": 1, "boot_timeout": 1, "order_timeout": 0}
_CAPS = ("max_usd_per_hour", "max_usd", "max_usd_per_day", "max_usd_per_month", "max_hours")
_SMALLEST_VOLUME = 10  # GB
_MOST_VARIABLES = 50  # of a pod, ours among them
_OUR_VARIABLES = ("PUBLIC_KEY", "LORA_FORGE_LEASH", "LORA_FORGE_ROOT", "LORA_FORGE_API", "LORA_FORGE_LOG_KEY",
                  "LORA_FORGE_DEADLINE", "LORA_FORGE_ALLOWANCE")  # fmt: skip
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?")


@dataclasses.dataclass(frozen=True)
class PodSpec:
    """A pod as the inventory declares it, with what its runs need.

    Attributes:
        host: Its inventory name.
        runs: The run_ids it is for.
        output: The controller's folder in which the runs' placements and adapters are.
        gpus: GPU candidates, in order.
        count: GPUs of the pod.
        clouds: SECURE, COMMUNITY or both.
        max_usd_per_hour: The most it may cost an hour.
        max_usd: The most that all pods of these runs may cost together; 0 for no such cap.
        max_hours: The longest it may live.
        memory_gib: What a training is thought to need on one GPU; 0 where nothing is known.
        min_cuda: The lowest CUDA version of the machine's driver; empty for any.
        data_centers: Where it may be; empty for anywhere.
        request: What else the create request holds: image, disk, ports, mounts, args, env.
        estimate: The hours all its runs take on a GPU type; None where nothing is known.
        answering: The seconds that one of them answers its agent's cases there after its training, at most.
        order_timeout: Seconds to wait for capacity.
        boot_timeout: Seconds from the order until SSH must answer.
        attempts: How many pods may be ordered until one boots.
        find_only: Nothing may be ordered or released: what is not there and well is an error.
        floor_gib: What a training certainly needs on one GPU; 0 where nothing is known.
        classes: What a training is thought to need with each file of configs/machines/.
        log_key: Returns the secret of a pod's log by the pod's unique name, see ``ssh.log_key``.
        notes: What the plan tells of the order, in sentences without a full stop.
        caps: What all pods of this owner may cost in a day and a month.
    """

    host: str
    runs: list[str]
    output: str
    gpus: list[str]
    count: int
    clouds: list[str]
    max_usd_per_hour: float
    max_usd: float
    max_hours: float
    memory_gib: float
    min_cuda: str
    data_centers: list[str]
    request: dict[str, Any]
    estimate: Callable[[str], Optional[float]]
    order_timeout: float
    boot_timeout: float
    attempts: int
    find_only: bool = False
    floor_gib: float = 0.0
    classes: dict[str, float] = dataclasses.field(default_factory=dict)
    log_key: Callable[[str], str] = lambda name: ""
    notes: list[str] = dataclasses.field(default_factory=list)
    caps: Caps = dataclasses.field(default_factory=Caps)
    answering: Callable[[str], float] = lambda gpu: 0.0


def pod_spec(
    options: dict[str, Any], api: RunPod, public_key: str, log_key: Callable[[str], str] = lambda name: ""
) -> PodSpec:
    """Read what is asked for from the options of the module ``runpod_pod``, checked as far as goes without ordering.

    Args:
        options: The module's.
        api: RunPod; it is asked where a network volume is.
        public_key: The one that the pod lets in.
        log_key: Returns the secret of a pod's log by the pod's unique name.

    Raises:
        UserError: Something is missing, contradicts something else, or is what RunPod would refuse at the order.
    """
    host = options["host"]
    for name, example in _NEEDED.items():
        if not options[name]:
            raise UserError(f"{host}: pod_{name} is not set; name it in the inventory: pod_{name}: {example}")
    if not options["root"]:
        raise UserError(f"{host}: root is not set; name the folder of the trainer on the pod")
    _check_figures(options)
    min_cuda = cuda_version(options["min_cuda"], host)
    image, notes = options["image"], []
    if not _IMAGE.fullmatch(image):
        raise UserError(f"{host}: pod_image is «{image}», which names no image; write it as owner/name:tag@sha256:…")
    if "@" not in image:
        notes.append(
            f"pod_image {image} is named by its tag alone, behind which another image may be tomorrow; a digest names "
            f"one for good: {image}@sha256:…"
        )
    own_env = _variables(options["env"], host)
    mounts = _mounts(options)
    data_centers = _data_centers(options, api)
    if not options["leash"]:
        raise UserError("leash is not set; name roles/pod/files/leash.py. No pod is ordered without one")
    program = pathlib.Path(options["leash"]).read_text(encoding="utf-8")
    args, packed_leash = leash.wrap_start(program, options["start_command"])
    env = {
        **own_env,
        "PUBLIC_KEY": public_key,
        "LORA_FORGE_LEASH": packed_leash,
        "LORA_FORGE_ROOT": options["root"],
        "LORA_FORGE_API": api.url,
    }
    request = {"image": image, "disk": options["disk"], "ports": ["22/tcp"], "args": args, "env": env}
    runs = options["runs"]
    return PodSpec(
        host=host,
        runs=[run["run_id"] for run in runs],
        output=options["output"],
        gpus=options["gpus"],
        count=options["gpu_count"],
        clouds=options["clouds"],
        max_usd_per_hour=options["max_usd_per_hour"],
        max_usd=options["max_usd"],
        max_hours=options["max_hours"],
        memory_gib=_largest(runs, "memory_gib"),
        min_cuda=min_cuda,
        data_centers=data_centers,
        request=request | ({"mounts": mounts} if mounts else {}),
        estimate=lambda gpu: costs.pod_hours(runs, gpu),
        answering=lambda gpu: costs.answering_after(runs, gpu),
        order_timeout=options["order_timeout"],
        boot_timeout=options["boot_timeout"],
        attempts=options["attempts"],
        find_only=options["find_only"],
        floor_gib=_largest(runs, "memory_floor_gib"),
        classes=_largest_by_class(runs),
        log_key=log_key,
        notes=notes,
        caps=Caps(options["max_usd_per_day"], options["max_usd_per_month"]),
    )


def cuda_version(text: str, host: str = "") -> str:
    """Return a CUDA version as RunPod's orders take it, major.minor: 13 is 13.0.

    Args:
        text: As the user wrote it; empty for any.
        host: Of the pod, for the message.

    Raises:
        UserError: It is no version.
    """
    if not text or re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", text):
        return text
    if re.fullmatch(r"[0-9]{1,3}", text):
        return f"{text}.0"
    raise UserError(f'{host and f"{host}: pod_"}min_cuda is «{text}»; write major.minor, as in "13.0"')


def check_count(name: str, value: float, least: float) -> None:
    """Hold a number to the least that it may be.

    Raises:
        UserError: It is less, or no number.
    """
    if not value >= least or not math.isfinite(value):
        raise UserError(f"{name} is {value}; give at least {least}")


def _check_figures(options: dict[str, Any]) -> None:
    """Refuse numbers and names with which RunPod would refuse an order, or which make none.

    Raises:
        UserError: One is out of its range.
    """
    host, volume = options["host"], options["volume"]
    for name, least in {**_LEAST, **dict.fromkeys(_CAPS, 0)}.items():
        check_count(f"{host}: pod_{name}", options[name], least)
    if not options["max_hours"]:
        raise UserError(f"{host}: pod_max_hours is 0; give the hours that the pod may live")
    if volume and volume < _SMALLEST_VOLUME:
        raise UserError(f"{host}: pod_volume is {volume}; RunPod's smallest has {_SMALLEST_VOLUME} GB, and 0 is none")
    for name in ("gpus", "clouds", "data_centers"):
        if not all(isinstance(entry, str) and entry.strip() for entry in options[name]):
            raise UserError(f"{host}: pod_{name} holds an empty name; leave it out")
    if not options["clouds"]:
        raise UserError(f"{host}: pod_clouds is empty; name SECURE, COMMUNITY or both")
    if not options["mount"].startswith("/") or not options["mount"].isprintable():
        raise UserError(f"{host}: pod_mount is «{options['mount']}»; write a path that begins with /")


def _variables(given: dict[str, Any], host: str) -> dict[str, str]:
    """Return the user's variables for a pod, as texts.

    Raises:
        UserError: One has no name or value that a container's environment may hold, is set by RunPod or by us, or
            there are too many.
    """
    most = _MOST_VARIABLES - len(_OUR_VARIABLES)
    if len(given) > most:
        raise UserError(f"{host}: pod_env holds {len(given)} variables; RunPod takes {most} beside those of lora-forge")
    for name, value in given.items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise UserError(f"{host}: pod_env: «{name}» is no name of a variable; use letters, digits and _")
        if name.startswith(("LORA_FORGE_", "RUNPOD_")):  # one of RunPod's own would leave the leash without its key
            raise UserError(f"{host}: pod_env: {name} is set by RunPod or by lora-forge; leave it out")
        if value is None or isinstance(value, (dict, list)) or "\0" in str(value):
            raise UserError(f"{host}: pod_env: {name} must be a text or a number; put it in quotes")
    return {name: str(value) for name, value in given.items()}


def _mounts(options: dict[str, Any]) -> dict[str, Any]:
    """Return the volume of a pod as RunPod's API takes it; empty without one.

    Raises:
        UserError: There would be two, or the trainer's folder would not lie on it.
    """
    host, mount = options["host"], options["mount"]
    if not options["volume"] and not options["network_volume"]:
        return {}
    if not f"{options['root']}/".startswith(f"{mount.rstrip('/')}/"):
        raise UserError(
            f"{host}: trainer_root {options['root']} does not lie on the volume, which is mounted at {mount}; what is "
            "trained would be lost with the container"
        )
    if options["volume"] and options["network_volume"]:
        raise UserError(f"{host}: pod_volume and pod_network_volume exclude each other")
    if options["network_volume"]:
        return {"network": [{"volumeId": options["network_volume"], "path": mount}]}
    return {"persistent": {"size": options["volume"], "path": mount}}


def _data_centers(options: dict[str, Any], api: RunPod) -> list[str]:
    """Return where a pod may be: anywhere that is asked for, or where its network volume is.

    Raises:
        UserError: The volume is elsewhere.
    """
    centers: list[str] = options["data_centers"]
    if not options["network_volume"]:
        return centers
    volume = api.get_volume(options["network_volume"])
    if centers and volume["dataCenter"] not in centers:
        raise UserError(
            f"{options['host']}: network volume {volume['id']} is in {volume['dataCenter']}, but pod_data_centers "
            f"holds {', '.join(centers)}; a pod can use a volume of its own data center only"
        )
    return [volume["dataCenter"]]


def _largest(runs: list[dict[str, Any]], key: str) -> float:
    """Return the largest figure that the estimates of some runs have; 0 where none is known."""
    return max((run["estimate"].get(key) or 0 for run in runs), default=0)


def _largest_by_class(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return for each machine class how many GiB the largest of some runs is thought to need with it."""
    needs = [run["estimate"].get("memory_classes") or {} for run in runs]
    return {name: max(need.get(name, 0) for need in needs) for name in (needs[0] if needs else {})}
