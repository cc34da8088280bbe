"""See that a pod holds a leash that can end it, before anything is launched there."""

from __future__ import annotations

import pathlib
import time
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge import rundir  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show, tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.retry import retry_until_connected  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import read_record  # noqa: E402
from ansible.module_utils.lora_forge.pods import leash  # noqa: E402
from ansible.module_utils.lora_forge.pods.claims import Claim  # noqa: E402
from ansible.module_utils.lora_forge.pods.costs import Budget  # noqa: E402

LOOK = 30.0  # seconds that one look waits on the pod
AGAIN = 10.0  # seconds after which a question that failed is asked once more


class ActionModule(ForgeAction):
    """``await_leash``: library/actions/await_leash.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Ask the leash until it is well, or for ``timeout`` at most."""
        if self._task.check_mode:
            return {"changed": False, "skipped": True, "msg": "a leash is not waited for in check mode"}
        budget = Budget.from_dict(args["budget"])
        until, told = time.monotonic() + float(args["timeout"]), False
        while True:
            try:
                fault, doubt = self.look(budget, float(args["unreachable_timeout"]))
            except AnsibleConnectionFailure as error:  # then RunPod is asked what became of the pod
                words = str(error)
                said = words if words.startswith(f"{self.host} ") else f"{self.host} does not answer: {words}"
                return {"failed": True, "state": "unreachable", "msg": said}
            if not fault:
                show(warnings=[f"{self.host}: {doubt}"] if doubt else [])
                return {"changed": False}
            if "image" in fault or time.monotonic() >= until:
                return self.conclude(budget, fault)
            if not told:
                tell(
                    f"  {self.host}: {next(iter(fault.values()))}; it is given {args['timeout']:.0f} s", host=self.host
                )
                told = True

    def look(self, budget: Budget, timeout: float) -> tuple[dict[str, str], str]:
        """Ask; return what speaks against the leash, and what leaves it open.

        Raises:
            AnsibleConnectionFailure: The connection stays lost.
        """
        word: Any = None
        for pause in (0, AGAIN):  # what fails once may pass, and the pod is paid for
            time.sleep(pause)
            answer = retry_until_connected(
                partial(self.run_module, "pod_leash", {"root": budget.root, "pod": budget.pod, "wait": LOOK}),
                AnsibleConnectionFailure,
                timeout,
                lambda words: tell(f"  {self.host}: {words}", host=self.host),
            )
            word = None if answer.get("failed") else answer.get("leash")
            if isinstance(word, dict):
                break
        if not isinstance(word, dict):
            lines = str(answer.get("msg") or "no answer").splitlines()
            why = f"its leash cannot be asked ({lines[0] if lines else 'no answer'}). The image needs a Python 3"
            return {"image": why}, ""
        return leash.find_fault(word), leash.find_doubt(word)

    def conclude(self, budget: Budget, fault: dict[str, str]) -> dict[str, Any]:
        """Return the failure of a pod on which nothing was launched; one that holds something goes on, with a warning.

        Whoever watches it stops it in time, with a checkpoint.
        """
        ((kind, why),) = fault.items()
        if holds_runs(budget, self.host):
            show(
                warnings=[
                    f"{self.host}: {why}. It is stopped with a checkpoint unless that changes while it is watched"
                ]
            )
            return {"changed": False}
        msg = f"{self.host}: {why}. Nothing was launched, as nothing but this controller would end this pod"
        return {"failed": True, "unleashed": kind, "msg": msg}


def holds_runs(budget: Budget, host: str) -> bool:
    """Tell whether anything was launched on a pod since its order, as far as is noted on this controller.

    A pod that was taken over may hold what is noted elsewhere.

    Args:
        budget: The pod's.
        host: Its inventory name.
    """
    claim = Claim.from_dict({**rundir.read_json(pathlib.Path(budget.claim)), "name": ""})
    records = [read_record(pathlib.Path(claim.output), run_id) for run_id in claim.runs if claim.output]
    noted = [record for record in records if record.state and record.noted_at >= budget.since]
    return bool(claim.taken_over or noted or any(record.hosts_of([host], budget.since) for record in records))
