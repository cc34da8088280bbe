"""Make the environments of the training image, by the code that makes them on a host.

``environments.py <Python version> <uv's lock> <trainer's lock> <other lock> …``, run by the Dockerfile.
"""

from __future__ import annotations

import pathlib
import sys

from ansible.module_utils.lora_forge import environment
from ansible.module_utils.lora_forge.errors import ForgeError

TOOLS = pathlib.Path.home() / ".cache/lora-forge"  # uv itself stays in the cache that the build mounts
TRAINER = environment.IMAGE / "trainer"  # what the health check computes with


def main(arguments: list[str]) -> int:
    python, *names = arguments
    uv_lock, *locks = [pathlib.Path(name) for name in names]
    try:
        uv = environment.find_uv("", TOOLS, uv_lock, sys.executable)
        for lock in locks:
            environment.ensure(environment.IMAGE / "env", lock, uv, python, download=True, torch_backend="")
    except ForgeError as error:
        print(error, file=sys.stderr)
        return 1
    TRAINER.symlink_to(environment.IMAGE / "env" / environment.key(locks[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
