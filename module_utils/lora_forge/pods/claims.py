"""What a checkout has ordered: a claim on disk for each pod, what it costs, and whose the pods of an account are."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import pathlib
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.adapters.manifest import Cost
from ansible.module_utils.lora_forge.agents import evaluated_by
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, read_record

_PREFIX = "lora-forge"
_BILLED = "RunPod's bill"  # where a cost in a manifest is from
LAUNCH = 3600.0  # seconds within which a run is launched on a pod that was asked for, or the pod is for nothing
FINAL_BILL = 86400.0  # seconds after which RunPod's bill for a pod is taken for whole


@dataclasses.dataclass
class Claim(JsonRecord):
    """What this checkout knows of a pod that it has ordered, or is about to order. Times are in epoch seconds.

    Attributes:
        name: The pod's unique name, with the owner and the host in it.
        owner: The checkout's id.
        host: The pod's inventory name.
        runs: The run_ids it is for.
        output: The controller's folder in which their placements and adapters are; empty where that is not known.
        made_at: When the claim was made.
        began_at: When the first of a row of attempts was.
        wanted_at: When a controller last asked for the pod.
        waiting_since: Since when there is no capacity.
        attempt: The number of this one in a row of attempts.
        state: claimed, waiting (for capacity), asked, ordered, ready, releasing (until the pod is seen to be gone);
            then released, gone, or given up.
        pod_id: RunPod's id, as soon as there is one.
        gpu: RunPod's id of the GPU type that was asked for.
        cloud: SECURE or COMMUNITY.
        usd_per_hour: Its price, or the catalogue's while RunPod has not said what this very pod costs.
        offered: What the catalogue said that it would cost an hour.
        priced: Whether RunPod has said what this very pod costs.
        seen: Whether RunPod has shown the pod in a list, or by its id.
        asked_at: When it was ordered.
        asked_uptime: The same by a clock that nobody sets: seconds since this machine's boot.
        boot: Of which boot of this machine that is.
        unclear: Whether its last order may still bring a pod that nobody has seen.
        lost_at: When the answer to an order was lost.
        lost_orders: How many orders under this name got no clear answer.
        watched_for: What is waited for: a pod that is not there (gone), its price, or the pause before an order.
        watched_s: For how many seconds that was watched, by a clock that nobody sets.
        looks: How often RunPod was asked meanwhile.
        pause_s: For so long no order goes out.
        allowance_s: Seconds that it was given to live.
        deadline: When its leash ends it.
        boot_since: Since when it is waited for.
        ready_at: When it answered SSH first.
        machine: The address of its machine.
        word: Why it waits, or was closed, in words.
        bad: Whether its machine is no good.
        released_at: When the claim was closed; None while it is open.
        usd: What it had cost then, by the clock.
        billed_usd: What RunPod has billed for it.
        extra_usd: What further pods under its name have cost, or may have.
        taken_over: Whether it was found without a claim, so that it may hold what is not noted on this controller.
    """

    name: str
    owner: str = ""
    host: str = ""
    runs: list[str] = dataclasses.field(default_factory=list)
    output: str = ""
    made_at: float = 0.0
    began_at: float = 0.0
    wanted_at: float = 0.0
    waiting_since: Optional[float] = None
    attempt: int = 1
    state: str = "claimed"
    pod_id: Optional[str] = None
    gpu: Optional[str] = None
    cloud: Optional[str] = None
    usd_per_hour: float = 0.0
    offered: float = 0.0
    priced: bool = False
    seen: bool = False
    asked_at: Optional[float] = None
    asked_uptime: Optional[float] = None
    boot: str = ""
    unclear: bool = False
    lost_at: Optional[float] = None
    lost_orders: int = 0
    watched_for: str = ""
    watched_s: float = 0.0
    looks: int = 0
    pause_s: float = 0.0
    allowance_s: Optional[int] = None
    deadline: Optional[float] = None
    boot_since: Optional[float] = None
    ready_at: Optional[float] = None
    machine: Optional[str] = None
    word: str = ""
    bad: bool = False
    released_at: Optional[float] = None
    usd: float = 0.0
    billed_usd: Optional[float] = None
    extra_usd: float = 0.0
    taken_over: bool = False
    schema_version: int = rundir.SCHEMA_VERSION


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
        self.copied_from = ""  # the owner id that lay here when the folder was found to be a copy
        self._owner = _checked(owner) if owner else ""
        self._doubt = ""

    @property
    def owner(self) -> str:
        """The owner id, made once for each folder: a copy of one gets an id of its own."""
        if not self._owner:
            path = self.folder / "owner"
            if path.exists() and not path.read_text().strip():
                path.unlink()  # cut off by a full disk, or by a power cut
                noted = str(self._binding().get("owner") or "")
                if noted:  # pods were ordered under it
                    rundir.write_bytes(path, f"{_checked(noted)}\n".encode())
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                part = self.folder / f".owner.{os.getpid()}"
                rundir.write_bytes(part, f"{uuid.uuid4().hex[:8]}\n".encode())
                with contextlib.suppress(FileExistsError):
                    os.link(part, path)  # whole or not at all; who comes second takes the first one's
                part.unlink()
            self._owner = self._bound_owner(path)
        return self._owner

    def _bound_owner(self, path: pathlib.Path) -> str:
        """Return the owner id of this folder, made anew where the folder is a copy of another that is still there."""
        owner, noted = _checked(path.read_text().strip()), self._binding()
        if noted.get("owner") != owner:  # made just now, by hand, or by a version that bound nothing
            self._bind(owner)
            return owner
        verdict = _judge_place(noted, self.folder.absolute())
        if verdict == "copy":
            with rundir.locked(self.folder):
                if _checked(path.read_text().strip()) == owner:  # nobody was faster
                    owner = uuid.uuid4().hex[:8]
                    # The id first: a crash in between leaves an id that nothing was ordered under.
                    rundir.write_bytes(path, f"{owner}\n".encode())
                    self._bind(owner, noted["owner"])
                owner = _checked(path.read_text().strip())
            noted = self._binding()
        elif verdict == "unsure":
            self._doubt = str(noted.get("path"))
        elif _place(self.folder.absolute()) != {name: noted.get(name) for name in _PLACE}:
            self._bind(owner, str(noted.get("copied_from") or ""))
        self.copied_from = str(noted.get("copied_from") or "")
        return owner

    def _binding(self) -> dict[str, Any]:
        return rundir.read_json(self.folder / "owner.json")

    def _bind(self, owner: str, copied_from: str = "") -> None:
        """Note for which folder an owner id was made."""
        with contextlib.suppress(OSError):  # who may not write here only looks
            noted = {"owner": owner, "copied_from": copied_from, **_place(self.folder.absolute())}
            rundir.write_json(self.folder / "owner.json", noted)

    @property
    def place_notice(self) -> str:
        """What a user should know of the owner id, in a sentence; empty where nothing is the matter."""
        if self.owner and self._doubt:
            return f"it is not known whether {self.folder} is a copy of {self._doubt}: no pod is ordered or released"
        if self.copied_from:
            return (
                f"this is a copy, with the owner id {self._owner}. Pods of {self.copied_from} belong to the first one, "
                f"and are not released from here; LORA_FORGE_OWNER={self.copied_from} acts for that one"
            )
        return ""

    def assert_own_place(self) -> None:
        """Make sure that what is ordered and released here is this folder's.

        Raises:
            UserError: The folder may be a copy; nobody but the user can tell.
        """
        if self.owner and self._doubt:
            raise UserError(
                f"{self.folder} holds the owner id {self.owner}, which was made for {self._doubt}, and that cannot be "
                "looked at from here. Until it is known whether this is a copy, no pod is ordered or released. If it "
                f"was moved here, or restored: rm {self.folder / 'owner.json'}. If it is a copy: rm "
                f"{self.folder / 'owner'}, and the copy gets an id of its own. LORA_FORGE_OWNER={self.owner} acts for "
                "that id in any case"
            )

    @property
    def known_owner(self) -> str:
        """The owner id, where it was given or made already; empty otherwise, and none is made."""
        return self.owner if self._owner or (self.folder / "owner").exists() else ""

    def list_all(self) -> list[Claim]:
        """List every claim, oldest first."""
        files = [rundir.read_json(path) for path in (self.folder / "claims").glob("*.json")]
        return sorted((Claim.from_dict(file) for file in files if _is_claim(file)), key=lambda claim: claim.made_at)

    def find_open(self, host: str) -> Optional[Claim]:
        """Return the newest claim of this owner to a host's pod that is not closed."""
        own = [claim for claim in self.list_all() if (claim.owner, claim.host) == (self.owner, host)]
        return next((claim for claim in reversed(own) if not claim.released_at), None)

    def open_claim(self, host: str, runs: list[str], now: float, **known: Any) -> Claim:
        """Write a new claim.

        Args:
            host: Its inventory name.
            runs: The run_ids it is for.
            now: Epoch seconds.
            known: What is known of it already.
        """
        name = f"{_PREFIX}-{self.owner}-{host}-{uuid.uuid4().hex[:6]}"
        claim = Claim(name, self.owner, host, runs, made_at=now, began_at=now, wanted_at=now)
        return self.update(claim, **known)

    def read(self, name: str) -> Optional[Claim]:
        """Return a claim by its name; None where there is none."""
        file = rundir.read_json(self.path_of(name)) if name else {}
        return Claim.from_dict(file) if _is_claim(file) else None

    def update(self, claim: Claim, **changes: Any) -> Claim:
        """Change a claim, and write it; who holds no lock of its host may be overwritten, or overwrite."""
        for name, value in changes.items():
            setattr(claim, name, value)
        (self.folder / "claims").mkdir(parents=True, exist_ok=True, mode=0o700)
        rundir.write_json(self.path_of(claim.name), claim.as_dict())
        return claim

    def renew(self, name: str, deadline: float) -> bool:
        """Note that a pod's leash was renewed; of its claim nothing else is changed.

        Must not be called by who holds the host's lock.

        Args:
            name: The claim's, which no other one ever has.
            deadline: The new one, in epoch seconds.

        Returns:
            False where that very claim is closed by now, or about to be, or gone: then nothing is written.
        """
        return self._amend(name, lambda claim: not claim.released_at and claim.state != "releasing", deadline=deadline)

    def note_bill(self, name: str, usd: float) -> bool:
        """Note what RunPod has billed for a pod; see :meth:`renew`."""
        return self._amend(name, lambda claim: True, billed_usd=usd)

    def _amend(self, name: str, fits: Callable[[Claim], bool], **changes: Any) -> bool:
        """Change some of a claim's fields by what is on disk now, under its host's lock."""
        seen = self.read(name)
        if seen is None or not seen.host:
            return False
        with self.locked(seen.host):
            claim = self.read(name)
            if claim is None or not fits(claim):
                return False
            rundir.write_json(self.path_of(name), {**rundir.read_json(self.path_of(name)), **changes})
        return True

    def path_of(self, name: str) -> pathlib.Path:
        """Return where a claim is, or would be."""
        return self.folder / "claims" / f"{name}.json"

    @contextlib.contextmanager
    def locked(self, host: str) -> Iterator[None]:
        """Take one step at a time for a host: two controllers of this checkout would order two pods."""
        (self.folder / "claims").mkdir(parents=True, exist_ok=True, mode=0o700)
        with rundir.locked(self.folder / "claims" / f".{host}.lock"):
            yield

    def spent_on(self, runs: list[str], now: float, without: str = "") -> float:
        """Add up what the pods of some runs have cost so far, in USD.

        Args:
            runs: run_ids.
            now: Epoch seconds.
            without: The name of a claim that is left out.
        """
        claims = [claim for claim in self.list_all() if claim.name != without and set(claim.runs) & set(runs)]
        return sum(claim_cost(claim, now) for claim in claims)


