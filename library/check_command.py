#!/usr/bin/python
"""Check what a command was given."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: check_command
short_description: Hold what a command was given by -e against what its playbooks read
description:
  - Runs on the controller and touches no host. A name that resembles an option's is an error, before anything starts;
    a command that passes it over would do more than was meant.
  - Other settings than those of C(ansible.cfg) in the checkout are an error, too.
  - Any other unknown name is warned of, unless the inventory, or what lies beside it in C(group_vars/), C(host_vars/)
    and C(hooks/), has it.
options:
  command_options:
    description:
      - What the command was given, a mapping.
      - In a play the action of this name adds what C(-e) says.
    type: dict
    default: {}
  inventories:
    description:
      - The paths of its inventories.
      - In a play the action of this name knows them.
    type: list
    elements: str
    default: []
  config_file:
    description:
      - The file of settings that Ansible has read, empty for none. It must be that of the checkout.
      - In a play the action of this name knows it. Without it that is not checked.
    type: str
attributes:
  check_mode:
    description: Does the same.
extends_documentation_fragment: [lora_forge, lora_forge.checkout]
"""

EXAMPLES = r"""
- name: Check what the command was given
  check_command:
    checkout: "{{ playbook_dir | dirname }}"
"""

RETURN = r"""
show:
  description: What its action prints, warnings of what nothing reads.
  returned: success
  type: dict
  sample: {warnings: ["-e: nothing reads regoin: it is no option, and nothing of your inventory"]}
"""

import os
import pathlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import UserError, report_errors
from ansible.module_utils.lora_forge.planning import options

ARGUMENTS = {
    "checkout": {"type": "path", "required": True},
    "command_options": {"type": "dict", "default": {}},
    "inventories": {"type": "list", "elements": "str", "default": []},
    "config_file": {"type": "str"},
}


def answer(given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Return what the module returns.

    Args:
        given: Its options.
        check_mode: Makes no difference.

    Raises:
        UserError: Something is given that no playbook reads, and that resembles what one reads; or Ansible has read
            other settings than those of the checkout.
    """
    checkout = pathlib.Path(given["checkout"])
    if given["config_file"] is not None:
        named = os.environ.get("ANSIBLE_CONFIG", "")
        if other := options.configuration_error(checkout, given["config_file"], named, pathlib.Path.cwd()):
            raise UserError(other)
    if not given["command_options"]:
        return {"changed": False, "show": {"warnings": []}}
    wrong, strange = options.check_command_options(checkout, given["command_options"], given["inventories"])
    if wrong:
        raise UserError("\n".join(wrong))
    return {"changed": False, "show": {"warnings": strange}}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
