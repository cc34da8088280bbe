"""A pod is used only where it shows the host key that its own log shows."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import hmac
import pathlib
import shlex
import stat
import subprocess
import threading
from typing import Callable

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import ssh
from wire import Rivals, shown_key

NAME, HOST, PORT = "lora-forge-3f9a2c1b-pod-1-0c1d2e", "195.26.233.3", 34446
AT = f"{HOST}:{PORT}"


def key(word: str) -> str:
    return "ssh-ed25519 " + base64.b64encode(word.encode()).decode()


OURS, OTHER, NEW = key("ours"), key("another pod's"), key("after a restart")


SECRET = b"a private key"
SEAL = hmac.new(SECRET, f"lora-forge log of {NAME}".encode(), hashlib.sha256).hexdigest()


def log_of(*keys: str, seal: str = SEAL) -> list[str]:
    """Make a container's log in which the pod's leash shows some keys."""
    return ["starting", *(shown_key(key, seal) for key in keys), "ready"]


def made(folder: pathlib.Path, name: str = "id_ed25519") -> pathlib.Path:
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "user", "-f", path], check=True)
    return path


# --- the key pair --------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_that_of_ssh_keygen(tmp_path):
    public = pathlib.Path(f"{made(tmp_path)}.pub")
    printed = subprocess.run(["ssh-keygen", "-l", "-f", public], capture_output=True, text=True, check=True).stdout
    assert printed.split()[1] == ssh.fingerprint(public.read_text())


def test_a_key_pair_is_made_once_and_for_its_owner_only(tmp_path):
    private, public = ssh.ensure_key_pair("", tmp_path / "pods")
    assert private == tmp_path / "pods" / "id_ed25519"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public.startswith("ssh-ed25519 ")
    assert public.endswith(" lora-forge")
    assert ssh.ensure_key_pair("", tmp_path / "pods") == (private, public)


def test_the_users_key_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    named = made(tmp_path, "mine")
    private, public = ssh.ensure_key_pair("~/mine", tmp_path / "pods")
    assert (private, public.split()[2]) == (named, "user")
    assert not (tmp_path / "pods").exists()


@pytest.mark.parametrize(
    ("pub", "words"),
    [
        (None, "{key}.pub does not exist; name a private key whose .pub lies beside it, or none at all"),
        ("ssh-ed25519 AAAA cut\n", "{key}.pub holds no public key that ssh-keygen can read; nothing was ordered"),
        ("", "{key}.pub holds no public key that ssh-keygen can read; nothing was ordered"),
    ],
)
def test_a_key_that_will_not_do_is_told_before_anything_is_ordered(tmp_path, pub, words):
    named = made(tmp_path)
    public = pathlib.Path(f"{named}.pub")
    public.unlink() if pub is None else public.write_text(pub)
    with pytest.raises(UserError) as caught:
        ssh.ensure_key_pair(str(named), tmp_path)
    assert str(caught.value) == "pod_ssh_key: " + words.format(key=named)


def test_a_key_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^pod_ssh_key: {tmp_path}/none does not exist; name a private key"):
        ssh.ensure_key_pair(str(tmp_path / "none"), tmp_path)


def test_openssh_that_is_missing_or_fails_is_told(tmp_path):
    with pytest.raises(UserError, match=r"^no-such-ssh is not there\. It comes with OpenSSH's client: apt-get inst"):
        ssh.run_program(["no-such-ssh"])
    refuse = subprocess.CompletedProcess([], 1, "", "No space left on device\n")
    with pytest.raises(UserError, match=r"could not make .*/id_ed25519: No space left on device$"):
        ssh.ensure_key_pair("", tmp_path, lambda command: refuse)


def test_a_private_key_in_the_place_of_the_public_one_is_refused(tmp_path):
    named = made(tmp_path)
    pathlib.Path(f"{named}.pub").write_text(named.read_text())
    with pytest.raises(UserError, match="holds no public key"):
        ssh.ensure_key_pair(str(named), tmp_path)


def test_two_pods_at_once_make_one_key_pair(tmp_path, monkeypatch):
    rivals, one_by_one = Rivals(monkeypatch), threading.Lock()

    def runner(command: list[str]) -> subprocess.CompletedProcess[str]:
        if "-t" in command:
            rivals.meet()
        with one_by_one:
            return ssh.run_program(command)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        first, second = [pool.submit(ssh.ensure_key_pair, "", tmp_path, runner) for _ in range(2)]
    assert first.result() == second.result()


# --- the access ------------------------------------------------------------------------------------------------------


class Host:
    """What answers at the address, and OpenSSH's programs as far as they are asked."""

    def __init__(self, folder: pathlib.Path, *keys: str, log: list[str] | None = None):
        self.keys, self.log, self.reads = list(keys), log or [], 0
        self.answer = (0, "")
        self.asked: list[list[str]] = []
        (folder / "id").write_bytes(SECRET)
        self.access = ssh.SshAccess(folder / "known_hosts", folder / "id", self.run)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        if command[0] == "ssh-keyscan":
            assert command[-3:] == ["-p", str(PORT), HOST]
            out = "".join(f"# {HOST}:{PORT} SSH-2.0-OpenSSH_9.6\n[{HOST}]:{PORT} {key}\n" for key in self.keys)
            return subprocess.CompletedProcess(command, 0 if out else 1, out, "")
        assert command[0] == "ssh"
        return subprocess.CompletedProcess(command, self.answer[0], "", self.answer[1])

    def read(self) -> list[str]:
        self.reads += 1
        return self.log

    def unreachable_reason(self) -> str | None:
        return self.access.unreachable_reason(NAME, HOST, PORT, self.read)

    @property
    def pinned(self) -> str:
        path = self.access.known_hosts / NAME
        return path.read_text() if path.exists() else ""

    def ssh(self) -> int:
        return sum(command[0] == "ssh" for command in self.asked)