def _is_claim(file: dict[str, Any]) -> bool:
    """Tell whether a file holds a claim; the pod of one that was damaged is found again by its name."""
    return bool(file.get("name")) and isinstance(file["name"], str)


def _checked(owner: str) -> str:
    """Return an owner's id, if it is found in names again.

    Raises:
        UserError: It would not be.
    """
    if not re.fullmatch("[0-9a-zA-Z]+", owner):
        raise UserError(f"owner is «{owner}»; an owner's id holds letters and digits only")
    return owner


_PLACE = ("path", "inode", "device", "machine")


def _place(folder: pathlib.Path) -> dict[str, Any]:
    """Return what tells a folder from its copies."""
    found = folder.stat()
    machine = pathlib.Path("/etc/machine-id")
    return {
        "path": str(folder),
        "inode": found.st_ino,
        "device": found.st_dev,
        "machine": machine.read_text().strip() if machine.is_file() else "",
    }


def _judge_place(noted: dict[str, Any], folder: pathlib.Path) -> str:
    """Tell whether a folder is the one that an owner id was made for: same, copy or unsure.

    A device's number changes when its file system is mounted again, and an inode's when a backup is restored or a
    container started, so neither alone says that a folder is another one.

    Args:
        noted: What was noted of the one that the id was made for.
        folder: The one that holds the id now.
    """
    place = _place(folder)
    alike = {name for name in _PLACE if noted.get(name) == place[name]}
    if "inode" in alike and alike & {"device", "path"}:
        return "same"  # as it was, moved on its file system, or mounted again
    machines = {noted.get("machine"), place["machine"]} - {"", None}
    first = pathlib.Path(str(noted.get("path") or "/nowhere"))
    if "path" in alike:
        return "same" if len(machines) < 2 else "unsure"  # restored, or the same place on another machine
    with contextlib.suppress(OSError):
        if (first / "owner").read_text().strip() == noted.get("owner"):
            # The other one is still there. Seen through two mounts, it is the very same folder.
            return "same" if first.stat().st_ino == place["inode"] else "copy"
    return "unsure"


