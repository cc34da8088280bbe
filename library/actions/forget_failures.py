"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: forget_failures
short_description: Forget what went wrong with runs on this host
description:
  - Another attempt begins, and tells for itself. What went wrong on other hosts stays in the records.
attributes:
  check_mode:
    description: Writes nothing.
extends_documentation_fragment: [lora_forge, lora_forge.action, lora_forge.runs, lora_forge.output]
"""

EXAMPLES = r"""
- name: Forget the last attempt
  forget_failures:
    runs: "{{ run_plans }}"
    output: output
"""

RETURN = r"""{}"""
