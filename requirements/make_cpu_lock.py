"""Make the CPU lock out of the CUDA lock: other builds of torch and torchvision, no CUDA (`make lock` calls it).

    make_cpu_lock.py trainer-cuda.txt trainer-cpu.in >trainer-cpu.txt

PyTorch's builds for CPUs lie on an index of its own, which not every network reaches. So nothing is asked here: what
takes torch's place, with hashes as far as they are known, is written in trainer-cpu.in.
"""

from __future__ import annotations

import pathlib
import re
import sys

OF_CUDA = re.compile(r"(cuda-[\w-]+|nvidia-(?!ml-py)[\w-]+)==")
HEAD = "# Made by requirements/make_cpu_lock.py of {} and {}; make both anew with: make lock\n"


def entries(text: str) -> dict[str, str]:
    """Return the requirements of a file by name, each with the lines that belong to it."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines(keepends=True):
        begun = re.match(r"([A-Za-z0-9][\w.-]*)==", line)
        name = begun.group(1).lower() if begun else name
        if name and (begun or line.startswith(" ")):
            found[name] = found.get(name, "") + line
    return found


def version(entry: str) -> str:
    return re.split(r"[\s;\\]", entry.partition("==")[2], maxsplit=1)[0]


def cpu_lock(cuda: str, replaced: str) -> str:
    """Return the text of the CPU lock, without its head.

    Args:
        cuda: The text of trainer-cuda.txt.
        replaced: The text of trainer-cpu.in.
    """
    locked, own = entries(cuda), entries(replaced)
    lacking = sorted(set(own) - set(locked))
    if lacking:
        raise SystemExit(f"{', '.join(lacking)}: not in the CUDA lock")
    others = [name for name, text in own.items() if version(text).partition("+")[0] != version(locked[name])]
    if others:
        raise SystemExit(f"{', '.join(others)}: the CUDA lock has another version")
    kept = {name: text for name, text in locked.items() if not OF_CUDA.match(text)} | own
    return "".join(kept[name] for name in sorted(kept))


def main(cuda: str, replaced: str) -> None:
    paths = [pathlib.Path(cuda), pathlib.Path(replaced)]
    head = HEAD.format(*(path.name for path in paths))
    sys.stdout.write(head + cpu_lock(*(path.read_text(encoding="utf-8") for path in paths)))


if __name__ == "__main__":
    main(*sys.argv[1:])