def parse_name(name: str) -> Optional[tuple[str, str]]:
    """Read owner and host from the name of a pod that lora-forge ordered; None for other names."""
    match = re.match(rf"^{_PREFIX}-([0-9a-zA-Z]+)-(.+)-[0-9a-f]{{6}}$", name)
    return (match.group(1), match.group(2)) if match else None


def claim_cost(claim: Claim, now: float) -> float:
    """Return what a pod has cost, in USD: as billed, once that is whole, else its price × the time since its order.

    Args:
        claim: Its claim.
        now: Epoch seconds.
    """
    if not claim.pod_id or claim.asked_at is None:
        return claim.extra_usd
    billed = claim.billed_usd
    if billed is not None and now - (claim.released_at or now) > FINAL_BILL:
        return float(billed) + claim.extra_usd
    seconds = max(0.0, (claim.released_at or now) - claim.asked_at)
    # A bill may lack its last hours.
    return max(float(billed or 0), seconds / 3600 * float(claim.usd_per_hour)) + claim.extra_usd


def undelivered_costs(claims: list[Claim], adapters: pathlib.Path, now: float) -> list[tuple[set[str], float]]:
    """Return what pods have cost that no delivered adapter's manifest accounts for: in USD, with the runs it was for.

    Runs that shared a pod stand together, and so do those of a run's pods: what an adapter cost is what was left when
    it was delivered. So nothing is counted twice.

    Args:
        claims: This checkout's.
        adapters: output/adapters.
        now: Epoch seconds.
    """
    groups: list[tuple[set[str], set[str], float]] = []
    for claim in claims:
        runs, pods, usd = {*claim.runs}, {str(claim.pod_id)}, claim_cost(claim, now)
        for group in [group for group in groups if group[0] & runs]:
            groups.remove(group)
            runs, pods, usd = runs | group[0], pods | group[1], usd + group[2]
        groups.append((runs, pods, usd))
    folders = store.delivered_folders(adapters) if groups else []
    costs = [manifest.cost for manifest in map(store.read_manifest, folders) if manifest]
    noted = [(cost.usd, {*(cost.pods or ())}) for cost in costs if cost.usd is not None]
    return [(runs, max(0.0, usd - sum(part for part, on in noted if on & pods))) for runs, pods, usd in groups]


