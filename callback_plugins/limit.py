"""Refuse a command whose ``--limit`` leaves its plan out: Ansible would do nothing, and call that a success."""

from __future__ import annotations

import pathlib
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: limit
type: aggregate
short_description: A limit that leaves localhost out is an error
description:
  - The plan, and all that is concluded, runs on localhost. With a C(--limit) that leaves it out no task would run, and
    the command would end with 0. It ends with 4, and a sentence, as for no host that can be reached.
"""

ROOT = pathlib.Path(__file__).resolve().parents[1]
UNREACHED = 4


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """The callback; see its documentation."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "limit"

    def v2_playbook_on_start(self, playbook: Any) -> None:
        limit = context.CLIARGS.get("subset")
        for play in playbook.get_plays() if limit else ():
            is_ours = pathlib.Path(play.get_path().rpartition(":")[0]).is_relative_to(ROOT / "playbooks")
            if is_ours and play.hosts in ("localhost", ["localhost"]):
                if not play.get_variable_manager()._inventory.get_hosts("localhost"):
                    self._display.error(
                        f"--limit {limit} leaves out localhost, where everything is planned, so that nothing would be "
                        "done. Leave the limit out (in AWX: of the job); -e role=… says whose runs are meant, and the "
                        "inventory, with -i …, says on which hosts"
                    )
                    raise SystemExit(UNREACHED)
                return
