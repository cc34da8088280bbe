#!/usr/bin/python
"""Make the trainer's Python environment."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: trainer_environment
short_description: Make a Python environment from a hash-locked file with uv
description:
  - Builds C(<root>/env/<lock hash>) in place, under a lock, and marks it complete as the last thing.
  - Does nothing when the environment of this lock is there. A build that was cut off is made whole.
  - On a host that was started from the training image, links to the image's environment if it is that of this lock,
    and installs nothing.
options:
  root:
    description: The trainer's root folder.
    type: path
    required: true
  lock:
    description: The hash-locked requirements, on the trainer.
    type: path
    required: true
  uv:
    description: The uv program on the trainer. Without it, O(uv_lock) is installed by pip.
    type: str
    default: ''
  uv_lock:
    description: A hash-locked file that pins uv, on the trainer.
    type: path
  python:
    description: The Python version of the environment.
    type: str
    required: true
  python_download:
    description: Whether uv may fetch that Python.
    type: bool
    default: false
  torch_backend:
    description: uv's torch backend, such as V(cpu). Ignored where a folder of wheels is named by UV_FIND_LINKS or
      PIP_FIND_LINKS.
    type: str
    default: ''
attributes:
  check_mode:
    description: Predicts whether an environment would be made.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - lora-forge
"""

EXAMPLES = r"""
- name: Make the environment of the CPU lock
  trainer_environment:
    root: /workspace/lora-forge
    lock: /workspace/lora-forge/requirements/trainer-cpu.txt
    python: "3.11"
    torch_backend: cpu
"""

RETURN = r"""
python:
  description: The environment's Python.
  returned: success
  type: str
  sample: /workspace/lora-forge/env/5c1e0a9d3b7f2c64/bin/python
adopted:
  description: Whether it was found in the training image, and only linked.
  returned: success
  type: bool
  sample: false
packages:
  description: How many packages the lock pins.
  returned: success
  type: int
  sample: 238
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 13.2
"""

import os
import pathlib
import sys
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge import environment
from ansible.module_utils.lora_forge.errors import ForgeError, reported

ARGUMENTS = {
    "root": {"type": "path", "required": True},
    "lock": {"type": "path", "required": True},
    "uv": {"type": "str", "default": ""},
    "uv_lock": {"type": "path"},
    "python": {"type": "str", "required": True},
    "python_download": {"type": "bool", "default": False},
    "torch_backend": {"type": "str", "default": ""},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with reported(module):
        if sys.version_info < (3, 9):  # noqa: UP036 - a trainer may have an older one; here it is told
            raise ForgeError(f"a trainer needs Python 3.9 or newer for the supervisor; {sys.executable} is older")
        root, lock = pathlib.Path(given["root"]), pathlib.Path(given["lock"])
        if module.check_mode and not lock.exists():
            module.exit_json(
                changed=True, adopted=False, python="", packages=0, seconds=0.0
            )  # it would be staged, and then made
        began = time.monotonic()
        home = root / "env" / environment.key(lock)
        changed = not environment.present(home)
        adopted = changed and not module.check_mode and environment.adopt(root / "env", lock)
        if changed and not module.check_mode and not adopted:
            uv_lock = pathlib.Path(given["uv_lock"]) if given["uv_lock"] else None
            uv = environment.find_uv(given["uv"], root, uv_lock, sys.executable)
            wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
            backend = "" if wheels else given["torch_backend"]
            changed = environment.ensure(root / "env", lock, uv, given["python"], given["python_download"], backend)
        module.exit_json(
            changed=changed,
            adopted=adopted,
            python=str(home / "bin/python"),
            packages=environment.packages(lock),
            seconds=round(time.monotonic() - began, 1),
        )


if __name__ == "__main__":
    main()
