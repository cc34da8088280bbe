#!/usr/bin/python
"""Delete checkpoints that are not worth their space."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: checkpoint_prune
short_description: Keep the best checkpoints of a run and delete the others
description:
  - Keeps the best by eval loss (a checkpoint's is that of the last evaluation at or before its step) and always
    the newest whole one.
  - Deletes what was set aside as not whole. Never touches a run that is alive.
options:
  keep:
    description: How many of the best stay.
    type: int
    default: 2
attributes:
  check_mode:
    description: Tells what would go and how many bytes that frees.
extends_documentation_fragment: [lora_forge, lora_forge.run_dir]
"""

EXAMPLES = r"""
- name: Keep the best two checkpoints
  checkpoint_prune:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
    keep: 2
"""

RETURN = r"""
checkpoints:
  description: Every checkpoint, whether it stays, and why.
  returned: success
  type: list
  elements: dict
  sample:
    - bytes: 5242880
      eval_loss: 7.51
      keep: false
      path: /workspace/…/checkpoint-4
      step: 4
      why: number 3 by eval loss
freed:
  description: Bytes that were, or would be, freed.
  returned: success
  type: int
  sample: 5242880
show:
  description: Columns and rows of a table, and lines below it, for people.
  returned: success
  type: dict
  sample:
    columns: [checkpoint, step, eval loss, MB, '', why]
    rows: [[checkpoint-4, 4, '7.5100', 5.2, goes, number 3 by eval loss]]
    lines: ['  witness-c6746a504464: 5.2 MB freed']
left_alone:
  description: Why the run was not touched; empty otherwise.
  returned: success
  type: str
  sample: it is alive
"""

import pathlib
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import UserError, report_errors
from ansible.module_utils.lora_forge.trainer import pruning

ARGUMENTS = {"run_dir": {"type": "path", "required": True}, "keep": {"type": "int", "default": 2}}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        if module.params["keep"] < 0:
            raise UserError(f"keep is {module.params['keep']}; it must be 0 or more")
        run_dir = pathlib.Path(module.params["run_dir"]).resolve()
        rows, left_alone = pruning.prune_plan(run_dir, module.params["keep"])
        going = [row for row in rows if not row["keep"]]
        if not module.check_mode:
            for row in going:
                shutil.rmtree(row["path"])
        module.exit_json(
            changed=bool(going),
            checkpoints=rows,
            freed=sum(row["bytes"] for row in going),
            left_alone=left_alone or "",
            show=pruning.prune_table(run_dir.name, rows, left_alone, module.check_mode),
        )


if __name__ == "__main__":
    main()
