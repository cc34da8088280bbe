"""Faults to order: what the simulator does wrong, for how often and for whom."""

from __future__ import annotations

import threading
from typing import Any

CREATE = ("gpu", "times")
BOOT = ("gpu", "ip", "times")
HTTP = ("method", "path_contains", "times")

# Each fault with its parameters; a value that is no object is the first one («slow»: 2). Seconds, HTTP statuses.
# gpu, ip, method and path_contains select whom it meets; times is how often (until it is reset when left out).
FAULTS: dict[str, tuple[str, ...]] = {
    # ordering a pod
    "no_capacity": ("text", *CREATE),  # text: the number of one of NO_CAPACITY, or words of one's own
    "create_status": ("status", "retry_after", "text", *CREATE),  # nothing is made
    "create_although": ("status", *CREATE),  # the pod is made, the answer is an error
    "late_list": ("seconds", *CREATE),  # the pod is in lists only that much later
    "wrong_cost": ("factor", *CREATE),  # the pod's cost says so much more; its clock and bill do not
    "gpu": ("word", *BOOT),  # of tests/fakes/nvidia-smi, in new pods
    "machines": ("count", "gpu"),  # how many machines of each type pods are put on in turn
    # each boot of a pod
    "stuck_provisioning": BOOT,
    "boots_to": ("status", *BOOT),  # ERROR or EXITED
    "stale_port": ("seconds", *BOOT),  # from RUNNING on, ssh.direct names a closed port
    "ssh_delay": ("seconds", *BOOT),  # from the container's start to its command; 0.5
    "status_delay": ("seconds", *BOOT),  # PROVISIONING and STARTING each last so long at least; 0.2
    "no_host_keys_in_log": BOOT,
    "restart_keeps_port": BOOT,  # the action restart leaves the container disk, its host keys and its port
    # any request
    "refuse": ("status", "html", "retry_after", "text", *HTTP),
    "html_error": ("status", *HTTP),  # before anything is looked at, as the edge does
    "slow": ("seconds", *HTTP),  # the work is done at once, the answer comes late
    "drop_answer": HTTP,  # the work is done, the connection closes without an answer
    "rate_limit": ("per_minute",),
    "self_termination_refused": ("status", "times"),  # a pod's own key may not delete or act
}

NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again.",
    "There are no longer any instances available with enough disk space.",
    "This machine does not have the resources to deploy your pod. Please try a different machine.",
    "No available machine matches the requested GPU type, count and data center.",
)


class Faults:
    """What is ordered now; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered: dict[str, list[dict[str, Any]]] = {}

    def order(self, wanted: dict[str, Any]) -> None:
        """Add faults to what is ordered; one that was there is replaced, null takes it away, a list is several.

        Raises:
            ValueError: A fault or a parameter is not known.
        """
        ordered = {name: _normal(name, value) for name, value in wanted.items()}
        with self._lock:
            self._ordered |= ordered

    def reset(self) -> None:
        """Remove all faults, for new requests and boots."""
        with self._lock:
            self._ordered = {}

    def show(self) -> dict[str, list[dict[str, Any]]]:
        """Tell what is ordered, with the times that are left."""
        with self._lock:
            return {name: [dict(fault) for fault in faults] for name, faults in self._ordered.items() if faults}

    def take(self, name: str, **facts: str | None) -> dict[str, Any] | None:
        """Find the fault that meets these facts, or None; it counts as one of its times.

        Args:
            name: A key of FAULTS.
            facts: gpu and ip of a pod, or method and path_contains (the whole path) of a request.
        """
        with self._lock:
            for fault in self._ordered.get(name, []):
                if fault.get("times", 1) > 0 and _meets(fault, facts):
                    if "times" in fault:
                        fault["times"] -= 1
                    return dict(fault)
        return None

    def number(self, name: str, default: float, **facts: str | None) -> float:
        """Return the fault's number (its first parameter), or what is usual."""
        fault = self.take(name, **facts)
        return float(fault.get(FAULTS[name][0], default)) if fault else default


def _normal(name: str, value: Any) -> list[dict[str, Any]]:
    if name not in FAULTS:
        raise ValueError(f"no fault is called «{name}»; there are {', '.join(FAULTS)}")
    faults = []
    for one in value if isinstance(value, list) else [value]:
        if one is None or one is False:
            continue
        fault = dict(one) if isinstance(one, dict) else {} if one is True else {FAULTS[name][0]: one}
        if unknown := fault.keys() - set(FAULTS[name]):
            raise ValueError(f"«{name}» has no {', '.join(sorted(unknown))}; it has {', '.join(FAULTS[name])}")
        faults.append(fault)
    return faults


def _meets(fault: dict[str, Any], facts: dict[str, str | None]) -> bool:
    if "path_contains" in fault and fault["path_contains"] not in (facts.get("path_contains") or ""):
        return False
    return all(fault[key] == facts.get(key) for key in ("gpu", "ip", "method") if key in fault)
