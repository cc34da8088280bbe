"""What can be ordered. Every figure here is invented: prices, stock, CUDA versions, places and the volume."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

from contract import Problem

Query = Mapping[str, list[str]]
PLACES = ("US-TX-3", "EU-RO-1", "US-KS-2")
COUNTRIES = {"US-TX-3": "US", "EU-RO-1": "RO", "US-KS-2": "US"}
LEVELS = ("NONE", "LOW", "MEDIUM", "HIGH")
NEEDS_AVAILABILITY = ("product", "count", "cloud", "countryCodes", "cudaVersions", "minCudaVersion")


@dataclasses.dataclass
class Gpu:
    """A GPU type.

    Attributes:
        memory: GB.
        prices: USD an hour for one, by cloud; 0 where it is not offered.
        stock: One of LEVELS, by cloud.
        cuda: The versions its machines report, newest first.
        places: The data centers that have it.
        max_count: GPUs of the largest machine.
    """

    id: str
    name: str
    pool: str | None
    memory: int
    prices: dict[str, float]
    stock: dict[str, str]
    cuda: list[str] = dataclasses.field(default_factory=lambda: ["13.0", "12.8"])
    places: list[str] = dataclasses.field(default_factory=lambda: list(PLACES))
    max_count: int = 8


def _gpu(id: str, memory: int, pool: str | None, secure: float, community: float, stock: str, **more: Any) -> Gpu:
    levels = {"secure": stock if secure else "NONE", "community": "LOW" if community else "NONE"}
    prices = {"secure": secure, "community": community}
    return Gpu(id, id.removeprefix("NVIDIA ").removeprefix("GeForce "), pool, memory, prices, levels, **more)


GPUS = (
    _gpu("NVIDIA GeForce RTX 4090", 24, "ADA_24", 0.69, 0.34, "HIGH", cuda=["13.0", "12.8", "12.4"]),
    _gpu("NVIDIA RTX A6000", 48, "AMPERE_48", 0.49, 0.33, "MEDIUM"),
    _gpu("NVIDIA L40S", 48, "ADA_48_PRO", 0.86, 0.79, "HIGH"),
    _gpu("NVIDIA A100 80GB PCIe", 80, "AMPERE_80", 1.39, 1.19, "MEDIUM"),
    _gpu("NVIDIA A100-SXM4-80GB", 80, "AMPERE_80", 1.49, 0, "HIGH"),
    _gpu("NVIDIA H100 80GB HBM3", 80, "ADA_80_PRO", 2.69, 0, "HIGH", cuda=["13.0"]),
    _gpu("NVIDIA H100 NVL", 94, None, 3.07, 2.59, "LOW", places=["US-KS-2"]),
    _gpu("NVIDIA H200", 141, "HOPPER_141", 3.59, 0, "LOW", cuda=["13.0"], places=["US-TX-3", "EU-RO-1"]),
)
DATA_CENTERS: tuple[dict[str, Any], ...] = tuple(
    {
        "id": place,
        "name": name,
        "region": region,
        "globalNetwork": place != "US-KS-2",
        "networkVolumeTypes": ["STANDARD"],
        "compliance": ["GDPR"] if region == "EUROPE" else ["SOC_2_TYPE_2"],
    }
    for place, name, region in (
        ("US-TX-3", "US Texas 3", "NORTH_AMERICA"),
        ("EU-RO-1", "EU Romania 1", "EUROPE"),
        ("US-KS-2", "US Kansas 2", "NORTH_AMERICA"),
    )
)
VOLUMES: tuple[dict[str, Any], ...] = (
    {"id": "vol-eu", "name": "vol-eu", "size": 50, "dataCenter": "EU-RO-1", "type": "STANDARD"},
)
CPU_PRICE = 0.03  # USD an hour for one virtual CPU, of any flavour


class Catalog:
    """GPU types, data centers and network volumes, changeable while it serves; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.gpus = {gpu.id: copy.deepcopy(gpu) for gpu in GPUS}
        self.volumes: dict[str, dict[str, Any]] = {volume["id"]: dict(volume) for volume in VOLUMES}

    def change_stock(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change GPU types.

        Args:
            changes: By GPU id: secure and community (a level), prices ({secure, community}), cuda, places, max_count.

        Raises:
            ValueError: There is no such GPU, level or key.
        """
        with self._lock:
            for name, change in changes.items():
                if name not in self.gpus:
                    raise ValueError(f"there is no GPU «{name}»")
                gpu = self.gpus[name]
                for key, value in change.items():
                    if key in gpu.stock and value in LEVELS:
                        gpu.stock[key] = value
                    elif key == "prices":
                        gpu.prices |= value
                    elif key in ("cuda", "places", "max_count"):
                        setattr(gpu, key, value)
                    else:
                        raise ValueError(f"«{key}»: {value} is no change of a GPU's stock")

    def change_volumes(self, changes: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Add, change or (with null) remove network volumes.

        Args:
            changes: By volume id: size (GB), dataCenter, name, type.
        """
        with self._lock:
            for name, change in changes.items():
                if change is None:
                    self.volumes.pop(name, None)
                else:
                    self.volumes[name] = {**VOLUMES[0], "name": name, **change, "id": name}

    def list_volumes(self) -> list[dict[str, Any]]:
        """List the network volumes, as the API shows them."""
        with self._lock:
            return [dict(volume) for volume in self.volumes.values()]

    def list_gpus(self, query: Query) -> list[dict[str, Any]]:
        """List the GPU types, as the API shows them; those of no asked country drop out.

        Raises:
            Problem: The query's parameters do not go together.
        """
        check_query(query)
        with self._lock:
            shown = [self._show(gpu, query) for gpu in self.gpus.values()]
        return [gpu for gpu in shown if "dataCenters" in gpu or not _words(query, "countryCodes")]

    def show_gpu(self, name: str, query: Query) -> dict[str, Any]:
        """Show one GPU type, as the API does.

        Raises:
            Problem: 404 when there is none, 400 when the query's parameters do not go together.
        """
        check_query(query)
        with self._lock:
            if name not in self.gpus:
                raise Problem(404, "GPU type not found")
            return self._show(self.gpus[name], query)

    def list_data_centers(self, query: Query) -> list[dict[str, Any]]:
        """List the data centers that meet the query's filters, as the API shows them."""
        include = _words(query, "include")
        shown = []
        for place in DATA_CENTERS:
            if not _wanted(place, query):
                continue
            entry = dict(place)
            if "GPU_AVAILABILITY" in include:
                with self._lock:
                    entry["gpuAvailability"] = [
                        {"id": gpu.id, "name": gpu.name, "availability": gpu.stock["secure"]}
                        for gpu in self.gpus.values()
                        if place["id"] in gpu.places
                    ]
            shown.append(entry)
        return shown

    def _show(self, gpu: Gpu, query: Query) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "id": gpu.id,
            "name": gpu.name,
            "pool": gpu.pool,
            "manufacturer": "NVIDIA",
            "memory": gpu.memory,
            "secure": gpu.prices["secure"] > 0,
            "community": gpu.prices["community"] > 0,
            "price": dict(gpu.prices),
            "maxCount": {cloud: gpu.max_count if price else 0 for cloud, price in gpu.prices.items()},
        }
        return shown | (_availability(gpu, query) if _words(query, "include") else {})


