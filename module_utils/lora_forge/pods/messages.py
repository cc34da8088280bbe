"""What people are told of pods. Pure functions."""

from __future__ import annotations

from typing import Any, Optional

from ansible.module_utils.lora_forge.pods import costs
from ansible.module_utils.lora_forge.pods.claims import Claim, claim_cost
from ansible.module_utils.lora_forge.pods.costs import Offer


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


def diff_view(pod: Optional[dict[str, Any]]) -> dict[str, Any]:
    """Return what a diff shows of a pod; None is one that is not there."""
    if not pod:
        return {"state": "absent"}
    return {"state": pod["status"], "gpu": (pod.get("gpu") or {}).get("id"), "usd_per_hour": pod.get("cost")}
