"""A pod's log, into which anybody writes who reaches its sshd: no line of theirs pins a host key."""

from __future__ import annotations

import base64
import pathlib
import subprocess

import pytest
from ansible.module_utils.lora_forge.pods import ssh

NAME, KEY = "lora-forge-0123-pod-1", f"ssh-ed25519 {base64.b64encode(b'the one in between').decode()}"
SHOWN = ssh.fingerprint(KEY)


@pytest.mark.parametrize(
    "log",
    [
        [f"256 {SHOWN} root@7h9k2m4n6p (ED25519)"],
        [f"2026-01-01T00:00:00Z 256 {SHOWN} no comment (ED25519)"],
        [f"host key {SHOWN}", f"ED25519 key fingerprint is {SHOWN}.", KEY],
        [f"Bad protocol version identification '256 {SHOWN} x (ED25519)' from 198.51.100.7 port 50022"],
        [f"lora-forge host key {SHOWN} (ssh-ed25519) {'0' * 64}", f"lora-forge host key {SHOWN} (ssh-ed25519)"],
        ["x" * 1_000_000, f"\x1b[2J\r256 {SHOWN} root@pod (ED25519)\r"],
        [f"256 {SHOWN} root@pod (ED25519)"] * 10_000,
    ],
)
def test_a_forged_line_pins_nothing_and_nobody_logs_in(tmp_path: pathlib.Path, log: list[str]) -> None:
    called: list[str] = []

    def runner(command: list[str]) -> subprocess.CompletedProcess[str]:
        called.append(command[0])
        return subprocess.CompletedProcess(command, 0, f"203.0.113.7 {KEY}\n", "")

    (tmp_path / "id").write_text("a private key")
    access = ssh.SshAccess(tmp_path / "known_hosts", tmp_path / "id", runner)
    assert access.unreachable_reason(NAME, "203.0.113.7", 22022, lambda: log)
    assert not (tmp_path / "known_hosts" / NAME).exists()
    assert "ssh" not in called
