"""Whether a pod answers SSH, with the host key that its own log shows."""

from __future__ import annotations

import base64
import hashlib
import hmac
import pathlib
import re
import shlex
import subprocess
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError

# What a pod's leash says of a host key, and the seal on it: see log_key. RunPod may put a time before it.
_SHOWN = re.compile(r"lora-forge host key ((SHA256:[A-Za-z0-9+/]{43}) \([a-z0-9@.-]+\)) ([0-9a-f]{64})\s*\Z")
_Runner = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def run_program(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program of OpenSSH.

    Raises:
        UserError: It is not installed.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not there. It comes with OpenSSH's client: apt-get install openssh-client"
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 255, "", "no answer within 60 s")


def fingerprint(key: str) -> str:
    """Return the fingerprint of a public key line («ssh-ed25519 AAAA…»), as ``ssh-keygen -l`` shows it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _fingerprint_or_none(key: str) -> Optional[str]:
    """Return the fingerprint of what ssh-keyscan prints as a key; None where it is none."""
    try:
        return fingerprint(key)
    except (IndexError, ValueError):
        return None


def ensure_key_pair(named: str, folder: pathlib.Path, runner: _Runner = run_program) -> tuple[pathlib.Path, str]:
    """Return the private key's path and the public key: the user's, or one made for this checkout.

    Args:
        named: The user's private key; empty for one of the checkout's own.
        folder: Where that one lies.
        runner: Runs ssh-keygen.

    Raises:
        UserError: There is no such key, or the public one beside it is none.
    """
    private = pathlib.Path(named).expanduser() if named else folder / "id_ed25519"
    if not named:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with rundir.locked(folder / ".key.lock"):  # two pods at once, in a fresh checkout
            if not private.exists():
                done = runner(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lora-forge", "-f", str(private)])
                if done.returncode:
                    raise UserError(f"ssh-keygen could not make {private}: {done.stderr.strip()}")
    public = pathlib.Path(f"{private}.pub")
    if not private.is_file() or not public.is_file():
        raise UserError(f"pod_ssh_key: {public if private.is_file() else private} does not exist; name a private key "
                         "whose .pub lies beside it, or none at all")  # fmt: skip
    text = public.read_text(encoding="utf-8", errors="replace").strip()
    # ssh-keygen reads private keys too, and one in the wrong file would go to RunPod.
    if not re.match(r"(ssh-|ecdsa-|sk-)\S+ \S+", text) or runner(["ssh-keygen", "-l", "-f", str(public)]).returncode:
        raise UserError(f"pod_ssh_key: {public} holds no public key that ssh-keygen can read; nothing was ordered")
    return private, text


def log_key(private: pathlib.Path, name: str) -> str:
    """Return the secret with which a pod's leash seals what it says of host keys in the pod's log.

    Whoever reaches a pod's sshd writes into its log: sshd passes on what a client says, line breaks included. So the
    form of a line proves nothing, nor where in the log it stands. The secret goes to the pod with its order, and is
    made of the private key, so that whoever may log in to a pod can check the seal, from another checkout too.

    Args:
        private: The private key that the pod lets in.
        name: The pod's unique name.

    Raises:
        UserError: The key cannot be read.
    """
    try:
        held = private.read_bytes()
    except OSError as error:
        raise UserError(f"pod_ssh_key: {private} cannot be read: {error.strerror}") from None
    return hmac.new(held, f"lora-forge log of {name}".encode(), hashlib.sha256).hexdigest()


def sealed_fingerprints(lines: list[str], key: str) -> set[str]:
    """Return the fingerprints of host keys that a pod's leash has shown.

    Args:
        lines: Of the pod's log.
        key: The pod's, see :func:`log_key`.
    """
    found = set()
    for shown, fingerprint_shown, seal in (match.groups() for match in map(_SHOWN.search, lines) if match):
        if hmac.compare_digest(hmac.new(key.encode(), shown.encode(), hashlib.sha256).hexdigest(), seal):
            found.add(fingerprint_shown)
    return found


class HostKeyChanged(UserError):
    """A pod shows another host key than the one that is pinned, and its own log shows that one too."""


class SshAccess:
    """A pod's sshd: its host key pinned from the pod's log, then asked whether it lets us in.

    Args:
        known_hosts: The folder where host keys are pinned, a file for each pod's unique name; no address is kept.
        key: The private key.
        runner: Runs ssh and ssh-keyscan.
    """

    def __init__(self, known_hosts: pathlib.Path, key: pathlib.Path, runner: _Runner = run_program):
        self.known_hosts, self.key, self.runner = known_hosts, key, runner

    def options(self, name: str) -> list[str]:
        """Return the options of ssh for a pod, other than its address: only the pinned key will do.

        The user's own configuration is not read, as a pod is a stranger's machine: what it says of all hosts would hold
        there too, agents, forwarded ports, variables that are sent and commands that are run among it. (SendEnv, for
        one, cannot be taken back by an option.)
        """
        file = f'"{self.known_hosts / name}"'  # ssh takes an unquoted space for the beginning of a second file
        pinned = (f"UserKnownHostsFile={file}", "GlobalKnownHostsFile=/dev/null", f"HostKeyAlias={name}",
                  "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "VerifyHostKeyDNS=no")  # fmt: skip
        closed = ("ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no")
        keys = ("IdentitiesOnly=yes", "PreferredAuthentications=publickey")
        options = [argument for option in (*pinned, *keys, *closed) for argument in ("-o", option)]
        return ["-F", "/dev/null", *options]

    def unreachable_reason(self, name: str, host: str, port: int, log: Callable[[], list[str]]) -> Optional[str]:
        """Tell why the pod cannot be used yet, in words; None when it answers.

        Args:
            name: The pod's unique name.
            host: Its address, as just read.
            port: Its port, as just read.
            log: Reads the pod's container log; called only where what answers shows no pinned key.

        Raises:
            HostKeyChanged: The pod has other host keys than those that were pinned.
        """
        at = f"{host}:{port}"
        scan = self.runner(["ssh-keyscan", "-T", "5", "-p", str(port), host])
        keys = [" ".join(line.split()[1:3]) for line in scan.stdout.splitlines() if line and line[0] != "#"]
        by_fingerprint = {shown: key for key in keys if (shown := _fingerprint_or_none(key))}
        if not by_fingerprint:
            return f"no SSH answer at {at} yet"
        pinned = self.pinned_keys(name)
        if not set(by_fingerprint.values()) & set(pinned):
            in_log = sealed_fingerprints(log(), log_key(self.key, name))
            fitting = [key for fingerprint, key in by_fingerprint.items() if fingerprint in in_log]
            if pinned and not fitting:  # a stale port may be another pod's by now
                return f"what answers at {at} shows another host key than the pod's"
            if pinned:
                raise HostKeyChanged(
                    f"the pod at {at} shows another host key than the one that was pinned when it was new, and its log "
                    "shows that one too. So its container was made anew, and what lay on its own disk is gone; or "
                    f"somebody on it changed the key. Where you know why, remove {self.known_hosts / name}, and the "
                    "same command pins the new one from the log. Otherwise release the pod"
                )
            if not in_log:
                return "its log shows no host key yet"
            if not fitting:
                return f"what answers at {at} shows a host key that is not in the pod's log"
            self.pin_keys(name, fitting)
        command = ["ssh", *self.options(name), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        login = self.runner([*command, "-i", str(self.key), "-p", str(port), f"root@{host}", "true"])
        if login.returncode == 0:
            return None
        problem = (login.stderr.strip().splitlines() or [f"exit code {login.returncode}"])[-1]
        return f"SSH at {at}: {problem}"

    def pinned_keys(self, name: str) -> list[str]:
        path = self.known_hosts / name
        return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []

    def pin_keys(self, name: str, keys: list[str]) -> None:
        """Pin a pod's keys, for as long as it lives."""
        self.known_hosts.mkdir(parents=True, exist_ok=True)
        (self.known_hosts / name).write_text("".join(f"{name} {key}\n" for key in keys))

    def forget_keys(self, name: str) -> None:
        """Drop a pod's keys."""
        (self.known_hosts / name).unlink(missing_ok=True)


def connection_variables(ssh: dict[str, Any], name: str, access: SshAccess) -> dict[str, Any]:
    """Return the variables with which Ansible reaches a pod.

    Args:
        ssh: Its address: host and port.
        name: Its unique name, under which its host key is pinned.
        access: Where that is, and the private key.
    """
    return {
        "ansible_host": ssh["host"],
        "ansible_port": ssh["port"],
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(access.key),
        "ansible_ssh_common_args": shlex.join(access.options(name)),
    }