def check_query(query: Query) -> None:
    """Check what the description says in prose about a catalog query.

    Raises:
        Problem: 400.
    """
    if "AVAILABILITY" not in _words(query, "include"):
        if alone := [name for name in NEEDS_AVAILABILITY if name in query]:
            raise Problem(400, f"{', '.join(alone)} is valid only with include=AVAILABILITY")
    elif not _words(query, "product"):
        raise Problem(400, "include=AVAILABILITY requires product")
    if "cudaVersions" in query and "minCudaVersion" in query:
        raise Problem(400, "cudaVersions and minCudaVersion are mutually exclusive")


def offered(gpu: Gpu, cloud: str, count: int) -> str:
    """Return the stock level of so many GPUs in one machine.

    Args:
        gpu: The type.
        cloud: SECURE or COMMUNITY.
        count: GPUs of one pod.
    """
    kind = cloud.lower()
    return gpu.stock[kind] if gpu.prices[kind] > 0 and count <= gpu.max_count else "NONE"


def version(text: str) -> tuple[int, ...]:
    """Read a CUDA version as numbers, as 12.11 is above 12.2."""
    return tuple(int(part) for part in text.split("."))


def _availability(gpu: Gpu, query: Query) -> dict[str, Any]:
    exact, least = _words(query, "cudaVersions"), _words(query, "minCudaVersion")
    versions = [word for word in gpu.cuda if not exact or word in exact]
    versions = [word for word in versions if not least or version(word) >= version(least[0])]
    countries = _words(query, "countryCodes")
    places = [place for place in gpu.places if not countries or COUNTRIES[place] in countries]
    count = int((_words(query, "count") or ["1"])[0])
    level = offered(gpu, (_words(query, "cloud") or ["SECURE"])[0], count) if versions and places else "NONE"
    shown: dict[str, Any] = {
        "availability": level,
        "cudaVersions": [{"version": word, "available": level != "NONE"} for word in versions],
    }
    if level != "NONE":
        names = {place["id"]: place["name"] for place in DATA_CENTERS}
        shown["dataCenters"] = [{"id": place, "name": names[place], "availability": level} for place in places]
    return shown


def _wanted(place: Mapping[str, Any], query: Query) -> bool:
    regions, world = _words(query, "regions"), _words(query, "globalNetwork")
    return (
        (not regions or place["region"] in regions)
        and set(_words(query, "networkVolumeTypes")) <= set(place["networkVolumeTypes"])
        and set(_words(query, "compliance")) <= set(place["compliance"])
        and (not world or place["globalNetwork"] == (world[0] == "true"))
    )


def _words(query: Query, name: str) -> list[str]:
    """Split the comma-separated values of a parameter."""
    return [word for word in (query.get(name) or [""])[-1].split(",") if word]
