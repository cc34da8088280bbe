"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: fail_again
short_description: Fail because something failed before
description:
  - Fails with all that a failed task returned, of which M(ansible.builtin.fail) would keep the sentence alone.
  - With O(failures) it fails if there are any; they are told one by one.
  - Without both it fails if any of O(runs) is noted as failed on this host.
options:
  failure:
    description: What the failed task returned. Its C(msg) is what people read.
    type: dict
  failures:
    description: What M(start_runs) returned of the runs that failed.
    type: list
    elements: dict
  runs:
    description: The runs, as planned. Needed without O(failure).
    type: list
    elements: dict
  output:
    description: Where the records of runs are kept on the controller. Needed without O(failure).
    type: path
  refusals:
    description: The runs among them whose recipes their base models do not take, with why. Where all others are
      delivered the failure is C(configuration).
    type: dict
attributes:
  check_mode:
    description: Fails all the same.
extends_documentation_fragment: [lora_forge, lora_forge.action]
"""

EXAMPLES = r"""
- name: See that every run did well
  fail_again:
    runs: "{{ run_plans }}"
    output: output
"""

RETURN = r"""
msg:
  description: Why it fails; with O(failure) beside all that is in it.
  returned: failure
  type: str
  sample: "witness-c6746a504464 is failed: out of memory"
failures:
  description: Those that were given.
  returned: failure, with O(failures)
  type: list
  elements: dict
  sample: [{run_id: witness-c6746a504464, msg: it is not started}]
configuration:
  description: Whether another machine would do no better, and this one holds nothing.
  returned: failure, where it is so
  type: bool
  sample: true
"""
