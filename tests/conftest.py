"""Make the project's own module_utils importable as ansible.module_utils.lora_forge, as Ansible does for modules."""

from __future__ import annotations

import pathlib
import sys

import ansible.module_utils

ROOT = pathlib.Path(__file__).resolve().parents[1]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path.insert(0, str(ROOT / "module_utils" / "lora_forge"))  # rundir, as the supervisor imports it
sys.path.insert(0, str(ROOT / "roles" / "run" / "files"))
