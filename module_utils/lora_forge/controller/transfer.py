"""What goes to a trainer, laid out as it will lie there; what comes from one, and how much; what a failure means."""

from __future__ import annotations

import contextlib
import filecmp
import os
import pathlib
import re
import resource
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any, Callable, Optional

from ansible.module_utils.lora_forge import paths
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.controller import ssh_words
from ansible.module_utils.lora_forge.errors import UserError

PRIVATE = ("datasets", "models", "prepared", "runs")  # below a trainer's root
PARTIAL = ".rsync-partial"  # beside a file that was cut off
LEFT_FREE = 256 * paths.MIB  # bytes of the controller's disk that no fetch takes
SLOWEST = 20_000  # bytes per second, on average; less would keep a rented trainer waiting for ever
GRACE = 3600.0  # seconds that every fetch has besides
TOLD = 16 * paths.MIB  # bytes that rsync may print
_COMMAND = 64_000  # letters of what a shell is told of files; Linux takes 128 KiB as one argument
# Links the newest file of a name that lies by another content to where rsync looks for what was cut off.
_LINK = (
    'link() { [ -e "$1/$2" ] || { old=$(ls -t "${1%/*}"/*/"$2" 2>/dev/null | head -n 1); [ -n "$old" ] '
    f'&& mkdir -p "$1/{PARTIAL}" && ln -f "$old" "$1/{PARTIAL}/"; }}; }}'
)
# Gives a file the content of another one, as a link, where it is not there yet.
_LIKE = 'like() { [ -e "$2" ] || { [ -f "$1" ] && mkdir -p "${2%/*}" && ln "$1" "$2"; }; }'
_LAST = 10.0  # seconds that rsync has to end
_LOOK = 0.5  # seconds between two looks at what has arrived


