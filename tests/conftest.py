"""Make the project's own module_utils importable as ansible.module_utils.lora_forge, as Ansible does for modules."""

from __future__ import annotations

import pathlib
import sys

import ansible.module_utils
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path.insert(0, str(ROOT / "module_utils" / "lora_forge"))  # rundir, as the supervisor imports it
sys.path.insert(0, str(ROOT / "roles" / "run" / "files"))
sys.path.insert(0, str(ROOT / "tests" / "fakes"))
sys.path.insert(0, str(ROOT / "tests" / "fakes" / "runpod"))


@pytest.fixture
def lab(tmp_path):
    """A pretended trainer with real supervisors; what it started is killed at the end."""
    from lab import Lab

    made = Lab(tmp_path)
    yield made
    made.close()
