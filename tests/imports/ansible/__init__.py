"""Where the linters resolve ``ansible.module_utils.lora_forge``: Ansible joins the names at run time only.

Nothing is imported from here. With Ansible's own package in its place import-linter would not see the project's files,
and mypy would take all that they give each other for Any.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    raise AttributeError(name)
