"""What people are told of pods: quotes, what one costs, what a diff shows, the table of an account. Pure functions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.pods import costs
from ansible.module_utils.lora_forge.pods.claims import Claim, claim_cost
from ansible.module_utils.lora_forge.pods.costs import Offer

COLUMNS = ("pod", "id", "whose", "gpu", "state", "age", "USD/h", "USD", "for")


def found_quote(claim: Claim, now: float) -> str:
    """Tell of a pod that is there what it is, what it has cost, and how long it may still live.

    Args:
        claim: Its claim.
        now: Epoch seconds.
    """
    left = costs.hours_text(max(0.0, (claim.deadline or now) - now) / 3600)
    return (
        f"{claim.host} is there: {claim.gpu} at {claim.usd_per_hour:.2f} USD/h, {claim_cost(claim, now):.2f} USD so "
        f"far; its leash ends it in {left}"
    )


def order_quote(host: str, offer: Offer, hours: Optional[float], allowed_hours: float) -> str:
    """Tell what would be ordered, at what price, and for how long.

    Args:
        host: The pod's inventory name.
        offer: What would be asked for first.
        hours: What its runs take, as estimated; None where nothing is known.
        allowed_hours: After so many its leash ends it.
    """
    length = "how long it takes is not known"
    if hours is not None:
        usd = hours * offer.usd_per_hour
        length = f"about {costs.hours_text(hours)}, {usd:.2f} USD (an estimate, not measured)"
    return (
        f"{host} would be {offer.gpu} ({offer.cloud}, stock {offer.stock}) at {offer.usd_per_hour:.2f} USD/h: "
        f"{length}; its leash ends it after {costs.hours_text(allowed_hours)}, "
        f"{allowed_hours * offer.usd_per_hour:.2f} USD, at the latest" + (f". {offer.warning}" if offer.warning else "")
    )


def ready_message(claim: Claim, now: float) -> str:
    """Tell of a pod that answers what it has cost, what it costs, and when its leash ends it.

    Args:
        claim: Its claim.
        now: Epoch seconds.
    """
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(claim.deadline))
    return (
        f"{claim.host}: {claim.gpu} answers; {claim_cost(claim, now):.2f} USD so far, {claim.usd_per_hour:.2f} USD/h "
        f"until its leash ends it, at {until}"
    )


def release_message(host: str, released: bool, check: bool, usd: Optional[float], reason: str) -> str:
    """Tell what became of a pod that shall be gone.

    Args:
        host: Its inventory name.
        released: Whether there was one.
        check: Whether it is there still, as this was only asked.
        usd: What it has cost; None where that is not known.
        reason: Why it shall be gone.
    """
    outcome = "nothing is rented"
    if released:
        known = "what it cost is not known" if usd is None else f"it cost {usd:.2f} USD"
        outcome = "would be released" if check else f"released; {known}"
    return f"{host}: {outcome} ({reason})"


def diff_view(pod: Optional[dict[str, Any]]) -> dict[str, Any]:
    """Return what a diff shows of a pod; None is one that is not there."""
    if not pod:
        return {"state": "absent"}
    return {"state": pod["status"], "gpu": (pod.get("gpu") or {}).get("id"), "usd_per_hour": pod.get("cost")}


def account_table(pods: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lay out an account's pods for the action ``show``.

    Args:
        pods: See ``claims.list_account_pods``.

    Returns:
        columns, rows, and lines with their sum.
    """
    rows = [
        [
            pod["host"] or pod["name"],
            pod["id"],
            "this checkout" if pod["mine"] else "another",
            pod["gpu"],
            pod["status"],
            f"{pod['age_h']:.1f} h",
            f"{pod['usd_per_hour']:.2f}",
            f"{pod['usd']:.2f}",
            (" ".join(pod["claimed"]) or "nothing") if pod["mine"] else "–",
        ]
        for pod in pods
    ]
    usd_per_hour = sum(pod["usd_per_hour"] for pod in pods)
    total = f"  {len(pods)} pods, {usd_per_hour:.2f} USD/h together" if pods else "  no pod is rented"
    return {"columns": list(COLUMNS), "rows": rows, "lines": [total]}