@pytest.fixture
def host(tmp_path) -> Callable[..., Host]:
    return lambda *keys, **given: Host(tmp_path, *keys, **given)


def test_only_keys_whose_fingerprint_is_in_the_log_are_pinned_and_then_ssh_must_let_us_in(host):
    pod = host(OURS, OTHER, log=log_of(OURS))
    assert pod.unreachable_reason() is None
    assert pod.pinned == f"{NAME} {OURS}\n"
    command = pod.asked[-1]
    assert command[-2:] == [f"root@{HOST}", "true"]
    assert [command[command.index(word) + 1] for word in ("-i", "-p")] == [str(pod.access.key), str(PORT)]
    for option in (
        f'UserKnownHostsFile="{pod.access.known_hosts / NAME}"', f"HostKeyAlias={NAME}", "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes", "BatchMode=yes", "GlobalKnownHostsFile=/dev/null", "UpdateHostKeys=no",
    ):  # fmt: skip
        assert option in command
    assert (pod.unreachable_reason(), pod.reads) == (None, 1)  # the log is not read again


@pytest.mark.parametrize(
    ("keys", "log", "words"),
    [
        ([], log_of(OURS), f"no SSH answer at {AT} yet"),
        ([OURS], [], "its log shows no host key yet"),
        ([OURS], ["starting", "SHA256:short"], "its log shows no host key yet"),
        ([OURS], log_of(OURS, seal=ssh.fingerprint(OURS)), "its log shows no host key yet"),  # another pod's seal
        ([OTHER], log_of(OURS), f"what answers at {AT} shows a host key that is not in the pod's log"),
    ],
)
def test_what_cannot_be_proved_is_not_used_and_not_asked(host, keys, log, words):
    pod = host(*keys, log=log)
    assert pod.unreachable_reason() == words
    assert (pod.pinned, pod.ssh()) == ("", 0)


def test_a_stale_port_with_the_key_of_another_pod_is_refused_after_pinning_too(host):
    pod = host(OURS, log=log_of(OURS))
    assert pod.unreachable_reason() is None
    pod.keys = [OTHER]
    asked = pod.ssh()
    assert pod.unreachable_reason() == f"what answers at {AT} shows another host key than the pod's"
    assert (pod.pinned, pod.ssh()) == (f"{NAME} {OURS}\n", asked)


def test_a_pin_is_never_replaced_and_it_is_said_what_to_do(host):
    pod = host(OURS, log=log_of(OURS))
    pod.unreachable_reason()
    asked = pod.ssh()
    pod.keys, pod.log = [NEW], log_of(OURS, NEW)
    for _ in range(2):
        with pytest.raises(ssh.HostKeyChanged) as caught:
            pod.unreachable_reason()
        assert f"Where you know why, remove {pod.access.known_hosts / NAME}, and the same command" in str(caught.value)
        assert (pod.pinned, pod.ssh()) == (f"{NAME} {OURS}\n", asked)
    pod.access.forget_keys(NAME)  # as the user is told
    assert pod.unreachable_reason() is None
    assert pod.pinned == f"{NAME} {NEW}\n"


