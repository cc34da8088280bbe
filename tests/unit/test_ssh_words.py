"""What ssh, rsync and login shells say is told as what it is, with what to do; what nobody knows is left as it is."""

from __future__ import annotations

import pytest
from ansible.module_utils.lora_forge.controller import ssh_words, transfer

VIA = "Failed to connect to the host via ssh: "
WITH_A_MODULE = 'Data could not be sent to remote host "10.0.0.1". Make sure this host can be reached over ssh: '
# As OpenSSH 9.2 and the programs that stand in for a shell on Debian write them.
SAID = {
    "ann@gpu-1: Permission denied (publickey).": "refuses the login",
    "Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures\nDisconnected from 10.0.0.1 port 22":
        "refuses the login, as ssh offered it more keys",
    "Invalid/incorrect password: Permission denied, please try again.": "refuses the login",
    'UNPROTECTED PRIVATE KEY FILE!\nLoad key "/k": bad permissions\nann@gpu-1: Permission denied (publickey).':
        "refuses the login, as the key could not be used",
    'unix_listener: path "/home/x/.ansible/cp/0123456789.abcdefgh" too long for Unix domain socket':
        "was not asked: the path of the shared connection is too long",
    "/home/ann/.ssh/config: line 3: Bad configuration option: proxyjmup\n/home/ann/.ssh/config: terminating, 1 bad "
    "configuration options": "was not asked: ssh does not take its configuration",
    "ssh: Could not resolve hostname gpu-1: Name or service not known": "has no address",
    '"System is booting up. Unprivileged users are not permitted to log in yet."': "lets nobody in while it starts",
    "This account is currently not available.": "runs nothing for this user, who has no login shell",
    "This service allows sftp connections only.": "runs nothing for this user, who may move files by sftp only",
}  # fmt: skip


@pytest.mark.parametrize("via", [VIA, WITH_A_MODULE])
@pytest.mark.parametrize("said", SAID)
def test_it_is_said_what_it_is_and_what_to_do(said, via):
    first, *_, last = transfer.connection_error("gpu-1", via + said).splitlines()
    assert first.startswith(f"gpu-1 {SAID[said]}")
    assert "does not answer" not in first
    assert "goes on" not in last
    assert said.splitlines()[0] in transfer.connection_error("gpu-1", VIA + said) or "Received" in said


@pytest.mark.parametrize(
    "said",
    ["/bin/sh: 1: /usr/bin/python3: not found", "sh: line 1: /opt/python3.12: No such file or directory",
     "bash: python3: command not found"],
)  # fmt: skip
def test_a_host_without_its_python_is_told_what_it_lacks(said):
    told = ssh_words.explain("gpu-1", said, ssh_words.ACCOUNT, ssh_words.PYTHON)
    assert told.startswith(f"gpu-1 cannot run anything of lora-forge's, as its Python is not there: {said}\n")
    assert "ansible_python_interpreter" in told


def test_what_was_explained_is_not_explained_again():
    told = transfer.connection_error("gpu-1", VIA + "ann@gpu-1: Permission denied (publickey).")
    assert transfer.connection_error("gpu-1", told) == told


@pytest.mark.parametrize(
    "said",
    ["ssh: connect to host gpu-1 port 22: Connection refused",
     "kex_exchange_identification: read: Connection reset by peer",
     "Shared connection to gpu-1 closed.", "mux_client_request_session: read from master failed: Broken pipe"],
)  # fmt: skip
def test_a_host_that_does_not_answer_is_called_that(said):
    assert ssh_words.explain("gpu-1", VIA + said, ssh_words.LOGIN, ssh_words.ACCOUNT) == ""
    for via in (VIA, WITH_A_MODULE):
        assert transfer.connection_error("gpu-1", via + said).startswith(
            f"gpu-1 does not answer: {said}\nWhat runs there"
        )


def test_the_reason_is_in_the_line_that_says_the_most():
    assert ssh_words.reason(f"{VIA}Warning: x\nConnection refused\n") == "Connection refused"
    assert ssh_words.reason("gpu-1 refuses the login: no\nCorrect ansible_user") == "gpu-1 refuses the login: no"
    for nothing in (VIA, WITH_A_MODULE, WITH_A_MODULE.strip()):
        assert ssh_words.reason(nothing) == "no answer"


@pytest.mark.parametrize(
    "said", ["This account is currently not available.", "This service allows sftp connections only."]
)
def test_a_login_without_a_shell_is_no_matter_of_the_folder(said):
    told = transfer.write_error("gpu-1", said)
    assert "trainer_root" not in told
    assert "ansible_user" in told
    assert "trainer_root" in transfer.write_error("gpu-1", "mkdir: cannot create directory '/x': Permission denied")