def cost_by_run(claims: list[Claim], adapters: pathlib.Path, now: float) -> dict[str, float]:
    """Share what is :func:`undelivered_costs` among its runs that are not delivered, in equal parts: USD by run."""
    delivered = {folder.name for folder in store.delivered_folders(adapters)}
    asking = {run for claim in claims for run in claim.runs if evaluated_by(run)}  # their cost is their adapter's
    delivered |= {run for run in asking if read_record(adapters.parent, run).delivered_at}
    return {
        run: round(usd / len(runs - delivered), 4)
        for runs, usd in undelivered_costs(claims, adapters, now)
        for run in runs - delivered
    }


def retention_notice(claim: Claim) -> str:
    """Tell what a pod that is kept goes on costing, until when, and the two ways on.

    Args:
        claim: Its claim, with a deadline.
    """
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(claim.deadline))
    return (
        f"It costs {claim.usd_per_hour:.2f} USD/h until its leash ends it at {until}. Either go on with the same "
        f"command, or give it up: ansible-playbook -i <inventory> playbooks/release.yml -e pod={claim.host}"
    )


def active_runs(claim: Claim, now: float) -> list[str]:
    """List the runs for which a pod is kept: not launched yet, under way, or finished and not delivered.

    Args:
        claim: Its claim.
        now: Epoch seconds.
    """
    if claim.released_at or claim.state == "releasing":
        return []
    output = pathlib.Path(claim.output)
    if claim.output and not output.is_dir() and now < (claim.deadline or 0):
        return sorted(claim.runs)  # the checkout was moved, say: nothing here tells what the pod holds
    active = []
    for run in claim.runs:
        placed = read_record(output, run) if claim.output else RunRecord(run)
        manifests = output.glob(f"adapters/*/{run}/manifest.json") if claim.output else ()
        delivered = placed.delivered_at > 0 if evaluated_by(run) else any(manifests)
        # Asked for after the run was last heard of: it is about to be launched there. A time that is far ahead is one
        # of before the clock was set back.
        coming = abs(now - claim.wanted_at) < LAUNCH and placed.noted_at < claim.wanted_at
        if not delivered and (placed.state in ("launched", "finished") or coming):
            active.append(run)
    return sorted(active)


