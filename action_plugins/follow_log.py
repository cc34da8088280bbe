"""Show a log of a run, and follow it until the run is over. Losing this process, or the connection, harms nothing."""

from __future__ import annotations

import pathlib
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.retry import retry_until_connected  # noqa: E402
from ansible.module_utils.lora_forge.trainer.logs import OVER  # noqa: E402

load_actions()

WAIT = 30  # seconds the trainer blocks for text; one round trip in that time


def marked(agent: str, text: str) -> str:
    """Put the agent before each line of a text."""
    return "".join(f"{agent}  {line}".rstrip() + "\n" for line in text.removesuffix("\n").split("\n"))


class ActionModule(ForgeAction):
    """``follow_log``: library/actions/follow_log.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Show what is there, and what follows."""
        agent, follow, prefix = args["agent"], boolean(args["follow"]), boolean(args["prefix"])
        run_id = str(args["run_dir"]).rpartition("/")[2]
        asked = {name: args[name] for name in ("run_dir", "log", "lines")} | {"wait": WAIT if follow else 0}
        while True:
            answer = retry_until_connected(
                partial(self.run_module, "training_log", asked),
                AnsibleConnectionFailure,
                float(args["unreachable_timeout"]) if follow else -1.0,  # who only looks is told at once
                lambda message: tell(f"  {agent}  {message}"),
            )
            if answer.get("failed"):
                return answer
            text, state = answer["text"], answer["state"]
            if text:
                tell((marked(agent, text) if prefix else text).removesuffix("\n"))
            elif "offset" not in asked and not answer["offset"]:
                tell(f"  {agent}  {args['log']}.log of {run_id} is empty so far; the run is {state}")
            if not follow or (state in OVER and not answer["more"]):
                break
            asked = asked | {"offset": answer["offset"]}
        if follow:
            tell(f"  {agent}  {run_id} is {state}")
        return {"changed": False, "state": state}
