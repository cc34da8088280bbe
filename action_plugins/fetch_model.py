"""Fetch the base model and show its progress until it is there. Losing this process or the connection harms nothing."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.retry import retry_until_connected  # noqa: E402
from ansible.module_utils.lora_forge.text import duration  # noqa: E402

load_actions()

WAIT = 15  # seconds the trainer blocks for news (five percent more); one round trip and one line in that time
RESTARTS = 3  # of a fetch that died without giving a reason


def size(count: float, of: float) -> str:
    """Write bytes in the unit that fits a total: «3.2 of 15.2 GB»."""
    unit, name = (1e9, "GB") if of >= 1e9 else (1e6, "MB")
    return f"{count / unit:.1f} of {of / unit:.1f} {name}"


def line(host: str, model: str, state: dict[str, Any]) -> str:
    """Write one line of progress.

    Args:
        host: The trainer.
        model: What is fetched.
        state: The module's answer.
    """
    if not state["total_bytes"]:
        return f"  {host}: {model} is asked for at the hub"
    parts = [f"  {host}: {model} {size(state['bytes'], state['total_bytes'])}"]
    rate = state.get("bytes_per_second")
    if rate:
        parts.append(f"{rate / 1e6:.0f} MB/s")
        parts.append(f"eta {duration((state['total_bytes'] - state['bytes']) / rate)}")
    return ", ".join(parts)


def reached(state: dict[str, Any], described: bool) -> bool:
    """Tell whether what is waited for is there.

    Args:
        state: The module's answer.
        described: Whether its configuration and tokenizer will do.
    """
    return bool(state["described"]) if described else bool(state["state"] == "present")


class ActionModule(ForgeAction):
    """``fetch_model``: library/actions/fetch_model.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Fetch it."""
        timeout, host, model = float(args.pop("unreachable_timeout")), self.host, args["model"]
        described = args.pop("until", "present") == "described"
        question = {name: value for name, value in args.items() if name not in ("python", "program", "hf_token")}

        def ask(options: dict[str, Any]) -> dict[str, Any]:
            return retry_until_connected(
                lambda: self.run_module("base_model", options),
                AnsibleConnectionFailure,
                timeout,
                lambda message: tell(f"  {host}: {message}", host=host),
            )

        state = ask(args)
        changed, restarts, followed = state.get("changed", False), 0, False
        while not (state.get("failed") or self._task.check_mode or reached(state, described)):
            if state["state"] == "fetching":
                tell(line(host, model, state), host=host)
                followed = True
                state = ask({**question, "wait": WAIT, "since": state["mark"]})
            elif restarts < RESTARTS:
                restarts += 1
                tell(f"  {host}: the fetch of {model} ended without giving a reason; starting it again", host=host)
                state = ask(args)
            else:
                state |= {
                    "failed": True,
                    "msg": f"the fetch of {model} was killed {restarts + 1} times on {host}, perhaps for want of "
                    f"memory. Look at fetch.log in {args['home']}/lora-forge there, then run the same command again.",
                }
        if followed and not state.get("failed") and not described:
            tell(f"  {host}: {model} is there", host=host)
        return state | {"changed": changed}