def apply_billing(claims: list[Claim]) -> None:
    """Correct the cost in manifests by what was billed, once the bills of all their pods are there."""
    by_pod = {claim.pod_id: claim for claim in claims if claim.pod_id}
    outputs = {claim.output for claim in claims if claim.output}
    for path in [path for output in outputs for path in pathlib.Path(output).glob("adapters/*/*/manifest.json")]:
        manifest = rundir.read_json(path)
        cost = Cost.from_dict(manifest.get("cost"))
        pods = cost.pods or ()
        billed = [by_pod[pod] for pod in pods if pod in by_pod and by_pod[pod].billed_usd is not None]
        if cost.usd is None or not pods or len(billed) < len(pods):
            continue
        unbilled = [dataclasses.replace(claim, billed_usd=None) for claim in billed]
        counted = sum(claim_cost(claim, claim.released_at or 0.0) for claim in unbilled)
        by_clock = cost.usd if cost.usd_by_clock is None else cost.usd_by_clock
        if counted:
            usd = round(by_clock * sum(claim.billed_usd or 0.0 for claim in billed) / counted, 4)
            corrected = {**manifest["cost"], "usd": usd, "usd_by_clock": by_clock, "source": _BILLED}
            if corrected != manifest["cost"]:
                rundir.write_json(path, {**manifest, "cost": corrected})


