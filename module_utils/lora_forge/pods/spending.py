"""What all pods of an owner may cost in a calendar day and month, in UTC: what was spent, is committed, and is left.

Every claim counts from its order to its end. One that is open is committed until its deadline, and a little more, as a
leash takes its time. What was seen of claims is remembered beside them, so that a deleted one goes on counting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.pods import costs
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims, claim_cost

LINGER = 300.0  # seconds that a leash may take after its deadline: checkpoints, somebody's fetching them, RunPod
_KINDS = ("day", "month")
_UNKNOWN = 24 * 3600.0  # seconds that a pod is taken to live whose claim has no deadline
_REMEMBERED = ("name", "owner", "state", "pod_id", "usd_per_hour", "asked_at", "deadline", "released_at", "billed_usd",
               "extra_usd")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Caps(JsonRecord):
    """What all pods of an owner may cost together, in USD; 0 for no such cap.

    Attributes:
        day: In a day.
        month: In a month.
    """

    day: float = 0.0
    month: float = 0.0


@dataclasses.dataclass(frozen=True)
class Period:
    """A calendar day or month, in UTC.

    Attributes:
        kind: day or month.
        label: Its date, as people write it.
        start: In epoch seconds.
        end: In epoch seconds, when the next one begins.
    """

    kind: str
    label: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Usage:
    """What pods cost in a period.

    Attributes:
        period: Which.
        spent: USD so far.
        committed: USD that they may still come to by their deadlines.
        cap: The user's; 0 for none.
    """

    period: Period
    spent: float
    committed: float
    cap: float


def period_at(kind: str, at: float) -> Period:
    """Return the day or month in which a time falls.

    Args:
        kind: day or month.
        at: Epoch seconds.
    """
    date = datetime.datetime.fromtimestamp(at, datetime.timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    if kind == "day":
        return Period(kind, f"{date:%Y-%m-%d}", date.timestamp(), (date + datetime.timedelta(days=1)).timestamp())
    first = date.replace(day=1)
    following = (first + datetime.timedelta(days=32)).replace(day=1)
    return Period(kind, f"{first:%Y-%m}", first.timestamp(), following.timestamp())


def use_in(
    claims: list[Claim], period: Period, now: float, cap: float = 0.0, alive: frozenset[str] = frozenset()
) -> Usage:
    """Add up what pods cost in a period.

    Args:
        claims: Theirs.
        period: A day or month.
        now: Epoch seconds.
        cap: The user's for that period.
        alive: The names of pods that RunPod has, which count on when their deadlines are past.
    """
    spent = committed = 0.0
    for claim in claims:
        begin, end = claim.asked_at, _end_of(claim, now, alive)
        if begin is None or end is None:  # a pod under its name that was given up may have cost something all the same
            begin = begin or claim.made_at
            spent += claim.extra_usd if period.start <= begin < period.end else 0.0
            continue
        if claim.released_at:
            whole = max(end - begin, 1e-9)
            spent += claim_cost(claim, now) * _overlap(begin, end, period) / whole
        else:
            rate = max(0.0, claim.usd_per_hour) / 3600
            lived = max(min(now, end) - begin, 1e-9)
            spent += (rate + claim.extra_usd / lived) * _overlap(begin, min(now, end), period)
            committed += rate * _overlap(max(begin, now), end, period)
    return Usage(period, spent, committed, cap)


def _end_of(claim: Claim, now: float, alive: frozenset[str]) -> Optional[float]:
    """Return when a pod ended, or will at the latest; None where there is none, and none may come."""
    unseen = claim.extra_usd if claim.released_at else claim.state == "asked"
    if claim.asked_at is None or not (claim.pod_id or unseen):
        return None
    if claim.released_at:
        return claim.released_at
    due = (claim.deadline or claim.asked_at + _UNKNOWN) + LINGER
    return max(due, now + LINGER) if claim.name in alive else due


def _overlap(begin: float, end: float, period: Period) -> float:
    return max(0.0, min(end, period.end) - max(begin, period.start))


def latest_deadline(
    others: list[Claim],
    caps: Caps,
    since: float,
    wanted: float,
    usd_per_hour: float,
    now: float,
    alive: frozenset[str] = frozenset(),
) -> tuple[float, Optional[Usage]]:
    """Return until when a pod may live within the caps of every period that its life would touch.

    Args:
        others: The claims of all other pods.
        caps: The user's.
        since: When it was ordered, or would be.
        wanted: The deadline that is wanted.
        usd_per_hour: Its price.
        now: Epoch seconds.
        alive: See :func:`use_in`.

    Returns:
        A deadline, which may be past, and what limits it; None where nothing does.
    """
    end, limit = wanted + LINGER, None
    for kind, cap in caps.as_dict().items():
        period = period_at(kind, now)
        while cap > 0 and period.start < end:
            use = use_in(others, period, now, cap, alive)
            room = max(0.0, cap - use.spent - use.committed) / max(usd_per_hour, 1e-9) * 3600
            until = max(since, period.start) + room
            if until < min(end, period.end):
                end, limit = until, use
            period = period_at(kind, period.end)
    return (wanted if limit is None else end - LINGER), limit


@contextlib.contextmanager
def locked(claims: Claims) -> Iterator[None]:
    """Let one order or renewal at a time look at what is left, over all hosts.

    Who needs a host's lock, too, has taken it before.
    """
    claims.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with rundir.locked(claims.folder / ".spending.lock"):
        yield


def known_claims(claims: Claims, owner: str, without: str = "") -> list[Claim]:
    """List an owner's claims: those on disk, and those that were there once. An empty owner has none.

    Args:
        claims: Where they lie.
        owner: Whose.
        without: The name of one that is left out.
    """
    on_disk = [claim for claim in claims.list_all() if claim.owner == owner and owner]
    names = {claim.name for claim in on_disk}
    noted = _ledger(claims).get("claims")
    gone = [Claim.from_dict(entry) for entry in (noted if isinstance(noted, list) else []) if _is_entry(entry)]
    gone = [claim for claim in gone if claim.owner == owner and claim.name not in names]
    return [claim for claim in [*on_disk, *gone] if claim.name != without]


def remember(claims: Claims, owner: str, caps: Caps, now: float) -> None:
    """Note what counts in this month or later, and by which caps; to be called under :func:`locked`."""
    month = period_at("month", now).start
    kept = [claim for claim in known_claims(claims, owner) if (_end_of(claim, now, frozenset()) or 0.0) >= month]
    entries = [{name: value for name, value in claim.as_dict().items() if name in _REMEMBERED} for claim in kept]
    noted = _ledger(claims).get("claims")
    others = [entry for entry in (noted if isinstance(noted, list) else []) if _is_entry(entry)]
    others = [entry for entry in others if entry.get("owner") != owner]
    rundir.write_json(claims.folder / "spending.json", {"claims": [*others, *entries], "caps": caps.as_dict()})


def _ledger(claims: Claims) -> dict[str, Any]:
    return rundir.read_json(claims.folder / "spending.json")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str)


def renew(
    claims: Claims, name: str, wanted: float, deadline: float, caps: Caps, now: float
) -> tuple[Optional[float], str]:
    """Note a pod's later deadline in its claim, as far as the caps of all pods allow it; before its leash is told.

    Must not be called by who holds the host's lock.

    Args:
        claims: Where they lie.
        name: The claim's.
        wanted: The deadline that is wanted.
        deadline: The one that the leash has.
        caps: The user's.
        now: Epoch seconds.

    Returns:
        The deadline that was noted, None where it stays; and why it is not the one that is wanted, in words.
    """
    path = claims.path_of(name)
    seen = claims.read(name)
    if seen is None or not seen.host:
        return None, "its claim is gone"
    with claims.locked(seen.host), locked(claims):
        claim = claims.read(name)
        if claim is None or claim.released_at:
            return None, "its claim is closed, or gone"
        since, others = claim.asked_at or now, known_claims(claims, claim.owner, name)
        granted, limit = latest_deadline(others, caps, since, wanted, claim.usd_per_hour, now)
        why = usage_text(limit) if limit else ""
        if granted <= max(deadline + 60, now):
            return None, why
        rundir.write_json(path, {**rundir.read_json(path), "deadline": int(granted)})
        remember(claims, claim.owner, caps, now)
        return int(granted), why


def usage_text(use: Usage) -> str:
    """Tell what was spent and is committed in a period, against its cap."""
    cap = f"; pod_max_usd_per_{use.period.kind} is {use.cap:.2f}" if use.cap else ""
    return (
        f"{use.period.label} (UTC): {use.spent:.2f} USD spent on pods, {use.committed:.2f} committed until their "
        f"deadlines{cap}"
    )


def refusal(host: str, gpu: str, usd_per_hour: float, hours: float, use: Usage) -> str:
    """Tell why nothing is ordered, and what to do about it.

    Args:
        host: The pod's inventory name.
        gpu: What would be ordered.
        usd_per_hour: Its price.
        hours: How long it would be needed at least.
        use: What stands against it.
    """
    following = f"{datetime.datetime.fromtimestamp(use.period.end, datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"
    kind = use.period.kind
    return (
        f"{host}: pod_max_usd_per_{kind} is {use.cap:.2f}. In {use.period.label} (UTC) {use.spent:.2f} USD are spent "
        f"on pods, {use.committed:.2f} are committed until their deadlines, and {gpu} at {usd_per_hour:.2f} USD/h "
        f"would add {hours * usd_per_hour:.2f}, for {costs.hours_text(hours)}. Nothing was ordered. Release a pod that "
        f"is not needed (playbooks/reap.yml lists them), wait until {following}, or allow more: "
        f"-e pod_max_usd_per_{kind}=…"
    )


def quote(claims: Claims, caps: Caps, usd: float, now: float, alive: frozenset[str]) -> str:
    """Tell what an order would add to what counts against the caps over all pods; empty without such a cap.

    Args:
        claims: This checkout's.
        caps: The user's.
        usd: What the order would come to at the latest.
        now: Epoch seconds.
        alive: See :func:`use_in`.
    """
    known = known_claims(claims, claims.known_owner)
    uses = [use_in(known, period_at(kind, now), now, cap, alive) for kind, cap in caps.as_dict().items() if cap]
    return "".join(f". {usage_text(use)}, and this order would add {usd:.2f} at most" for use in uses)


def summary_lines(
    claims: Claims, now: float, caps: Optional[Caps] = None, alive: frozenset[str] = frozenset()
) -> list[str]:
    """Tell what this owner's pods cost today and this month, against the caps; nothing where there is nothing to tell.

    Args:
        claims: This checkout's.
        now: Epoch seconds.
        caps: The user's; None for those of the last order.
        alive: See :func:`use_in`.
    """
    known = known_claims(claims, claims.known_owner)
    caps = caps or Caps.from_dict(_ledger(claims).get("caps"))
    uses = [use_in(known, period_at(kind, now), now, cap, alive) for kind, cap in caps.as_dict().items()]
    shown = [use for use in uses if use.cap or (use.period.kind == "month" and use.spent + use.committed >= 0.005)]
    return [usage_text(use) for use in shown]
