"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: fetch_model
short_description: Fetch a base model, and show the progress until it is there
description:
  - Asks M(base_model) again and again. A fetch that died without giving a reason is started again, three times.
  - Losing this process, or the connection, harms nothing.
options:
  until:
    description: What is waited for. V(described) is reached as soon as its configuration and tokenizer are there, which
      come before the weights; the fetch goes on.
    type: str
    choices: [described, present]
    default: present
attributes:
  check_mode:
    description: Predicts whether a fetch would be started.
extends_documentation_fragment: [lora_forge, lora_forge.action, lora_forge.base_model, lora_forge.unreachable_timeout]
"""

EXAMPLES = r"""
- name: Follow the base model until it is there
  fetch_model:
    model: Qwen/Qwen2.5-7B-Instruct
    home: /workspace/lora-forge/models/hub
    python: /workspace/lora-forge/env/hub-0f4fb8a8d3b5c2f1/bin/python
    program: /workspace/lora-forge/fetch_model.py
    unreachable_timeout: 3600
"""

RETURN = r"""
state:
  description: As M(base_model) returns it, with all else that it returns. C(changed) tells whether a fetch was started.
  returned: success
  type: str
  sample: present
"""
