#!/usr/bin/python
"""Write the report page."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_report
short_description: Write one page on all adapters, for people
description:
  - Runs on the controller and reads below O(output) alone. The page is one HTML file without network and script.
  - The page depends on the data and on the checkout's version and commit, not on the clock. It is written only where
    it differs.
options:
  template:
    description: The page's Jinja template.
    type: path
    required: true
  dest:
    description: The page. Empty for C(report.html) in O(output).
    type: path
    default: ''
attributes:
  check_mode:
    description: Predicts whether the page would differ.
extends_documentation_fragment: [lora_forge, lora_forge.output, lora_forge.agents, lora_forge.checkout]
"""

EXAMPLES = r"""
- name: Write the page
  training_report:
    output: output
    checkout: .
    template: templates/report.html.j2
"""

RETURN = r"""
path:
  description: The page.
  returned: success
  type: str
  sample: /home/me/lora-forge/output/report.html
agents:
  description: The agents in it that have an adapter.
  returned: success
  type: list
  elements: str
  sample: [witness]
adapters:
  description: How many delivered adapters it tells of.
  returned: success
  type: int
  sample: 3
bytes:
  description: Its size.
  returned: success
  type: int
  sample: 48211
warnings_found:
  description: What could not be read, and is left out.
  returned: success
  type: list
  elements: str
  sample: []
show:
  description: What its action prints, as lines and warnings.
  returned: success
  type: dict
  sample: {lines: ["  3 adapters of witness: file:///home/me/lora-forge/output/report.html"], warnings: []}
"""

import pathlib
import urllib.parse
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.planning.agents import Agents, everybody, kept_agents
from ansible.module_utils.lora_forge.results import report
from ansible.module_utils.lora_forge.version import full_version, git_facts

ARGUMENTS = {
    "output": {"type": "path", "required": True},
    "template": {"type": "path", "required": True},
    "dest": {"type": "path", "default": ""},
    "agents": {"type": "raw"},
    "checkout": {"type": "path", "required": True},
}


def answer(given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Return what the module returns.

    Args:
        given: Its options.
        check_mode: Whether nothing may be written.

    Raises:
        UserError: There is no such agent, or the template does not hold up.
    """
    output, template = pathlib.Path(given["output"]), pathlib.Path(given["template"])
    path = pathlib.Path(given["dest"] or output / "report.html").absolute()
    known = Agents(pathlib.Path(given["checkout"]))
    wanted = [] if everybody(given["agents"]) else known.select(given["agents"], kept_agents(output))
    git = git_facts(template.parent)
    facts = report.read(output, wanted, known.names) | {"git": git, "version": full_version(git)}
    page = report.render(template, facts).encode("utf-8", "replace")
    agents = [agent["name"] for agent in facts["agents"]]
    count = sum(len(agent["runs"]) for agent in facts["agents"])
    adapters = f"{count} {'adapter' if count == 1 else 'adapters'} {'of ' + ', '.join(agents) if agents else 'yet'}"
    note = " (check mode: not written)" if check_mode else ""
    return {
        "changed": report.write(path, page, check_mode),
        "path": str(path),
        "agents": agents,
        "adapters": count,
        "bytes": len(page),
        "warnings_found": facts["warnings"],
        "show": {
            "lines": [f"  {adapters}: file://{urllib.parse.quote(str(path))}{note}"],
            "warnings": facts["warnings"],
        },
    }


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
