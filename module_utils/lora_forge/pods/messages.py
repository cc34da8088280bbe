"""What people are told of pods. Pure functions."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.lora_forge.pods import costs
from ansible.module_utils.lora_forge.pods.claims import claim_cost


def quote(host: str, found: dict[str, Any], now: float) -> str:
    """What would happen, in a sentence, with prices."""
    if found["pod"]:
        claim = found["claim"]
        until = costs.hours_text(max(0.0, claim["deadline"] - now) / 3600)
        return (
            f"{host} is there: {claim['gpu']} at {claim['usd_per_hour']:.2f} USD/h, "
            f"{claim_cost(claim, now):.2f} USD so far; its leash ends it in {until}"
        )
    offer, hours, limit = found["offer"], found["hours"], found["allowance"]
    about = "how long it takes is not known" if hours is None else (
        f"about {costs.hours_text(hours)}, {hours * offer.usd_per_hour:.2f} USD (an estimate, not measured)"
    )  # fmt: skip
    return (
        f"{host} would be {offer.gpu} ({offer.cloud}, stock {offer.stock}) at {offer.usd_per_hour:.2f} USD/h: {about}; "
        f"its leash ends it after {costs.hours_text(limit)}, {limit * offer.usd_per_hour:.2f} USD, at the latest"
        + (f". {offer.doubt}" if offer.doubt else "")
    )


def view(pod: Any) -> dict[str, Any]:
    """What a diff shows of a pod."""
    if not pod:
        return {"state": "absent"}
    return {"state": pod["status"], "gpu": (pod.get("gpu") or {}).get("id"), "usd_per_hour": pod.get("cost")}