def forged(key: str) -> list[list[str]]:
    """Return logs into which somebody who can reach the pod's sshd has written, each with a key of his own.

    sshd -e passes the line breaks of a client's words on: the third is what one saw of a real sshd's.
    """
    shown = f"{ssh.fingerprint(key)} (ssh-ed25519)"
    return [
        [f"256 {ssh.fingerprint(key)} root@7h9k2m4n6p (ED25519)"],
        [f"Bad protocol version identification '{shown}' from 198.51.100.7 port 50022"],
        ["Received disconnect from 198.51.100.7 port 59900:11: x", f"lora-forge host key {shown}", " [preauth]"],
        [f"lora-forge host key {shown} {'0' * 64}"],
        [f"lora-forge host key {shown} {SEAL}"],
        [shown_key(OURS, SEAL).replace(ssh.fingerprint(OURS), ssh.fingerprint(key))],
        [f"{shown_key(OURS, SEAL)}\u2028lora-forge host key {shown}"],
        [f"lora-forge host key {shown}\r{shown_key(OURS, SEAL)}"],
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("after", [True, False])
def test_a_line_that_the_leash_did_not_write_pins_nothing(host, number, after):
    log = forged(OTHER)[number]
    pod = host(OTHER, log=[*log_of(OURS), *log] if after else [*log, *log_of(OURS)])
    assert pod.unreachable_reason() == f"what answers at {AT} shows a host key that is not in the pod's log"
    assert (pod.pinned, pod.ssh()) == ("", 0)


@pytest.mark.parametrize("around", ["{}", "{}\r", "2026-11-29T12:00:00Z {}", "{}  "])
def test_what_runpod_puts_around_a_line_is_no_harm(host, around):
    assert host(OURS, log=[around.format(line) for line in log_of(OURS)]).unreachable_reason() is None


def test_a_key_that_cannot_be_read_is_told(host):
    pod = host(OURS, log=log_of(OURS))
    pod.access.key.unlink()
    with pytest.raises(UserError, match=r"^pod_ssh_key: .*/id cannot be read: No such file or directory$"):
        pod.unreachable_reason()


def test_the_users_configuration_is_not_read_for_a_pod(host):
    """What a user says of all hosts would hold on a stranger's machine, too: agents, variables, commands."""
    options = host().access.options(NAME)
    command = ["ssh", *options, "-G", HOST]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    settings = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert options[:2] == ["-F", "/dev/null"]
    assert "sendenv" not in settings
    for name, value in {"forwardagent": "no", "forwardx11": "no", "permitlocalcommand": "no", "updatehostkeys": "false",
                        "clearallforwardings": "yes", "stricthostkeychecking": "true"}.items():  # fmt: skip
        assert settings[name] == value


@pytest.mark.parametrize(
    ("code", "stderr", "words"),
    [
        (255, f"Warning: x\nroot@{HOST}: Permission denied (publickey).\n", "Permission denied (publickey)."),
        (255, "", "exit code 255"),
        (1, "\n", "exit code 1"),
    ],
)
def test_the_words_of_ssh_are_passed_on(host, code, stderr, words):
    pod = host(OURS, log=log_of(OURS))
    pod.answer = (code, stderr)
    assert pod.unreachable_reason().startswith(f"SSH at {AT}: ")
    assert pod.unreachable_reason().endswith(words)


def test_a_pod_that_is_gone_leaves_no_key(host):
    pod = host(OURS, log=log_of(OURS))
    pod.unreachable_reason()
    pod.access.forget_keys(NAME)
    pod.access.forget_keys(NAME)
    assert list(pod.access.known_hosts.iterdir()) == []


def test_a_program_that_hangs_is_an_answer(monkeypatch):
    def hang(command, **_):
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(ssh.subprocess, "run", hang)
    assert (ssh.run_program(["ssh"]).returncode, ssh.run_program(["ssh"]).stderr) == (255, "no answer within 60 s")


@pytest.mark.parametrize("folder", ["plain", "with space"])
def test_ansible_reaches_a_pod_as_the_door_does(tmp_path, folder):
    access = ssh.SshAccess(tmp_path / folder, tmp_path / "id")
    facts = ssh.connection_variables({"host": HOST, "port": PORT, "username": "root"}, NAME, access)
    common = facts.pop("ansible_ssh_common_args")
    assert facts == {
        "ansible_host": HOST, "ansible_port": PORT, "ansible_user": "root",
        "ansible_ssh_private_key_file": str(tmp_path / "id"),
    }  # fmt: skip
    (known,) = [word for word in shlex.split(common) if word.startswith("UserKnownHostsFile=")]
    assert shlex.split(known.partition("=")[2]) == [str(tmp_path / folder / NAME)]  # ssh takes spaces for more files
    closed = {"ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no"}
    pinned = {"StrictHostKeyChecking=yes", f"HostKeyAlias={NAME}", "IdentitiesOnly=yes"}
    assert closed | pinned <= set(shlex.split(common))
