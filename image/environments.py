"""Make the environments of the training image, by the code that makes them on a host. Run by the Dockerfile.

``environments.py large <lock>``: print the large part of a lock, which rarely changes: torch, and what CUDA brings.
``environments.py begin <Python> <uv's lock> <that part>``: the trainer's environment, with this part alone.
``environments.py end <Python> <uv's lock> <trainer's lock> <other lock> …``: with all of its lock; the others.

Two steps make two layers. After a change to the lock that leaves torch alone, only the second one is built, pushed and
pulled again. So the environment has a place of its own, and a link by the name that its lock gives it.
"""

from __future__ import annotations

import pathlib
import re
import sys

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import environment

TOOLS = pathlib.Path.home() / ".cache/lora-forge"  # uv itself stays in the cache that the build mounts
ENVIRONMENTS = environment.IMAGE / "env"
TRAINER = environment.IMAGE / "trainer"  # what the health check computes with
LARGE = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)==")


def large(lock: str) -> str:
    """Return the large requirements of a lock, with their hashes; comments, which may change, are left out."""
    lines = [line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found, wanted = [], False
    for line in lines:
        wanted = bool(LARGE.match(line)) if not line.startswith(" ") else wanted
        if wanted:
            found.append(line)
    return "\n".join(found) + "\n"


def main(arguments: list[str]) -> int:
    step, *rest = arguments
    if step == "large":
        print(large(pathlib.Path(rest[0]).read_text(encoding="utf-8")), end="")
        return 0
    wanted, *names = rest
    uv_lock, *locks = [pathlib.Path(name) for name in names]
    try:
        uv = environment.find_uv("", TOOLS, uv_lock, sys.executable)
        python = environment.interpreter(wanted, True, environment.IMAGE)
        if step == "begin":
            environment.make(TRAINER, uv, python, environment.IMAGE)
        environment.sync(TRAINER, locks[0], uv, torch_backend="")
        if step == "begin":
            return 0
        environment.mark_complete(TRAINER)
        ENVIRONMENTS.mkdir()
        (ENVIRONMENTS / environment.environment_name(locks[0])).symlink_to(TRAINER)
        for lock in locks[1:]:
            environment.ensure(ENVIRONMENTS, lock, uv, python, torch_backend="")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
