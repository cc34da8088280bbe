#!/usr/bin/python
"""Lay out on the controller what a host needs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: staging
short_description: Lay out on the controller what a host needs, ready for one transfer
description:
  - Makes a temporary folder in which each wanted file stands at its place, as a link to its source, so that one rsync
    brings the whole. Who calls it removes the folder.
  - A file whose content is not the planned one is an error, so that nothing else is trained than what was planned.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it goes, below the host's root.
        type: str
        required: true
      src:
        description: The file on the controller.
        type: path
      content:
        description: Its text, instead of O(files[].src).
        type: str
      sha256:
        description: What its SHA-256 has to be.
        type: str
attributes:
  check_mode:
    description: Lays out as well, because the dry run of the transfer needs it.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - lora-forge
"""

EXAMPLES = r"""
- name: Lay out a dataset
  delegate_to: localhost
  staging:
    files:
      - path: datasets/3f9a2c1b77e0/witness_train.jsonl
        src: output/datasets/witness_train.jsonl
"""

RETURN = r"""
tree:
  description: The folder.
  returned: success
  type: str
  sample: /tmp/lora-forge-k2j4h1
bytes:
  description: The size of all files.
  returned: success
  type: int
  sample: 52311
"""

import hashlib
import pathlib
import shutil
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import ForgeError, reported

ARGUMENTS = {
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "str", "required": True},
            "src": {"type": "path"},
            "content": {"type": "str"},
            "sha256": {"type": "str"},
        },
        "required_one_of": [("src", "content")],
    },
}


def lay_out(tree: pathlib.Path, files: list[dict[str, Any]]) -> int:
    """Put every file at its place below a folder; returns their size in bytes.

    Raises:
        ForgeError: A file is gone, or not the planned one.
    """
    total = 0
    for one in files:
        place = tree / one["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if one["src"] is None:
            place.write_text(one["content"], encoding="utf-8")
        else:
            source = pathlib.Path(one["src"]).resolve()
            if not source.is_file():
                raise ForgeError(f"{source} is gone. It was there when the run was planned; nothing was started")
            if one["sha256"] and hashlib.sha256(source.read_bytes()).hexdigest() != one["sha256"]:
                raise ForgeError(
                    f"{source} was changed after the run was planned. Nothing was started; run the same command "
                    "again, and the new content is planned as a run of its own"
                )
            place.symlink_to(source)
        total += place.stat().st_size
    return total


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    tree = pathlib.Path(tempfile.mkdtemp(prefix="lora-forge-"))
    with reported(module):
        try:
            total = lay_out(tree, module.params["files"])
        except ForgeError:
            shutil.rmtree(tree)
            raise
        module.exit_json(changed=False, tree=str(tree), bytes=total)


if __name__ == "__main__":
    main()