def build_tree(tree: pathlib.Path, files: list[dict[str, Any]]) -> int:
    """Put every file at its place below a folder, those that are on the disk as links.

    Args:
        tree: The folder.
        files: Each C(path) below it, C(src) or C(content), and C(sha256) where a C(src) was planned by its content.

    Returns:
        Their size in bytes.

    Raises:
        UserError: A file is gone, or not the planned one; or a path leads out of the folder.
    """
    total = 0
    for file in files:
        why = paths.flaw(file["path"])
        # The files themselves are links here; a folder that is one would be somewhere else.
        if why or paths.through_link(tree, str(pathlib.PurePosixPath(file["path"]).parent)):
            raise UserError(f"{paths.quoted(file['path'])} {why or 'lies behind a link'}; it is sent to no trainer")
        place = tree / file["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.get("src") is None:
            place.write_text(file["content"], encoding="utf-8")
        else:
            source = pathlib.Path(file["src"]).resolve()
            if not source.is_file():
                raise UserError(f"{source} is gone. It was there when the run was planned; nothing was started")
            if file.get("sha256") and store.sha256_file(source) != file["sha256"]:
                raise UserError(
                    f"{source} was changed after the run was planned. Nothing was started; run the same command "
                    "again, and the new content is planned as a run of its own"
                )
            place.symlink_to(source)
        total += place.stat().st_size
    return total


def prepare_command(to: str, files: list[dict[str, Any]]) -> str:
    """Write the command that makes a trainer ready for rsync: the folder, and something to compare new content with.

    The folder is its user's alone where it is made here. One that is there stays as it is, as other things may lie in
    it, and other users may go through it; the folders in it that hold data, or what was learnt of it, are closed.

    What lies by its content is another file whenever it changes, and would go over the wire as a whole. Where rsync
    would look for a transfer that was cut off it finds the newest file of that name, as a link: it reads that, and
    writes another one. What has a C(like) is most often the same as that, and then nothing of it goes over the wire.

    Args:
        to: The folder.
        files: As :func:`build_tree` takes them; those with a C(sha256) lie by their content, and C(like) names a path
            below the folder, too.
    """
    parent = shlex.quote(str(pathlib.PurePosixPath(to).parent))
    folder = shlex.quote(to)
    command = f"umask 022; mkdir -p {parent} && umask 077 && mkdir -p {folder} && cd {folder}"
    close = f'for d in {" ".join(PRIVATE)}; do [ -d "$d" ] && [ ! -L "$d" ] && [ -O "$d" ] && chmod go-rwx "$d"; done'
    places = [pathlib.PurePath(file["path"]) for file in files if file.get("sha256")]
    asked = [f"link {shlex.quote(str(place.parent))} {shlex.quote(place.name)}" for place in places]
    asked += [f"like {shlex.quote(file['like'])} {shlex.quote(file['path'])}" for file in files if file.get("like")]
    links, room = [_LINK, _LIKE] if asked else [], _COMMAND
    for words in asked:
        room -= len(words)
        links += [words] if room > 0 else []
    # Without it more goes over the wire, and nothing else.
    return f"{command} && {{ {'; '.join([close, *links])}; :; }} 2>/dev/null"


def copy(tree: pathlib.Path, to: pathlib.Path, dry: bool = False) -> list[str]:
    """Copy what is not there yet, or is something else: rsync's work where trainer and controller are one machine.

    Args:
        tree: What was laid out.
        to: Where it goes.
        dry: Only say what would be copied.

    Returns:
        The copied paths, below both folders.

    Raises:
        UserError: A folder below the target is a link, and leads elsewhere.
    """
    copied = []
    for source in sorted(path for path in tree.rglob("*") if path.is_file()):
        target = to / source.relative_to(tree)
        if paths.through_link(to, str(source.parent.relative_to(tree))):
            raise UserError(f"{target} lies behind a link, and nothing is written there")
        if target.is_file() and filecmp.cmp(target, source, shallow=False):
            continue
        copied.append(str(source.relative_to(tree)))
        if not dry:
            for folder in [*reversed(target.relative_to(to).parents)][1:]:
                (to / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            part.unlink(missing_ok=True)
            part.touch(mode=0o600, exist_ok=False)
            shutil.copyfile(source, part)
            part.replace(target)
    return copied


def fetch_list(files: Sequence[Any]) -> dict[str, int]:
    """Read what is to be fetched: the most bytes that each file may have, by its path.

    Args:
        files: Each C(path) below the folder, and the most C(bytes) of it.

    Raises:
        UserError: A path leads out of the folder.
    """
    limits = {}
    for file in files:
        why = paths.flaw(file["path"])
        if why:
            raise UserError(f"{paths.quoted(file['path'])} {why}; nothing was fetched")
        limits[str(file["path"])] = int(file["bytes"])
    return limits


def prepare_fetch(to: pathlib.Path, limits: dict[str, int], total: int) -> None:
    """Make the folder for what is fetched, with nothing in it but parts of that.

    Args:
        to: The folder.
        limits: From :func:`fetch_list`.
        total: The bytes of all; 0 where they are not known yet.

    Raises:
        UserError: The folder is a link, or its disk has not got the room.
    """
    if to.is_symlink():
        raise UserError(f"{to} is a link; nothing is fetched into it. Delete it")
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in paths.strangers(to, limits):
        remove(to / name)
    there = arrived(to)
    room = shutil.disk_usage(to).free - LEFT_FREE
    if total and total - there > room:
        raise UserError(
            f"up to {total - there:,} bytes would come to {to}, and its disk has {max(room, 0):,} to spare. Free some "
            "space there and run the same command again"
        )


def arrived(to: pathlib.Path) -> int:
    """Count the bytes in a folder; a file that is renamed meanwhile counts in the next look."""
    size = 0
    for place, _, names in os.walk(to):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def remove(path: pathlib.Path) -> None:
    """Delete a file, a link (never what it leads to), or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_arrived(host: str, to: pathlib.Path, limits: dict[str, int]) -> None:
    """Refuse what came without having been asked for, and delete it.

    rsync holds a sender to the list from version 3.2.5 on; older ones write what they are sent.

    Args:
        host: Who sent it.
        to: The folder.
        limits: From :func:`fetch_list`.

    Raises:
        UserError: There is something else, a link, or a file that is too large.
    """
    odd = paths.strangers(to, limits)
    large = [name for name, limit in limits.items() if (to / name).is_file() and (to / name).stat().st_size > limit]
    for name in (*odd, *large):
        remove(to / name)
    if odd or large:
        what = "nobody asked for" if odd else "is larger than it may be"
        raise UserError(
            f"{host} sent {paths.quoted([*odd, *large][0])}, which {what}. It was deleted, and nothing else is taken: "
            "this trainer is not to be trusted, or was damaged"
        )


def fetch_options(limits: dict[str, int]) -> list[str]:
    """List the options of rsync for a fetch, which go behind the user's own and before nothing else.

    Args:
        limits: From :func:`fetch_list`.
    """
    return ["--no-links", "--no-devices", "--no-specials", "--no-owner", "--no-group", "--chmod=D700,F600",
            f"--max-size={max(limits.values(), default=0)}"]  # fmt: skip


def run_bounded(
    command: Sequence[str],
    names: str,
    to: Optional[pathlib.Path] = None,
    largest: int = 0,
    total: int = 0,
    seconds: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[int, str, str, str]:
    """Run rsync; of a fetch with limits to what it writes, as the other end says how much comes.

    Args:
        command: The command line.
        names: For its standard input.
        to: Of a fetch, where it writes; without it nothing is limited.
        largest: Bytes of the largest file.
        total: Bytes of all.
        seconds: The longest time; 0 for any.
        clock: Tells the time in seconds.

    Returns:
        Its exit code, what it printed, what it complained of, and why it was ended; empty where it was not.

    Raises:
        FileNotFoundError: There is no such program.
    """

    def limit() -> None:
        if to is not None:  # the kernel's own limit, whatever the other end sends
            most, hard = max(largest, TOLD) + 1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    ended, until = "", clock() + seconds
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
        given.write(names.encode())
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=out, stderr=complaints, preexec_fn=limit)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(None if to is None else _LOOK)
                    break
                assert to is not None
                if arrived(to) > total:
                    ended = f"more came than the {total:,} bytes that it may have"
                elif _printed(out, complaints) > TOLD:
                    break
                elif shutil.disk_usage(to).free < LEFT_FREE:
                    ended = f"the disk of {to} is nearly full"
                elif seconds and clock() > until:
                    ended = f"it is not over after {seconds / 3600:.1f} h"
                if ended:
                    break
        finally:
            process.terminate()  # nothing where it has ended; rsync takes its other processes with it
            try:
                process.wait(_LAST)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if to is not None and not ended and _printed(out, complaints) > TOLD:  # whoever ended it, we or the kernel
            ended = "it says more than any transfer has to say"
        texts = []
        for file in (out, complaints):
            file.seek(0)
            texts.append(file.read(TOLD).decode("utf-8", "replace"))
    return process.returncode, texts[0], texts[1], ended


def _printed(*files: IO[bytes]) -> int:
    return max(os.fstat(file.fileno()).st_size for file in files)


def write_error(host: str, message: str) -> str:
    """Say what to do about a trainer_root that cannot be made.

    Args:
        host: The trainer.
        message: What its shell said of it, or what took the shell's place.
    """
    return ssh_words.explain(host, message, ssh_words.ACCOUNT) or (
        f"{host}: {message}\nSet trainer_root to a folder on a large disk that this user may write: "
        "-e trainer_root=/data/lora-forge"
    )


def connection_error(host: str, message: str) -> str:
    """Say what to do about a trainer that cannot be reached at all.

    Args:
        host: The trainer.
        message: What ssh said of it.
    """
    known = ssh_words.explain(host, message, ssh_words.LOGIN, ssh_words.ACCOUNT)
    explained = message.startswith(f"{host} ") and "\n" in message
    if known or explained:
        return known or message
    why = ssh_words.reason(message)
    said = why if why.startswith(f"{host} ") else f"{host} does not answer: {why}"
    return (
        f"{said}\nWhat runs there goes on. When it answers again, the same command goes "
        f"on; -e move={host} gives it up, and starts what it had on another trainer"
    )


def transfer_error(host: str, message: str) -> str:
    """Say what to do about a transfer that failed.

    Args:
        host: With whom.
        message: What rsync, or ssh, said of it.
    """
    if re.search(r"Permission denied \(13\)", message):
        return write_error(host, message)
    tables = ssh_words.ACCOUNT, ssh_words.TRANSFER, ssh_words.LOGIN
    meaning = ssh_words.find_meaning(message, *tables)
    if meaning is None:
        return f"the transfer with {host} failed: {message}\nThe same command goes on where it was cut."
    return f"the transfer with {host} failed, as {meaning.what(host)}: {message}\n{meaning.advice}"
