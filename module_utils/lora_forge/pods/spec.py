"""What is asked for when a pod is ordered: a module's options, checked, and with what its runs need."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import costs, leash, runpod


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


def wanted(given: dict[str, Any], api: runpod.RunPod, public_key: str) -> PodSpec:
    """What the arguments ask for, checked as far as that goes without ordering.

    Raises:
        UserError: Something is missing, or contradicts something else.
    """
    for name, example in (("gpus", "[NVIDIA L40S]"), ("max_usd_per_hour", "1.20"), ("image", "runpod/pytorch:…")):
        if not given[name]:
            raise UserError(f"{given['host']}: pod_{name} is not set; name it in the inventory: pod_{name}: {example}")
    on_volume = f"{given['root']}/".startswith(f"{given['mount'].rstrip('/')}/")
    if (given["volume"] or given["network_volume"]) and not on_volume:
        raise UserError(
            f"{given['host']}: trainer_root {given['root']} does not lie on the volume, which is mounted at "
            f"{given['mount']}; what is trained would be lost with the container"
        )
    if given["volume"] and given["network_volume"]:
        raise UserError(f"{given['host']}: pod_volume and pod_network_volume exclude each other")
    centers = given["data_centers"]
    if given["network_volume"]:
        volume = api.get_volume(given["network_volume"])
        if centers and volume["dataCenter"] not in centers:
            raise UserError(
                f"{given['host']}: network volume {volume['id']} is in {volume['dataCenter']}, but pod_data_centers "
                f"holds {', '.join(centers)}; a pod can use a volume of its own data center only"
            )
        centers = [volume["dataCenter"]]
    mounts: dict[str, Any] = {}
    if given["network_volume"]:
        mounts = {"network": [{"volumeId": given["network_volume"], "path": given["mount"]}]}
    elif given["volume"]:
        mounts = {"persistent": {"size": given["volume"], "path": given["mount"]}}
    if not given["leash"]:
        raise UserError("leash is not set; name roles/pod/files/leash.py. No pod is ordered without one")
    args, program = leash.wrap_start(pathlib.Path(given["leash"]).read_text(encoding="utf-8"), given["start_command"])
    env = {
        **{name: str(value) for name, value in given["env"].items()},
        "PUBLIC_KEY": public_key,
        "LORA_FORGE_LEASH": program,
        "LORA_FORGE_ROOT": given["root"],
        "LORA_FORGE_API": api.url,
    }
    request = {"image": given["image"], "disk": given["disk"], "ports": ["22/tcp"], "args": args, "env": env}
    size, floor = (
        max((run["estimate"].get(key) or 0 for run in given["runs"]), default=0)
        for key in ("memory_gib", "memory_floor_gib")
    )
    sizes = [run["estimate"].get("memory_classes") or {} for run in given["runs"]]
    return PodSpec(
        host=given["host"], runs=[run["run_id"] for run in given["runs"]], output=given["output"], gpus=given["gpus"],
        count=given["gpu_count"], clouds=given["clouds"], max_usd_per_hour=given["max_usd_per_hour"],
        max_usd=given["max_usd"], max_hours=given["max_hours"], memory_gib=size, floor_gib=floor,
        min_cuda=given["min_cuda"], data_centers=centers, request=request | ({"mounts": mounts} if mounts else {}),
        estimate=lambda gpu: costs.pod_hours(given["runs"], gpu),
        order_timeout=given["order_timeout"], boot_timeout=given["boot_timeout"],
        attempts=given["attempts"], find_only=given["find_only"],
        classes={name: max(one.get(name, 0) for one in sizes) for one in sizes[:1] for name in one},
    )  # fmt: skip
