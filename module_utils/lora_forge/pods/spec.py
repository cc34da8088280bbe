"""What is asked for when a pod is ordered: a module's options, checked, and with what its runs need."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import costs, leash
from ansible.module_utils.lora_forge.pods.runpod import RunPod
from ansible.module_utils.lora_forge.pods.spending import Caps

_NEEDED = {"gpus": "[NVIDIA L40S]", "max_usd_per_hour": "1.20", "image": "runpod/pytorch:…"}  # each with an example


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
        order_timeout: Seconds to wait for capacity.
        boot_timeout: Seconds from the order until SSH must answer.
        attempts: How many pods may be ordered until one boots.
        find_only: Nothing may be ordered or released: what is not there and well is an error.
        floor_gib: What a training certainly needs on one GPU; 0 where nothing is known.
        classes: What a training is thought to need with each file of configs/machines/.
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
    caps: Caps = dataclasses.field(default_factory=Caps)


def pod_spec(options: dict[str, Any], api: RunPod, public_key: str) -> PodSpec:
    """Read what is asked for from the options of the module ``runpod_pod``, checked as far as goes without ordering.

    Args:
        options: The module's.
        api: RunPod; it is asked where a network volume is.
        public_key: The one that the pod lets in.

    Raises:
        UserError: Something is missing, or contradicts something else.
    """
    host = options["host"]
    for name, example in _NEEDED.items():
        if not options[name]:
            raise UserError(f"{host}: pod_{name} is not set; name it in the inventory: pod_{name}: {example}")
    if not options["root"]:
        raise UserError(f"{host}: root is not set; name the folder of the trainer on the pod")
    mounts = _mounts(options)
    data_centers = _data_centers(options, api)
    if not options["leash"]:
        raise UserError("leash is not set; name roles/pod/files/leash.py. No pod is ordered without one")
    program = pathlib.Path(options["leash"]).read_text(encoding="utf-8")
    args, packed_leash = leash.wrap_start(program, options["start_command"])
    env = {
        **{name: str(value) for name, value in options["env"].items()},
        "PUBLIC_KEY": public_key,
        "LORA_FORGE_LEASH": packed_leash,
        "LORA_FORGE_ROOT": options["root"],
        "LORA_FORGE_API": api.url,
    }
    request = {"image": options["image"], "disk": options["disk"], "ports": ["22/tcp"], "args": args, "env": env}
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
        min_cuda=options["min_cuda"],
        data_centers=data_centers,
        request=request | ({"mounts": mounts} if mounts else {}),
        estimate=lambda gpu: costs.pod_hours(runs, gpu),
        order_timeout=options["order_timeout"],
        boot_timeout=options["boot_timeout"],
        attempts=options["attempts"],
        find_only=options["find_only"],
        floor_gib=_largest(runs, "memory_floor_gib"),
        classes=_largest_by_class(runs),
        caps=Caps(options["max_usd_per_day"], options["max_usd_per_month"]),
    )


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
