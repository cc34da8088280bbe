"""Keep what is true of all runs on the screen while anything runs. Losing this process harms nothing."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import ansible.module_utils
from ansible import constants

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge import rundir  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction  # noqa: E402


class ActionModule(ForgeAction):
    """``watch_status``: library/actions/watch_status.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Look until nothing runs."""
        snapshots, busy, found = dict(args["snapshots"]), list(args["busy"]), {}
        mine = list(snapshots).index(self.host)
        board = pathlib.Path(constants.DEFAULT_LOCAL_TMP) / "snapshots"
        board.mkdir(exist_ok=True)
        over = board / "over"
        try:
            while busy and not over.exists():
                time.sleep(float(args["every"]))
                rundir.write_json(board / f"{mine}.json", self.run_action("trainer_info", args["look"]))
                if mine == 0:
                    snapshots = {name: rundir.read_json(board / f"{at}.json") or old
                                 for at, (name, old) in enumerate(snapshots.items())}  # fmt: skip
                    asked = args["conclude"] | {"snapshots": snapshots, "busy": busy, "display": "screen"}
                    found = self.run_action("training_status", asked)
                    if found.get("failed"):
                        break
                    busy = found["busy"]
        finally:
            if mine == 0:
                over.touch()
        return {"changed": False, **({"failed": True, "msg": found["msg"]} if found.get("failed") else {})}
