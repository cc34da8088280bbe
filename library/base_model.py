#!/usr/bin/python
"""Fetch the base model to the trainer."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: base_model
short_description: Start to fetch a base model, or tell how far it is
description:
  - A model of the hub is fetched once, by a process of its own that outlives the connection. The module returns at
    once, so that other work goes on meanwhile; ask again with O(wait) to follow it.
  - A fetch that was cut off or failed is started again and goes on where it was.
  - Whether a model is there is answered without a network. A folder on the trainer is checked and taken as it is.
attributes:
  check_mode:
    description: Predicts whether a fetch would be started.
extends_documentation_fragment: [lora_forge, lora_forge.base_model, lora_forge.news]
"""

EXAMPLES = r"""
- name: Start to fetch the base model
  base_model:
    model: Qwen/Qwen2.5-7B-Instruct
    home: /workspace/lora-forge/models/hub
    python: /workspace/lora-forge/env/0f4fb8a8d3b5c2f1/bin/python
    program: /workspace/lora-forge/fetch_model.py
    hf_token: "{{ lookup('ansible.builtin.env', 'HF_TOKEN') }}"

- name: Ask how far it is
  base_model:
    model: Qwen/Qwen2.5-7B-Instruct
    home: /workspace/lora-forge/models/hub
"""

RETURN = r"""
state:
  description: One of absent, fetching, present. A fetch whose process died is absent. One that failed fails the module.
  returned: success
  type: str
  sample: fetching
described:
  description: Where the model is, from when its configuration and tokenizer are there, which come before its weights;
    empty until then.
  returned: success
  type: str
  sample: /workspace/lora-forge/models/hub/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/a09a35458c70
folder:
  description: Where the model is; empty until it is present. (Ansible would put a file's facts beside a C(path).)
  returned: success
  type: str
  sample: /workspace/lora-forge/models/hub/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/a09a35458c70
bytes:
  description: How much is on the trainer's disk.
  returned: success
  type: int
  sample: 3200000000
total_bytes:
  description: How much it will be; 0 until that is known.
  returned: success
  type: int
  sample: 15242000000
bytes_per_second:
  description: The rate of the last seconds, where it is known.
  returned: success
  type: int
  sample: 85000000
error:
  description: Why it is not there, in a sentence; empty where there is nothing to say.
  returned: always
  type: str
  sample: ''
mark:
  description: What to pass as O(since) next.
  returned: success
  type: str
  sample: fetching:4:described
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import base_model

ARGUMENTS = {
    "model": {"type": "str", "required": True},
    "revision": {"type": "str", "default": ""},
    "home": {"type": "path", "required": True},
    "python": {"type": "str", "default": ""},
    "program": {"type": "path"},
    "hf_token": {"type": "str", "default": "", "no_log": True},
    "wait": {"type": "float", "default": 0},
    "since": {"type": "str", "default": ""},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        if given["python"] and not given["program"]:
            module.fail_json(msg="python is given without program: name fetch_model.py on the trainer")
        wanted = (given["model"], given["revision"], pathlib.Path(given["home"]))
        changed = bool(given["python"]) and base_model.start_fetch(
            *wanted, given["python"], given["program"], given["hf_token"], module.check_mode
        )
        answer = base_model.wait_for_progress(*wanted, given["since"], given["wait"])
        if answer["state"] == "failed" and not (changed and module.check_mode):
            module.fail_json(msg=answer["error"], **answer)
        module.exit_json(changed=changed, **answer)


if __name__ == "__main__":
    main()
