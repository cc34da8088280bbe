"""What a checkout has ordered: a claim on disk for each pod, what it costs, and whose the pods of an account are."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import pathlib
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.errors import UserError

_PREFIX = "lora-forge"
_BILLED = "RunPod's bill"  # where a cost in a manifest is from
LAUNCH = 3600.0  # seconds within which a run is launched on a pod that was asked for, or the pod is for nothing
FINAL_BILL = 86400.0  # seconds after which RunPod's bill for a pod is taken for whole


class Claims:
    """What this checkout has ordered, one JSON file for each pod, and its owner id.

    A claim is on disk before its pod is ordered, so that a controller that dies in between leaves nothing unknown.

    Args:
        folder: Where they lie.
        owner: Another owner's id, to see that one's pods; empty for this checkout's own.

    Raises:
        UserError: The owner's id would not be found in names again.
    """

    def __init__(self, folder: pathlib.Path, owner: str = ""):
        self.folder = folder
        self._owner = _checked(owner) if owner else ""

    @property
    def owner(self) -> str:
        """The owner id, made once."""
        if not self._owner:
            path = self.folder / "owner"
            if path.exists() and not path.read_text().strip():
                path.unlink()  # cut off by a full disk
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                part = self.folder / f".owner.{os.getpid()}"
                part.write_text(uuid.uuid4().hex[:8] + "\n")
                with contextlib.suppress(FileExistsError):
                    os.link(part, path)  # whole or not at all; who comes second takes the first one's
                part.unlink()
            self._owner = _checked(path.read_text().strip())
        return self._owner

    def all(self) -> list[dict[str, Any]]:
        """Every claim, oldest first."""
        found = [rundir.read_json(path) for path in (self.folder / "claims").glob("*.json")]
        return sorted((claim for claim in found if claim.get("name")), key=lambda claim: claim["made_at"])

    def open(self, host: str) -> Optional[dict[str, Any]]:
        """The claim of a host that is not released, the newest one of this owner."""
        found = [claim for claim in self.all() if claim["host"] == host and not claim["released_at"]]
        found = [claim for claim in found if claim["owner"] == self.owner]
        return found[-1] if found else None

    def make(self, host: str, runs: list[str], now: float, **known: Any) -> dict[str, Any]:
        """A new claim, on disk.

        Args:
            host: Its inventory name.
            runs: The run_ids it is for.
            now: Epoch seconds.
            known: What is known of it already.
        """
        claim = {
            "schema_version": rundir.SCHEMA_VERSION,
            "name": f"{_PREFIX}-{self.owner}-{host}-{uuid.uuid4().hex[:6]}",
            "owner": self.owner,
            "host": host,
            "runs": runs,
            "output": "",
            "made_at": now,
            "began_at": now,
            "wanted_at": now,
            "waiting_since": None,
            "attempt": 1,
            "state": "claimed",
            "pod_id": None,
            "gpu": None,
            "cloud": None,
            "usd_per_hour": 0.0,
            "asked_at": None,
            "allowance_s": None,
            "deadline": None,
            "boot_since": None,
            "ready_at": None,
            "machine": None,
            "word": "",
            "bad": False,
            "released_at": None,
            "usd": 0.0,
            "billed_usd": None,
        }
        return self.write(claim | known)

    def write(self, claim: dict[str, Any], **changes: Any) -> dict[str, Any]:
        claim.update(changes)
        (self.folder / "claims").mkdir(parents=True, exist_ok=True, mode=0o700)
        rundir.write_json(self.path(claim["name"]), claim)
        return claim

    def path(self, name: str) -> pathlib.Path:
        return self.folder / "claims" / f"{name}.json"

    @contextlib.contextmanager
    def locked(self, host: str) -> Iterator[None]:
        """One step at a time for a host: two controllers of this checkout would order two pods."""
        (self.folder / "claims").mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "claims" / f".{host}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def spent(self, runs: list[str], now: float, but: str = "") -> float:
        """USD that the pods of some runs have cost so far.

        Args:
            runs: run_ids.
            now: Epoch seconds.
            but: The name of a claim that is left out.
        """
        return sum(claim_cost(c, now) for c in self.all() if c["name"] != but and set(c["runs"]) & set(runs))


def _checked(owner: str) -> str:
    """An owner's id that is found in names again.

    Raises:
        UserError: It would not be.
    """
    if not re.fullmatch("[0-9a-zA-Z]+", owner):
        raise UserError(f"owner is «{owner}»; an owner's id holds letters and digits only")
    return owner


def parse_name(name: str) -> Optional[tuple[str, str]]:
    """Owner and host of a pod that lora-forge ordered, from its name; None for others."""
    match = re.match(rf"^{_PREFIX}-([0-9a-zA-Z]+)-(.+)-[0-9a-f]{{6}}$", name)
    return (match.group(1), match.group(2)) if match else None


def claim_cost(claim: dict[str, Any], now: float) -> float:
    """USD that a pod has cost: as billed, once that is whole, else its price × the time from order to release."""
    if not claim["pod_id"]:
        return 0.0
    billed = claim["billed_usd"]
    if billed is not None and now - (claim["released_at"] or now) > FINAL_BILL:
        return float(billed)
    by_clock = max(0.0, (claim["released_at"] or now) - claim["asked_at"]) / 3600 * float(claim["usd_per_hour"])
    return max(float(billed or 0), by_clock)  # a bill may still be missing its last hours


def undelivered_costs(claims: list[dict[str, Any]], adapters: pathlib.Path, now: float) -> list[tuple[set[str], float]]:
    """What pods have cost, and no manifest of a delivered adapter accounts for: in USD, with the runs it was for.

    Runs that shared a pod stand together, and so do those of a run's pods: what an adapter cost is what was left when
    it was delivered. So nothing is counted twice.

    Args:
        claims: This checkout's.
        adapters: output/adapters.
        now: Epoch seconds.
    """
    groups: list[tuple[set[str], set[str], float]] = []
    for claim in claims:
        runs, pods, usd = {*claim["runs"]}, {str(claim["pod_id"])}, claim_cost(claim, now)
        for one in [group for group in groups if group[0] & runs]:
            groups.remove(one)
            runs, pods, usd = runs | one[0], pods | one[1], usd + one[2]
        groups.append((runs, pods, usd))
    folders = store.delivered_folders(adapters) if groups else []
    costs = [manifest.cost for manifest in map(store.read_manifest, folders) if manifest]
    noted = [(cost.usd, {*(cost.pods or ())}) for cost in costs if cost.usd is not None]
    return [(runs, max(0.0, usd - sum(part for part, on in noted if on & pods))) for runs, pods, usd in groups]


def cost_by_run(claims: list[dict[str, Any]], adapters: pathlib.Path, now: float) -> dict[str, float]:
    """USD that each run has cost which is not delivered: an equal part of what is :func:`undelivered_costs` for."""
    there = {folder.name for folder in store.delivered_folders(adapters)}
    return {
        run: round(usd / len(runs - there), 4)
        for runs, usd in undelivered_costs(claims, adapters, now)
        for run in runs - there
    }


def retention_notice(claim: dict[str, Any]) -> str:
    """What a pod that is kept goes on costing, until when, and the two ways on."""
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(claim["deadline"]))
    return (
        f"It costs {claim['usd_per_hour']:.2f} USD/h until its leash ends it at {until}. Either go on with the same "
        f"command, or give it up: ansible-playbook -i <inventory> playbooks/release.yml -e pod={claim['host']}"
    )


def active_runs(claim: dict[str, Any], now: float) -> list[str]:
    """The runs for which a pod is kept: not launched yet, under way, or finished and not delivered.

    Args:
        claim: Its claim.
        now: Epoch seconds.
    """
    if claim["released_at"]:
        return []
    output = pathlib.Path(claim["output"])
    found = []
    for run in claim["runs"]:
        placed = rundir.read_json(output / "runs" / f"{run}.json") if claim["output"] else {}
        delivered = bool(claim["output"]) and any(output.glob(f"adapters/*/{run}/manifest.json"))
        # Asked for after the run was last heard of: it is about to be launched there.
        coming = now - claim["wanted_at"] < LAUNCH and placed.get("noted_at", 0) < claim["wanted_at"]
        if not delivered and (placed.get("state") in ("launched", "finished") or coming):
            found.append(run)
    return sorted(found)


def apply_billing(claims: list[dict[str, Any]]) -> None:
    """Correct the cost in manifests by what was billed, once the bills of all their pods are there."""
    known = {claim["pod_id"]: claim for claim in claims if claim["pod_id"]}
    outputs = {claim["output"] for claim in claims if claim["output"]}
    for path in [path for output in outputs for path in pathlib.Path(output).glob("adapters/*/*/manifest.json")]:
        manifest = rundir.read_json(path)
        noted = manifest.get("cost") or {}
        found = [known.get(pod) for pod in noted.get("pods") or []]
        if not found or not all(one and one["billed_usd"] is not None for one in found):
            continue
        counted = sum(claim_cost({**one, "billed_usd": None}, one["released_at"]) for one in found if one)
        by_clock = noted.get("usd_by_clock", noted["usd"])
        if counted:
            usd = round(by_clock * sum(one["billed_usd"] for one in found if one) / counted, 4)
            after = {**noted, "usd": usd, "usd_by_clock": by_clock, "source": _BILLED}
            if after != noted:
                rundir.write_json(path, {**manifest, "cost": after})


def list_account_pods(
    api_pods: list[dict[str, Any]], claims: list[dict[str, Any]], owner: str, now: float
) -> list[dict[str, Any]]:
    """Every pod of the account, and whose it is.

    Args:
        api_pods: From RunPod.
        claims: This checkout's.
        owner: This checkout.
        now: Epoch seconds.

    Returns:
        A list of {name, id, host, gpu, status, usd_per_hour, age_h, usd, mine, claimed (by which live runs), deadline,
        keeps: what it goes on costing, in words}.
    """
    by_name = {claim["name"]: claim for claim in claims}
    rows = []
    for pod in sorted(api_pods, key=lambda one: one.get("createdAt") or ""):
        parsed = parse_name(pod["name"])
        claim = by_name.get(pod["name"])
        born = parse_time(pod.get("createdAt")) or (claim or {}).get("asked_at") or now
        rate = float(pod.get("cost") or 0)
        rows.append({
            "name": pod["name"], "id": pod["id"], "host": parsed[1] if parsed else "", "status": pod["status"],
            "gpu": (pod.get("gpu") or {}).get("id") or "CPU", "usd_per_hour": rate,
            "age_h": round((now - born) / 3600, 3), "usd": round((now - born) / 3600 * rate, 4),
            "mine": parsed is not None and parsed[0] == owner,
            "claimed": active_runs(claim, now) if claim else [],
            "deadline": claim["deadline"] if claim else pod.get("deadline"),
            "keeps": retention_notice(claim) if claim and claim["deadline"] else f"It costs {rate:.2f} USD/h.",
        })  # fmt: skip
    return rows


def parse_time(text: Optional[str]) -> Optional[float]:
    """RFC 3339 as epoch seconds."""
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
