#!/usr/bin/python
"""Tell which environments no lock names any more, and remove them."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: environment_prune
short_description: Find the environments of a trainer that no lock names, and remove them
description:
  - An environment has some gigabytes, and every change of a lock makes a new one.
  - Never removes one that a process runs in, that a run which is not over was launched with, or that is being built.
options:
  named:
    description: The names of the environments that stay, as M(trainer_environment) names them.
    type: list
    elements: str
    required: true
  host:
    description: What people call this host, for RV(show).
    type: str
    default: this host
  remove:
    description: Whether what is found is removed, too.
    type: bool
    default: false
attributes:
  check_mode:
    description: Tells what would be removed.
extends_documentation_fragment: [lora_forge, lora_forge.root]
"""

EXAMPLES = r"""
- name: Look for environments that nobody needs
  environment_prune:
    root: /workspace/lora-forge
    named: [trainer-cuda-5c1e0a9d3b7f2c64, hub-0f4fb8a8d3b5c2f1]
"""

RETURN = r"""
environments:
  description: Those that no lock names, with the bytes of each on disk, and how many of them uv's cache has, too; and
    what uses one, whose bytes are not counted.
  returned: success
  type: list
  elements: dict
  sample:
    - bytes: 7100000000
      name: trainer-cuda-9a0b1c2d3e4f5061
      path: /workspace/lora-forge/env/trainer-cuda-9a0b1c2d3e4f5061
      removed: false
      shared: 7000000000
      used_by: ''
freed:
  description: Bytes that were, or would be, freed; what uv's cache has, too, stays there.
  returned: success
  type: int
  sample: 100000000
show:
  description: Columns and rows of a table, and lines below it, for people; empty where nothing was found.
  returned: success
  type: dict
  sample:
    columns: [environment, MB, in uv's cache too, '']
    rows: [[trainer-cuda-9a0b1c2d3e4f5061, 7100, 7000, removed]]
    lines: ["  gpu-1: 100.0 MB freed; what uv has in its cache stays there, until uv cache clean"]
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import stale_environments

ARGUMENTS = {
    "root": {"type": "path", "required": True},
    "named": {"type": "list", "elements": "str", "required": True},
    "host": {"type": "str", "default": "this host"},
    "remove": {"type": "bool", "default": False},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        root = pathlib.Path(given["root"])
        stale = stale_environments.unnamed_environments(root, given["named"])
        for row in stale:
            going = given["remove"] and not row["used_by"]
            row["removed"] = going and (module.check_mode or stale_environments.remove(root, pathlib.Path(row["path"])))
        gone = [row for row in stale if row["removed"]]
        freed = sum(row["bytes"] - row["shared"] for row in gone)
        table = stale_environments.prune_table(given["host"], stale, freed, given["remove"], module.check_mode)
        module.exit_json(changed=bool(gone), environments=stale, freed=freed, show=table)


if __name__ == "__main__":
    main()
