"""Build the training image with docker or podman: ``make image``.

The image's labels come from the lock it is built from, and so does its name, unless one is given. Options that are not
known here go to docker or podman.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Optional

import ansible.module_utils

ROOT = pathlib.Path(__file__).resolve().parents[1]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.lora_forge.errors import UserError  # noqa: E402
from ansible.module_utils.lora_forge.planning import recipe  # noqa: E402
from ansible.module_utils.lora_forge.trainer import environment, gpu_fitness  # noqa: E402
from ansible.module_utils.lora_forge.version import VERSION, git_facts  # noqa: E402


def default(argument: str) -> str:
    """Return the value that the Dockerfile gives a build argument."""
    match = re.search(rf"^ARG {argument}=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert match, argument
    return match.group(1)


def revision() -> Optional[str]:
    """Return the commit of the checkout, ``-dirty`` when files differ from it; None when it is no checkout of git."""
    git = git_facts(ROOT)
    return git["commit"] + ("-dirty" if git["dirty"] else "") if git else None


def labels(lock: pathlib.Path, base: str) -> dict[str, str]:
    """Return an image's labels, besides those that the Dockerfile gives every image.

    Args:
        lock: The hash-locked requirements that it is built from.
        base: The image that it is built on.

    Raises:
        UserError: The lock is missing, or does not pin Axolotl and torch.
    """
    name, _, digest = base.partition("@")
    found = {
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.revision": revision(),
        "org.opencontainers.image.base.name": name,
        "org.opencontainers.image.base.digest": digest or None,
        "lora-forge.axolotl": recipe.pinned_version(lock, "axolotl"),
        "lora-forge.torch": recipe.pinned_version(lock, "torch"),
        "lora-forge.cuda": gpu_fitness.cuda_of_lock(lock.read_text(encoding="utf-8")) or "none",
        "lora-forge.lock": lock.stem,
        "lora-forge.lock.sha256": hashlib.sha256(lock.read_bytes()).hexdigest(),
    }
    return {label: value for label, value in found.items() if value is not None}


def engine() -> str:
    """Choose docker where its daemon answers, otherwise podman; docker alone explains its own faults.

    Raises:
        UserError: Neither is installed.
    """
    there = [program for program in ("docker", "podman") if shutil.which(program)]
    if there[:1] == ["docker"] and subprocess.run(["docker", "info"], capture_output=True).returncode:
        there.reverse()
    if there:
        return there[0]
    raise UserError("neither docker nor podman is installed; one of them builds the image")


def command(given: argparse.Namespace, options: list[str]) -> list[str]:
    """Return the command line that builds the image.

    Raises:
        UserError: There is no such lock, or neither docker nor podman.
    """
    lock = ROOT / "requirements" / f"{given.lock}.txt"
    known = labels(lock, given.base)
    program = given.engine or engine()
    words = [program, "build", "--tag", given.name or f"lora-forge:{environment.environment_name(lock)}"]
    if program == "podman":
        words += ["--format", "docker"]  # its own form has no health check
    words += ["--build-arg", f"BASE={given.base}", "--build-arg", f"LOCK={given.lock}"]
    for label, value in known.items():
        words += ["--label", f"{label}={value}"]
    return [*words, *options, str(ROOT)]


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Build the training image with docker or podman.", allow_abbrev=False)
    parser.add_argument("--name", help="its name and tag (lora-forge:<lock>-<16 hex of its hash>)")
    parser.add_argument("--base", default=default("BASE"), help="the image it is built on (%(default)s)")
    parser.add_argument("--lock", default=default("LOCK"), help="a lock of requirements/ (%(default)s)")
    parser.add_argument("--engine", choices=("docker", "podman"), help="what builds it (docker if it runs)")
    given, options = parser.parse_known_args(arguments)
    try:
        words = command(given, options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    built = subprocess.run(words).returncode
    if not built:
        print(f"built {words[words.index('--tag') + 1]}")
    return built


if __name__ == "__main__":
    raise SystemExit(main())
