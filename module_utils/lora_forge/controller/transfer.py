"""What goes to a trainer, laid out as it will lie there; and what a failed transfer means."""

from __future__ import annotations

import hashlib
import pathlib
import shlex
import shutil
from typing import Any

from ansible.module_utils.lora_forge.errors import UserError

PARTIAL = ".rsync-partial"  # beside a file that was cut off


def build_tree(tree: pathlib.Path, files: list[dict[str, Any]]) -> int:
    """Put every file at its place below a folder, those that are on the disk as links.

    Args:
        tree: The folder.
        files: Each C(path) below it, C(src) or C(content), and C(sha256) where a C(src) was planned by its content.

    Returns:
        Their size in bytes.

    Raises:
        UserError: A file is gone, or not the planned one.
    """
    total = 0
    for file in files:
        place = tree / file["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.get("src") is None:
            place.write_text(file["content"], encoding="utf-8")
        else:
            source = pathlib.Path(file["src"]).resolve()
            if not source.is_file():
                raise UserError(f"{source} is gone. It was there when the run was planned; nothing was started")
            if file.get("sha256") and hashlib.sha256(source.read_bytes()).hexdigest() != file["sha256"]:
                raise UserError(
                    f"{source} was changed after the run was planned. Nothing was started; run the same command "
                    "again, and the new content is planned as a run of its own"
                )
            place.symlink_to(source)
        total += place.stat().st_size
    return total


def prepare_command(to: str, files: list[dict[str, Any]]) -> str:
    """Write the command that makes a trainer ready for rsync: the folder, and something to compare new content with.

    What lies by its content is another file whenever it changes, and would go over the wire as a whole. Where rsync
    would look for a transfer that was cut off it finds the newest file of that name, as a link: it reads that, and
    writes another one.

    Args:
        to: The folder.
        files: As :func:`build_tree` takes them; those with a C(sha256) lie by their content.
    """
    command = f"umask 022; mkdir -p {shlex.quote(to)}"
    links = []
    for file in files:
        place = pathlib.PurePath(file["path"])
        if file.get("sha256"):
            known = f"{shlex.quote(str(place.parents[1]))}/*/{shlex.quote(place.name)}"
            part = shlex.quote(f"{place.parent}/{PARTIAL}")
            newest = f'old=$(ls -t {known} 2>/dev/null | head -n 1); [ -n "$old" ]'
            links.append(
                f'[ -e {shlex.quote(str(place))} ] || {{ {newest} && mkdir -p {part} && ln -f "$old" {part}/; }}'
            )
    # Without it more goes over the wire, and nothing else.
    return f"{command} && cd {shlex.quote(to)} && {{ {'; '.join(links)}; :; }} 2>/dev/null" if links else command


def copy(tree: pathlib.Path, to: pathlib.Path, dry: bool = False) -> list[str]:
    """Copy what is not there yet, or is something else: rsync's work where trainer and controller are one machine.

    Args:
        tree: What was laid out.
        to: Where it goes.
        dry: Only say what would be copied.

    Returns:
        The copied paths, below both folders.
    """
    copied = []
    for source in sorted(path for path in tree.rglob("*") if path.is_file()):
        target = to / source.relative_to(tree)
        if target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        copied.append(str(source.relative_to(tree)))
        if not dry:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(source, part)
            part.chmod(0o644)
            part.replace(target)
    return copied


def write_error(host: str, message: str) -> str:
    """Say what to do about a trainer_root that cannot be made."""
    return (
        f"{host}: {message}\nSet trainer_root to a folder on a large disk that this user may write: "
        "-e trainer_root=/data/lora-forge"
    )


def connection_error(host: str, message: str) -> str:
    """Say what to do about a trainer that cannot be reached at all.

    Args:
        host: The trainer.
        message: What ssh said of it.
    """
    message = message.strip().removeprefix("Failed to connect to the host via ssh: ")
    if "Host key verification failed" in message:  # ssh's own words say what to do, and are not to be passed over
        return (
            f"{host} is not known by its key, and nothing was sent to it:\n{message}\nIf it is a new host, or was made "
            "anew, connect once by hand and compare its fingerprint; if not, somebody may be in between"
        )
    lines = message.splitlines() or ["no answer"]
    return (
        f"{host} does not answer: {lines[-1]}\nWhat runs there goes on. When it answers again, the same command goes "
        f"on; -e move={host} gives it up, and starts what it had on another trainer"
    )


def transfer_error(host: str, message: str) -> str:
    """Say what to do about a transfer that failed.

    Args:
        host: With whom.
        message: What rsync, or ssh, said of it.
    """
    if "not found" in message or "executable" in message:
        advice = "rsync is needed on both ends. Debian, Ubuntu: apt-get install rsync"
    elif "No space left" in message:
        advice = "The disk is full. Free some space; the same command goes on where it was cut."
    elif "Permission denied" in message and "rsync" in message:
        return write_error(host, message)
    else:
        advice = "The same command goes on where it was cut."
    return f"the transfer with {host} failed: {message}\n{advice}"
