#!/usr/bin/python
"""Upload what W&B's client recorded."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: wandb_sync
short_description: Upload what W&B's client recorded and W&B does not have
description:
  - Runs on the controller. Uploads each record with the client's own C(wandb sync). Several records of one run, one for
    each time it was started, become one W&B run.
  - What goes up is a copy with figures, configuration and console alone. Files and artifacts that a record names stay
    here, as a trainer wrote it. Beside the manifest of an adapter it is a record of the run that stands there.
  - A record counts as uploaded by the client's mark, or when W&B says that the run ended there no earlier than the
    record does. What was not uploaded is tried again by the next call.
  - What was recorded offline while the run later went on online is never uploaded, as its older figures would take the
    place of the last ones. It is named in RV(left_out), and in a warning.
options:
  path:
    description:
      - A record, C(run-…) or C(offline-run-…), of a run that has ended, or a folder that holds some, up to four folders
        deep.
    type: path
    required: true
  entity:
    description: Whose the runs shall be; by default as they were recorded, or the key's default entity.
  timeout:
    default: 300
attributes:
  check_mode:
    description: Asks W&B, and predicts the upload.
extends_documentation_fragment: [lora_forge, lora_forge.wandb]
"""

EXAMPLES = r"""
- name: Upload what was recorded without a network
  wandb_sync:
    path: output/adapters/witness/witness-c6746a504464/wandb
  delegate_to: localhost
"""

RETURN = r"""
synced:
  description: The records that were uploaded, oldest first.
  returned: always
  type: list
  elements: str
  sample: [output/adapters/witness/witness-c6746a504464/wandb/offline-run-20260115_102030-witness-c6746a504464]
left_out:
  description: Records that W&B does not have and that are not uploaded, as their run went on there without them.
  returned: always
  type: list
  elements: str
  sample: []
url:
  description: Where the newest run is to be seen; empty where there is none, or where W&B was not asked with success.
  returned: always
  type: str
  sample: https://wandb.ai/my-team/lora-forge/runs/witness-c6746a504464
kind:
  description: As wandb_run_info returns it.
  returned: failure
  type: str
  sample: server_down
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.results import wandb_records

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "entity": {"type": "str", "default": ""},
    "base_url": {"type": "str", "default": ""},
    "api_key": {"type": "str", "default": "", "no_log": True},
    "timeout": {"type": "int", "default": 300},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        answer = wandb_records.sync_records(
            pathlib.Path(given["path"]),
            given["entity"],
            given["base_url"],
            given["api_key"],
            given["timeout"],
            module.check_mode,
        )
        error = answer.pop("error")
        for record in answer["left_out"]:
            module.warn(
                f"W&B does not have {record}: it was recorded offline, and the run went on online and has ended there. "
                "The record stays; its figures are in metrics.jsonl and in the report too"
            )
        if error:
            module.fail_json(**error, **answer)
        module.exit_json(**answer)


if __name__ == "__main__":
    main()
