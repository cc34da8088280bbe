#!/usr/bin/python
"""Make the trainer's Python environment."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: trainer_environment
short_description: Make a Python environment from a hash-locked file with uv
description:
  - Builds C(<root>/env/<lock>-<hash>) in place, under a lock, and marks it complete as the last thing.
  - Does nothing when the environment of this lock is there. A build that was cut off is made whole.
  - On a host that was started from the training image, links to the image's environment if it is that of this lock,
    and installs nothing.
options:
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
    description: A version (V(3.13)) or the path of the CPython that the environment is made with. Without it, the first
      one of those that the locks are for, on PATH or where uv and pyenv keep theirs.
    type: str
    default: ''
  python_download:
    description: Whether uv may fetch one, to C(<root>/python), where the host has none.
    type: bool
    default: false
  torch_backend:
    description: uv's torch backend, such as V(cpu), for what no folder of wheels has (UV_FIND_LINKS, PIP_FIND_LINKS).
    type: str
    default: ''
  instead:
    description: The lock that is taken where the builds of torch that O(lock) names cannot be had from here.
    type: path
attributes:
  check_mode:
    description: Predicts whether an environment would be made.
extends_documentation_fragment: [lora_forge, lora_forge.root]
"""

EXAMPLES = r"""
- name: Make the environment of the CPU lock
  trainer_environment:
    root: /workspace/lora-forge
    lock: /workspace/lora-forge/requirements/trainer-cpu.txt
    torch_backend: cpu
"""

RETURN = r"""
python:
  description: The environment's Python.
  returned: success
  type: str
  sample: /workspace/lora-forge/env/trainer-cuda-5c1e0a9d3b7f2c64/bin/python
adopted:
  description: Whether it was found in the training image, and only linked.
  returned: success
  type: bool
  sample: false
built_from:
  description: The name of the lock it was built from, O(lock)'s or O(instead)'s. Empty in check mode, where it would be
    made.
  returned: success
  type: str
  sample: trainer-cpu
interpreter:
  description: The CPython that it was made with.
  returned: when it was made
  type: str
  sample: /usr/bin/python3.13
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
from ansible.module_utils.lora_forge.errors import UserError, report_errors
from ansible.module_utils.lora_forge.trainer import environment

ARGUMENTS = {
    "root": {"type": "path", "required": True},
    "lock": {"type": "path", "required": True},
    "uv": {"type": "str", "default": ""},
    "uv_lock": {"type": "path"},
    "python": {"type": "str", "default": ""},
    "python_download": {"type": "bool", "default": False},
    "torch_backend": {"type": "str", "default": ""},
    "instead": {"type": "path"},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        if sys.version_info < (3, 9):  # noqa: UP036 - a trainer may have an older one; here it is told
            raise UserError(f"a trainer needs Python 3.9 or newer for the supervisor; {sys.executable} is older")
        root, lock = pathlib.Path(given["root"]), pathlib.Path(given["lock"])
        instead = pathlib.Path(given["instead"]) if given["instead"] else None
        if module.check_mode and not lock.exists():  # it would be staged, and then made
            module.exit_json(changed=True, adopted=False, python="", built_from="", packages=0, seconds=0.0)
        began = time.monotonic()
        home = root / "env" / environment.environment_name(lock)
        changed = not environment.is_complete(home)
        adopted = changed and not module.check_mode and environment.adopt(root / "env", lock)
        made = {}
        if changed and not module.check_mode and not adopted:
            uv_lock = pathlib.Path(given["uv_lock"]) if given["uv_lock"] else None
            uv = environment.find_uv(given["uv"], root, uv_lock, sys.executable)
            python = environment.interpreter(given["python"], given["python_download"], root)
            changed = environment.ensure(root / "env", lock, uv, python, given["torch_backend"], instead)
            made = {"interpreter": os.path.realpath(home / "bin/python")}
        built = environment.built_from(home, [lock, *([instead] if instead else [])])
        module.exit_json(
            changed=changed,
            adopted=adopted,
            python=str(home / "bin/python"),
            built_from=built.stem if built else "",
            packages=environment.packages(built or lock),
            seconds=round(time.monotonic() - began, 1),
            **made,
        )


if __name__ == "__main__":
    main()