def fetch_bills(claims: Claims, billed_usd: Callable[[str], Optional[float]], now: float, check: bool) -> bool:
    """Ask what was billed for pods that are gone, and correct their claims and manifests by it.

    Args:
        claims: This checkout's.
        billed_usd: What RunPod has billed for a pod, by its id; None while there is no bill.
        now: Epoch seconds.
        check: Correct nothing.

    Returns:
        Whether a bill was new.
    """
    changed = False
    for claim in claims.list_all():
        final = claim.billed_usd is not None and now - (claim.released_at or 0) >= FINAL_BILL
        if claim.pod_id and claim.released_at and not final:
            billed = billed_usd(claim.pod_id)
            if billed is not None and billed != claim.billed_usd:
                changed = True
                if not check:
                    claims.note_bill(claim.name, billed)
    if not check:
        apply_billing(claims.list_all())
    return changed


def with_unlisted(
    listed: list[dict[str, Any]], claims: list[Claim], get_pod: Callable[[str], Optional[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Add to the pods that a list has those that open claims know, and that RunPod still shows by their ids.

    Args:
        listed: From RunPod; a list may lag, or leave out what is stopped.
        claims: This checkout's.
        get_pod: Asks RunPod for a pod by its id; None where it is gone.
    """
    ids = {pod["id"] for pod in listed}
    missing = [claim.pod_id for claim in claims if claim.pod_id and not claim.released_at and claim.pod_id not in ids]
    return listed + [pod for pod in map(get_pod, missing) if pod]


def list_account_pods(
    api_pods: list[dict[str, Any]], claims: list[Claim], owner: str, now: float
) -> list[dict[str, Any]]:
    """List every pod of the account, and whose it is, oldest first.

    Args:
        api_pods: From RunPod.
        claims: This checkout's.
        owner: This checkout.
        now: Epoch seconds.

    Returns:
        A list of {name, id, host, gpu, status, usd_per_hour, age_h, usd, mine, claimed (by which live runs), deadline,
        retention_notice: what it goes on costing, in words}.
    """
    by_name = {claim.name: claim for claim in claims}
    rows = []
    for pod in sorted(api_pods, key=lambda pod: pod.get("createdAt") or ""):
        parsed = parse_name(pod["name"])
        claim = by_name.get(pod["name"])
        born = parse_time(pod.get("createdAt")) or (claim and claim.asked_at) or now
        rate = pod_price(pod)
        if not rate and claim and pod["status"] == "RUNNING":  # RunPod does not say yet
            rate = claim.usd_per_hour
        rows.append({
            "name": pod["name"], "id": pod["id"], "host": parsed[1] if parsed else "", "status": pod["status"],
            "gpu": (pod.get("gpu") or {}).get("id") or "CPU", "usd_per_hour": rate,
            "age_h": round((now - born) / 3600, 3), "usd": round((now - born) / 3600 * rate, 4),
            "mine": parsed is not None and parsed[0] == owner,
            # A second pod under a claim's name, from an order that was thought lost, is for nothing.
            "claimed": active_runs(claim, now) if claim and claim.pod_id in (None, pod["id"]) else [],
            "deadline": claim.deadline if claim else pod.get("deadline"),
            "retention_notice": (
                retention_notice(claim) if claim and claim.deadline
                else f"It costs {rate:.2f} USD/h." if rate else "RunPod names no price for it."
            ),
        })  # fmt: skip
    return rows


def pod_price(pod: dict[str, Any]) -> float:
    """Return what a pod costs an hour, as RunPod says; 0 while it does not."""
    try:
        price = float(pod.get("cost") or 0)
    except (TypeError, ValueError):
        return 0.0
    return price if 0 < price < math.inf else 0.0


def pod_cost(pod: dict[str, Any], now: float) -> Optional[float]:
    """Return what a pod has cost by its price and its age, in USD; None where either is not known.

    Args:
        pod: From RunPod.
        now: Epoch seconds.
    """
    price, born = pod_price(pod), parse_time(pod.get("createdAt"))
    return max(0.0, now - born) / 3600 * price if price and born is not None else None


def parse_time(text: Optional[str]) -> Optional[float]:
    """Read a time as RunPod writes it (RFC 3339), in epoch seconds; None where it is none."""
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
