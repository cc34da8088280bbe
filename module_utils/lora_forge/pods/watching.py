"""The controller's clocks, and for how long something was watched: what passes while nobody looks proves nothing."""

from __future__ import annotations

import dataclasses
import time
from typing import Callable

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims

SETTLE = 30.0  # seconds of watching, from the loss of its order's answer, in which a pod may still appear in the list
_SETTLE_MOST = 240.0  # after several lost orders
LOOKS = 3  # as often at least RunPod must say that a pod is not there
_STEP = 15.0  # seconds: no more of the time between two looks counts as watched
POLL = 2.0  # seconds between two looks at a pod that boots, and later a fifteenth of its age, up to POLL_LATER
POLL_LATER = 10.0


def _uptime() -> float:
    """Return seconds by a clock that nobody sets; where the system has one, it goes on while the machine sleeps."""
    return rundir.uptime() if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclasses.dataclass
class Clock:
    """The controller's clocks.

    Attributes:
        now: The time in epoch seconds, by a clock that may be set.
        sleep: Waits, in seconds.
        uptime: Seconds by a clock that nobody sets.
    """

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    uptime: Callable[[], float] = _uptime


class Watch:
    """Counts for how long something was watched of a claim's pod; that stands in the claim.

    Args:
        claims: This checkout's.
        clock: What the time is.
    """

    def __init__(self, claims: Claims, clock: Clock):
        self.claims, self.clock = claims, clock
        self._marks: dict[str, float] = {}  # when this process last looked, by the claim's name

    def mark(self, claim: Claim) -> None:
        """Begin now: what is watched next of a claim counts from here."""
        self._marks[claim.name] = self.clock.uptime()

    def look(self, claim: Claim, what: str) -> float:
        """Look once more, and return for how long that is watched by now, by a clock that nobody sets.

        Only what lies between two looks of one process counts. What passed while nobody looked proves nothing.

        Args:
            claim: The claim; what is watched for stands in it, so another process goes on from there.
            what: gone, price or pause.
        """
        mark = self.clock.uptime()
        anew = claim.watched_for != what
        since = mark - self._marks.get(claim.name, mark)
        self._marks[claim.name] = mark
        watched = (0.0 if anew else claim.watched_s) + max(0.0, min(since, _STEP))
        looks = 1 if anew else claim.looks + 1
        self.claims.update(claim, watched_for=what, watched_s=round(watched, 3), looks=looks)
        return watched

    def settled(self, claim: Claim) -> bool:
        """Look once more for a pod that RunPod does not show, and tell whether it is proven that there is none."""
        needed = min(SETTLE * 2 ** max(0, claim.lost_orders - 1), _SETTLE_MOST)
        return self.look(claim, "gone") >= needed and claim.looks >= LOOKS

    def end_of(self, claim: Claim) -> float:
        """Return the time now; no less than its order and what has passed since, should the clock have been set back.

        A pod cannot have cost more than until its deadline, by which its leash ends it.
        """
        ended = self.clock.now()
        if claim.asked_at and claim.asked_uptime is not None and claim.boot == rundir.boot_id():
            ended = max(ended, claim.asked_at + self.clock.uptime() - claim.asked_uptime)
        return ended

    def ended_unseen(self, claim: Claim) -> bool:
        """Tell whether a pod that nobody has seen may have lived until its leash ended it."""
        return bool(claim.unclear and claim.deadline and self.end_of(claim) > claim.deadline)
