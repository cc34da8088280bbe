"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: transfer
short_description: Bring files to a trainer, or from it, by rsync
description:
  - Goes over the connection that Ansible has open already, with its keys and jump hosts. Only what is not there already
    is sent.
  - Works over ssh. On a trainer that is this machine (C(local)) files are copied; nothing can be fetched from there, as
    it is here.
options:
  files:
    description:
      - To the trainer, mappings with C(path) below O(to), C(src) or C(content), and C(sha256). C(like) names a file
        below O(to) that may hold the same already.
      - With O(from), mappings with C(path) below that, and the most C(bytes) that the file may have. What comes besides
        is deleted, and fails the transfer.
    type: list
    elements: raw
    required: true
  to:
    description: The folder on the trainer, which is made; with O(from), the folder on the controller.
    type: path
    required: true
  from:
    description:
      - A folder on the trainer, from which files are fetched.
      - What a transfer that was cut off left in O(to) is continued, so the caller has to compare the hashes. Anything
        else that lies in O(to) is deleted.
    type: path
  max_bytes:
    description: With O(from), the most bytes of all files together; by default the sum of what each may have.
    type: int
  timeout:
    description: Seconds without a byte after which a transfer counts as cut off.
    type: int
    default: 60
  options:
    description: Further options of rsync.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Tells which files would go to the trainer. It does not hold back what is fetched; whoever calls it has
      to.
    support: partial
extends_documentation_fragment: [lora_forge, lora_forge.action]
"""

EXAMPLES = r"""
- name: Bring a lock to the trainer
  transfer:
    files:
      - {path: requirements/hub.txt, src: requirements/hub.txt}
    to: /workspace/lora-forge
"""

RETURN = r"""
sent:
  description: The paths that were not there.
  returned: success
  type: list
  elements: str
  sample: [requirements/hub.txt]
bytes:
  description: How many bytes went over the wire; 0 where files were copied.
  returned: without O(from)
  type: int
  sample: 4711
"""
