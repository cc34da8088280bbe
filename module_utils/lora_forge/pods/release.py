"""How a pod is given back: deleted, and seen to be gone, before its claim is closed."""

from __future__ import annotations

from typing import Any, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims, claim_cost
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod
from ansible.module_utils.lora_forge.pods.watching import POLL, POLL_LATER, Watch

_GONE_WAIT = 60.0  # seconds in which a pod that was deleted must be gone


class Releaser:
    """Releases pods.

    Args:
        api: RunPod.
        claims: This checkout's.
        watch: Tells whether a pod may still appear.
    """

    def __init__(self, api: RunPod, claims: Claims, watch: Watch):
        self.api, self.claims, self.watch, self.clock = api, claims, watch, watch.clock

    def release(self, claim: Claim, why: str, bad: bool = False) -> bool:
        """Delete a claim's pod, see it gone, and close the claim; True when there was a pod.

        Args:
            claim: The claim. It stays open, and marked, until nothing of it is left.
            why: For its file.
            bad: Remember that it was no good.

        Raises:
            UserError: It is still there.
        """
        self.claims.assert_own_place()
        self.claims.update(claim, state="releasing", word=why, bad=bad, watched_for="")
        self.watch.mark(claim)
        gone = self._end_pods(claim.host, why, {claim.pod_id} - {None}, claim)
        now = self.watch.end_of(claim)
        self.claims.update(
            claim, released_at=now, state="released", word=why, bad=bad, usd=round(claim_cost(claim, now), 4)
        )
        return gone

    def release_orphan(self, host: str, pod: dict[str, Any], why: str) -> None:
        """Delete a pod that is no open claim's, and see it gone.

        Args:
            host: Its inventory name.
            pod: The pod, from RunPod.
            why: In words.

        Raises:
            UserError: It is still there.
        """
        self.claims.assert_own_place()
        self._end_pods(host, why, {pod["id"]})

    def _end_pods(self, host: str, why: str, ids: set[Any], claim: Optional[Claim] = None) -> bool:
        """Delete pods until none is left: an answer of 204 alone proves nothing.

        Args:
            host: Their inventory name.
            why: In words.
            ids: Those that are known.
            claim: Whose name others may have, that were or will be listed late.

        Returns:
            Whether there was one.

        Raises:
            UserError: One is still there.
        """
        deleted: set[Any] = set()
        trouble: dict[Any, str] = {}
        pause, began = POLL, self.clock.uptime()
        left = set(ids)
        while True:
            for pod_id in sorted(left):
                self._delete(pod_id, deleted, trouble)
            if claim and claim.asked_at:
                named = {pod["id"] for pod in self.api.list_pods() if pod["name"] == claim.name}
                for pod_id in sorted(named - ids):
                    self._delete(pod_id, deleted, trouble)
                    began = self.clock.uptime()
                ids = ids | named
            left = {pod_id for pod_id in ids if self._is_there(pod_id, trouble)}
            if not left and (not claim or self._none_to_come(claim, ids, deleted)):
                return bool(deleted)
            if left and self.clock.uptime() - began > _GONE_WAIT:
                why_not = "; ".join(sorted({trouble.get(pod_id, "RunPod still shows it") for pod_id in left}))
                cost = f" at {claim.usd_per_hour:.2f} USD/h" if claim and claim.usd_per_hour else ""
                raise UserError(
                    f"{host}: pod {', '.join(sorted(left))} could not be released ({why}): {why_not}. It goes on "
                    f"costing{cost} until it is gone. playbooks/reap.yml -e confirm=true tries again; if that does not "
                    "help, terminate it in RunPod's console"
                )
            self.clock.sleep(pause)
            pause = min(2 * pause, POLL_LATER)

    def _delete(self, pod_id: str, deleted: set[Any], trouble: dict[Any, str]) -> None:
        try:
            if self.api.delete_pod(pod_id):
                deleted.add(pod_id)
        except ApiError as error:
            trouble[pod_id] = str(error)

    def _is_there(self, pod_id: str, trouble: dict[Any, str]) -> bool:
        try:
            return self.api.get_pod(pod_id) is not None
        except ApiError as error:
            trouble[pod_id] = str(error)
            return True  # as far as is known

    def _none_to_come(self, claim: Claim, ids: set[Any], deleted: set[Any]) -> bool:
        """Tell whether no pod can appear any more under the name of a claim that is released."""
        if claim.unclear and not ids:
            return self.watch.settled(claim)  # an order that got no clear answer may still bring one
        # A pod that nobody has seen yet is unknown to RunPod for a while, too.
        return claim.seen or ids <= deleted or self.watch.settled(claim)
