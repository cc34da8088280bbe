"""A stand-in for ssh: it runs on this machine what a trainer would, except where a test says what to answer.

    hostile_ssh.py STAGE [ssh's options] HOST COMMAND…

A host is a folder of the stage, and its home. ``faces/<host>.json`` there lists rules, of which the first that fits a
call is followed; :class:`hostile.Face` makes them. What is called is noted in ``calls/<host>.jsonl``. Plain Python, so
that it starts at once.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import Any, Optional

LONGEST = 600  # seconds that a host is silent at most, should nobody end it
WITH_VALUE = set("BbcDEeFIiJLlmOopQRSWw")  # ssh's options that take one
PIPELINED = re.compile(r"/bin/sh -c ('\S*python\S* && sleep 0'|\S*python\S*)")  # as ansible-core 2.19 and 2.21 write it
MODULE = re.compile(rb"ansible_module=['\"](\w+)['\"]")


def read_arguments(words: list[str]) -> tuple[list[str], list[str]]:
    """Split ssh's command line into its options, and the host with what it is to run."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at][1:2] in WITH_VALUE and len(words[at]) == 2 else 1
    return words[:at], words[at:]


def merge(into: Any, more: Any) -> Any:
    """Lay a JSON value over another one: objects key by key, anything else as a whole."""
    if isinstance(into, dict) and isinstance(more, dict):
        return {**into, **{key: merge(into.get(key), value) for key, value in more.items()}}
    return more


def blur(value: Any, text: str) -> Any:
    """Put a text behind every sentence of a JSON value; a single word may be one that decides."""
    if isinstance(value, dict):
        return {key: blur(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [blur(each, text) for each in value]
    return f"{value} {text}" if isinstance(value, str) and " " in value else value


class Call:
    """One connection.

    Attributes:
        name: ``module:<name>``, ``rsync`` or ``command``.
        told: What came on standard input, of a module.
    """

    def __init__(self, stage: pathlib.Path, host: str, command: str):
        self.stage, self.host, self.command = stage, host, command
        self.home = stage / "hosts" / host
        self.told: Optional[bytes] = None
        self.name = "command"
        if command.startswith("rsync --server"):
            self.name = "rsync"
        elif PIPELINED.fullmatch(command):  # nothing but an interpreter: the module comes on standard input
            self.told = sys.stdin.buffer.read()
            found = MODULE.search(self.told)
            self.name = f"module:{found[1].decode()}" if found else "module:?"

    def note(self, did: str) -> None:
        """Note the call, and what was done about it."""
        line = json.dumps({"name": self.name, "did": did, "command": self.command, "at": time.time()})
        with (self.stage / "calls" / f"{self.host}.jsonl").open("a") as file:
            file.write(line + "\n")

    def rule(self) -> dict[str, Any]:
        """Return the rule that fits; an empty one lets the host be honest."""
        path = self.stage / "faces" / f"{self.host}.json"
        rules = json.loads(path.read_text()) if path.exists() else []
        earlier = self.stage / "calls" / f"{self.host}.jsonl"
        before = [json.loads(line) for line in earlier.read_text().splitlines()] if earlier.exists() else []
        count = sum(call["name"] == self.name for call in before)
        for rule in rules:
            name, _, word = rule["on"].partition(" ")
            fits = name in (self.name, self.name.partition(":")[0], "*") and word in self.command
            if fits and count >= rule.get("after", 0):
                return dict(rule)
        return {}

    def run(self, command: str, keep: bool = False) -> subprocess.CompletedProcess[bytes]:
        """Run a command as the host, with its home and nothing of the controller's environment."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG", "TMPDIR", "LORA_FORGE_SANDBOX")
        }
        return subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.home, env={**environment, "HOME": str(self.home)}, input=self.told,
            stdout=subprocess.PIPE if keep else None, check=False,
        )  # fmt: skip

    def answer(self) -> int:
        """Do what the host does; returns the exit code."""
        rule = self.rule()
        did = rule.get("do", "")
        self.note(did)
        if did == "say":
            write((self.stage / rule["text"]).read_bytes())
            return int(rule.get("code", 0))
        if did == "add":
            return self.add(rule)
        if did == "half":
            write((self.stage / rule["text"]).read_bytes())
            return silent()
        if did == "hang":
            return silent()
        if did == "endless":
            return endless()
        if did == "close":
            return 255
        if did == "lose":  # it does as it was told, and its answer is lost
            self.run(self.command, keep=True)
            return 255
        if did == "serve":  # other files than those that were asked for
            return self.run(self.command.replace(rule["old"], rule["new"])).returncode
        return self.run(self.command).returncode

    def add(self, rule: dict[str, Any]) -> int:
        """Answer as an honest host does, and more than that."""
        done = self.run(self.command, keep=True)
        start = done.stdout.find(b"{")
        answer = json.loads(done.stdout[start:])
        if "blur" in rule:
            answer = blur(answer, rule["blur"])
        write(done.stdout[:start] + json.dumps(merge(answer, rule.get("more", {}))).encode())
        return done.returncode


def write(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(0)


def silent() -> int:
    """Say nothing, and hold the connection."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and os.getppid() != 1:
        time.sleep(0.2)
    return 255


def endless() -> int:
    """Talk without an end, slowly enough for a machine to live through it."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and os.getppid() != 1:
        write(b'{"msg": "' + b"x" * 65536)
        time.sleep(0.05)
    return 255


def main() -> int:
    stage, (options, words) = pathlib.Path(sys.argv[1]), read_arguments(sys.argv[2:])
    if len(words) < 2:
        return 0 if "-O" in options else 255  # a shared connection is ended; or Ansible asks what ssh can do
    return Call(stage, words[0], " ".join(words[1:])).answer()


if __name__ == "__main__":
    sys.exit(main())
