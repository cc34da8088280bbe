"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: show
short_description: Print a table or a few lines for people
description:
  - The table comes first, then the lines, and last the warnings, marked. What is empty is left out.
  - It prints under the callback of this project alone. Under any other one it prints on standard error, and the
    result holds the same.
options:
  columns:
    description: The headings of the table.
    type: list
    elements: str
    default: []
  rows:
    description: Its rows, as many cells each; without any there is no table.
    type: list
    elements: list
    default: []
  lines:
    description: What follows the table.
    type: list
    elements: str
    default: []
  warnings:
    description: What comes last.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Prints the same.
extends_documentation_fragment: [lora_forge, lora_forge.action]
"""

EXAMPLES = r"""
- name: Say what it cost
  show:
    lines: ["  pod-1 is released; it cost 0.43 USD"]
"""

RETURN = r"""
show:
  description: What is shown, by the names of the options.
  returned: always
  type: dict
  sample: {lines: ["  pod-1 is released; it cost 0.43 USD"]}
"""
