"""The leash of a rented pod: a real server in RunPod's place, real processes as trainings, and a clock that is set."""

from __future__ import annotations

import ast
import base64
import gzip
import http.server
import importlib.util
import io
import json
import os
import pathlib
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import time
import types
from typing import Any

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import leash as outside
from ansible.module_utils.lora_forge.pods import ssh
from ansible.module_utils.lora_forge.pods.runpod import Answer
from ansible.module_utils.testing import patch_module_args
from lab import PATIENCE, eventually
from wire import hold_answer, hold_request, pod_shown

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "roles/pod/files/leash.py"
POD, KEY = "7h9k2m4n6p", "rpa_S3CR3T"
ORDERED = 1795450000.0
DEADLINE = ORDERED + 8720  # 2026-11-23 18:32:00 UTC
ENDS = "lora-forge leash: this pod ends itself at 2026-11-23 18:32:00 UTC unless it is renewed"
TERMINATE = ("POST", f"/v2/pods/{POD}/action")
DELETE = ("DELETE", f"/v2/pods/{POD}")
FORBIDDEN = "lora-forge leash: COULD NOT END THIS POD (403 Forbidden): it goes on costing money. Release it by hand"


def load(path: pathlib.Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = load(PROGRAM)
module = load(ROOT / "library/pod_leash.py")


class RunPod:
    """RunPod's API as far as it ends pods; every request is held to RunPod's description.

    Attributes:
        answers: Method -> (status, title, further headers); 204 without one.
        looks: How often a pod was looked up, which ends nothing; such a request is in none of the others.
        look: (status, title) of the answer to that.
        requests: (method, path) of every other request; headers and bodies of the same.
        violations: Requests, and answers that end a pod, which the description does not have.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str, dict[str, str]]] = {}
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.violations: list[str] = []
        self.looks, self.look = 0, (200, "")
        runpod = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.command == "GET":
                    self.show()
                    return
                runpod.headers.append(dict(self.headers.items()))
                runpod.bodies.append(body)
                runpod.requests.append((self.command, self.path))
                status, title, headers = runpod.answers.get(self.command, (204, "", {}))
                try:
                    hold_request(self.command, runpod.url + self.path, self.headers, body)
                    if status < 300:
                        hold_answer(self.command, runpod.url + self.path, Answer(status, {}, b""))
                except (AssertionError, ValueError) as error:  # it would end in a server's thread, unseen
                    runpod.violations.append(str(error))
                said = json.dumps({"title": title, "status": status}).encode() if title else b""
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(said))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said)

            def show(self) -> None:
                runpod.looks += 1
                status, title = runpod.look
                said = (
                    {"title": title, "status": status, "detail": title}
                    if title
                    else pod_shown(self.path.rpartition("/")[2])
                )
                media = "application/problem+json" if title else "application/json"
                try:
                    hold_request("GET", runpod.url + self.path, self.headers, b"")
                    reply = Answer(status, {"content-type": media}, json.dumps(said).encode())
                    hold_answer("GET", runpod.url + self.path, reply)
                    assert self.headers["Authorization"] == f"Bearer {KEY}"
                except (AssertionError, ValueError) as error:
                    runpod.violations.append(str(error))
                self.send_response(status)
                self.send_header("Content-Length", str(len(json.dumps(said).encode())))
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            do_POST = do_DELETE = do_GET = answer

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def refuse(self, status: int = 403, title: str = "Forbidden", **headers: str) -> None:
        self.answers = dict.fromkeys(("POST", "DELETE"), (status, title, headers))


@pytest.fixture
def runpod(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    made = RunPod()
    yield made
    made.server.shutdown()
    made.server.server_close()
    assert made.violations == []


class Pod:
    """A pod with its leash, whose clocks are set by hand."""

    def __init__(self, root: pathlib.Path, runpod: RunPod):
        self.root = root / "lora-forge"
        self.ssh = root / "ssh"
        self.ssh.mkdir()
        self.wall, self.boot = ORDERED + 100, 5000.0
        self.env = {
            "LORA_FORGE_DEADLINE": str(DEADLINE), "LORA_FORGE_ALLOWANCE": "8720", "LORA_FORGE_API": f"{runpod.url}/",
            "LORA_FORGE_ROOT": str(self.root), "RUNPOD_POD_ID": POD, "RUNPOD_API_KEY": KEY,
        }  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self, **env: str) -> None:
        """Start the leash, as the container's restart does; an empty variable is a missing one."""
        self.env.update(env)
        self.leash = program.Leash(self.env, str(self.ssh), lambda: self.wall, lambda: self.boot)

    def after(self, seconds: float) -> dict[str, Any]:
        """Let time go by, and the leash look; what it says of itself then."""
        self.wall += seconds
        self.boot += seconds
        self.leash.step()
        return self.word()

    def at_deadline(self, seconds: float = 0) -> dict[str, Any]:
        return self.after(DEADLINE + seconds - self.wall)

    def word(self) -> dict[str, Any]:
        return rundir.read_json(self.root / "leash" / f"{POD}.json")

    def renew(self, deadline: Any) -> None:
        (self.root / "leash").mkdir(parents=True, exist_ok=True)
        (self.root / "leash" / f"{POD}.renewed").write_text(json.dumps({"deadline": deadline}))

    def train(self, run_id: str = "witness-0", role: str = "supervisor", deaf: bool = False) -> pathlib.Path:
        """Make a run whose supervisor, or trainer, lives; a deaf one ignores SIGTERM."""
        deafen = (lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)) if deaf else None  # lasts through exec
        process = subprocess.Popen(["sleep", "3600"], preexec_fn=deafen)
        self.processes.append(process)
        run_dir = self.root / "runs" / run_id
        run_dir.mkdir(parents=True)
        rundir.write_json(run_dir / "status.json", {"state": "running", role: rundir.identity(process.pid)})
        return run_dir

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def pod(tmp_path, runpod):
    made = Pod(tmp_path, runpod)
    yield made
    made.close()


# --- before the deadline --------------------------------------------------------------------------------------------


def test_it_says_when_the_pod_ends_and_leaves_it_alone(pod, runpod, capsys):
    assert pod.after(0) == {
        "pod": POD, "deadline": DEADLINE, "state": "waiting", "renewals": 0, "beat": pod.wall,
        "word": ENDS.partition("leash: ")[2], "lacks": "", "status": 200, "answer": "200 OK",
        "clocks": [rundir.boot_id(), 5000.0, pod.wall - 5000],
    }  # fmt: skip
    assert pod.at_deadline(-1)["state"] == "waiting"
    assert capsys.readouterr().out == f"{ENDS}\n"
    assert runpod.requests == []
    assert os.listdir(pod.root / "leash") == [f"{POD}.json"]


def test_it_beats_at_least_once_a_minute(pod):
    first = pod.after(0)["beat"]
    assert pod.after(10)["beat"] == first
    assert pod.after(25)["beat"] == first + 35


@pytest.mark.parametrize("missing", ["", "soon", "nan", "inf", "-5", "1795458720000"])
def test_without_a_deadline_it_is_an_hour(pod, missing):
    now = pod.wall
    pod.start(LORA_FORGE_DEADLINE=missing)
    assert pod.after(5)["deadline"] == now + 3600


# --- RunPod is asked before it is needed ----------------------------------------------------------------------------


def test_its_pod_is_looked_up_once_when_that_works(pod, runpod, capsys):
    for _ in range(5):
        word = pod.after(60)
    assert (runpod.looks, word["status"], word["answer"], word["lacks"]) == (1, 200, "200 OK", "")
    assert runpod.requests == []
    assert capsys.readouterr().out == f"{ENDS}\n"


def test_a_pod_that_is_not_shown_is_looked_up_again_ever_more_rarely_and_that_is_said_once(pod, runpod, capsys):
    runpod.look = (403, "Forbidden")
    words = [pod.after(5) for _ in range(24)]
    assert (runpod.looks, words[0]["answer"], words[-1]["status"]) == (2, "403 Forbidden", 403)
    assert capsys.readouterr().out.count("lora-forge leash: RunPod does not show this pod: 403 Forbidden") == 1
    for _ in range(3600 // 5):
        pod.after(5)
    assert 10 <= runpod.looks <= 16
    runpod.look = (200, "")
    assert pod.after(600)["answer"] == "200 OK"
    assert runpod.requests == []


def test_without_a_network_it_says_so_and_ends_the_pod_when_it_is_back(pod, runpod):
    url = runpod.url
    pod.start(LORA_FORGE_API="http://127.0.0.1:1")
    word = pod.after(0)
    assert (word["status"], "refused" in word["answer"]) == (0, True)
    pod.leash.api = url
    pod.at_deadline()
    assert runpod.requests == [TERMINATE]


def test_a_pod_that_lacks_its_key_looks_nothing_up(pod, runpod):
    pod.start(RUNPOD_API_KEY="")
    word = pod.after(5)
    assert (runpod.looks, word["lacks"], word["answer"]) == (0, "RUNPOD_API_KEY is not set", "")


def test_at_the_deadline_nothing_is_looked_up_before_the_end(pod, runpod):
    pod.at_deadline()
    assert (runpod.looks, runpod.requests) == (0, [TERMINATE])


@pytest.fixture
def secured(runpod, tmp_path, monkeypatch):
    """Let RunPod answer over TLS, by an authority that this machine's Python does not know; return its certificate."""
    authority = [tmp_path / "ca.key", tmp_path / "ca.pem"]
    key, request, own = tmp_path / "own.key", tmp_path / "own.csr", tmp_path / "own.pem"
    extension = tmp_path / "extension"
    extension.write_text("subjectAltName=IP:127.0.0.1\n")
    make = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"]
    for command in (
        ["req", "-x509", *make, authority[0], "-out", authority[1], "-subj", "/CN=lora-forge test", "-days", "2"],
        ["req", *make, key, "-out", request, "-subj", "/CN=127.0.0.1"],
        ["x509", "-req", "-in", request, "-CA", authority[1], "-CAkey", authority[0], "-CAcreateserial", "-out", own,
         "-days", "2", "-extfile", extension],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    runpod.server.socket = context.wrap_socket(runpod.server.socket, server_side=True)
    runpod.url = runpod.url.replace("http:", "https:")
    monkeypatch.setattr(program, "bundles", lambda: iter(()))
    return authority[1]


def test_without_ca_certificates_it_says_so_and_trusts_nobody(pod, runpod, secured):
    pod.start(LORA_FORGE_API=runpod.url)
    word = pod.after(0)
    assert (word["status"], runpod.looks) == (0, 0)
    assert "CERTIFICATE_VERIFY_FAILED" in word["answer"]
    fault = outside.find_fault({**word, "alive": True})
    assert "Install ca-certificates in the image, or certifi for its python3" in fault["image"]
    assert pod.at_deadline()["state"] == "refused"
    assert runpod.requests == []


def test_ca_certificates_that_python_does_not_know_do_as_well(pod, runpod, secured, tmp_path, monkeypatch):
    (tmp_path / "torn.pem").write_text("-----BEGIN")
    given = [str(tmp_path / "gone.pem"), str(tmp_path / "torn.pem"), str(secured)]
    monkeypatch.setattr(program, "bundles", lambda: iter(given))
    pod.start(LORA_FORGE_API=runpod.url)
    assert pod.after(0)["answer"] == "200 OK"
    pod.at_deadline()
    assert runpod.requests == [TERMINATE]


def test_ca_certificates_that_come_later_are_found(pod, runpod, secured, monkeypatch):
    pod.start(LORA_FORGE_API=runpod.url)
    assert pod.after(0)["status"] == 0
    monkeypatch.setattr(program, "bundles", lambda: iter([str(secured)]))
    pod.after(60)  # the list that it had is at its end
    assert pod.after(60)["answer"] == "200 OK"


def test_certificates_are_looked_for_where_images_have_them():
    found = list(program.bundles())
    assert "/etc/ssl/certs/ca-certificates.crt" in found
    assert any(path.endswith("cacert.pem") and pathlib.Path(path).exists() for path in found)  # of pip, here


# --- the host keys --------------------------------------------------------------------------------------------------


def test_host_keys_are_shown_as_ssh_keygen_shows_them_and_again_when_they_change(pod, capsys):
    def make(kind):
        path = pod.ssh / f"ssh_host_{kind}_key"
        for old in pod.ssh.glob(f"{path.name}*"):
            old.unlink()
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", kind, "-f", path], check=True)
        command = ["ssh-keygen", "-l", "-E", "sha256", "-f", f"{path}.pub"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1]

    def shown():
        return [line for line in capsys.readouterr().out.splitlines() if "host key" in line]

    pod.after(5)
    assert shown() == []
    ecdsa, ed25519 = make("ecdsa"), make("ed25519")
    pod.after(5)
    assert shown() == [
        f"lora-forge host key {ecdsa} (ecdsa-sha2-nistp256)",
        f"lora-forge host key {ed25519} (ssh-ed25519)",
    ]
    pod.after(5)
    assert shown() == []
    again = make("ed25519")
    pod.after(5)
    assert shown() == [f"lora-forge host key {again} (ssh-ed25519)"]


def test_what_it_shows_of_host_keys_is_sealed_for_whoever_may_log_in(pod, capsys, tmp_path):
    private = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", private], check=True)
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", pod.ssh / "ssh_host_ed25519_key"], check=True)
    keys = {name: ssh.log_key(private, name) for name in ("pod-a", "pod-b")}
    pod.start(LORA_FORGE_LOG_KEY=keys["pod-a"])
    pod.after(5)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "host key" in line]
    fingerprint = ssh.fingerprint((pod.ssh / "ssh_host_ed25519_key.pub").read_text())
    assert ssh.sealed_fingerprints(lines, keys["pod-a"]) == {fingerprint}
    assert ssh.sealed_fingerprints(lines, keys["pod-b"]) == set()
    assert ssh.sealed_fingerprints([line.replace("ssh-ed25519", "ssh-rsa")], keys["pod-a"]) == set()
    assert keys["pod-a"] not in "".join(lines)


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 ?\n", "ssh-ed25519 AAAAC3Nz", "\udcff\n"])
def test_a_host_key_that_is_not_whole_waits(pod, capsys, text):
    (pod.ssh / "ssh_host_ed25519_key.pub").write_text(text, errors="surrogateescape")
    pod.after(5)
    assert "host key" not in capsys.readouterr().out


# --- renewals -------------------------------------------------------------------------------------------------------


def test_a_renewal_is_taken_said_and_counted(pod, runpod, capsys):
    pod.after(0)
    pod.renew(DEADLINE + 3600)
    word = pod.after(5)
    assert (word["deadline"], word["renewals"], word["state"]) == (DEADLINE + 3600, 1, "waiting")
    assert pod.at_deadline(3599)["renewals"] == 1
    assert capsys.readouterr().out.splitlines()[1:] == [ENDS.replace("18:32", "19:32")]
    assert runpod.requests == []
    pod.at_deadline(3600)
    assert runpod.requests == [TERMINATE]


def test_a_restart_keeps_a_renewal(pod, runpod):
    pod.renew(DEADLINE + 3600)
    pod.start()
    assert pod.at_deadline(60)["deadline"] == DEADLINE + 3600
    assert runpod.requests == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "{}", '{"deadline": "soon"}', '{"deadline": 1e400}', f'{{"deadline": 1{"0" * 400}}}', "\udcff"],
)
def test_a_renewal_that_is_none_leaves_the_first_deadline(pod, text):
    pod.renew(0)
    (pod.root / "leash" / f"{POD}.renewed").write_text(text, errors="surrogateescape")
    assert pod.after(5)["deadline"] == DEADLINE


def test_a_renewal_that_cannot_be_read_for_a_while_stays(pod):
    pod.renew(DEADLINE + 3600)
    pod.after(5)
    renewed = pod.root / "leash" / f"{POD}.renewed"
    renewed.unlink()
    renewed.mkdir()  # any OSError but that of a missing file
    assert pod.after(5)["deadline"] == DEADLINE + 3600
    renewed.rmdir()
    assert pod.after(5)["deadline"] == DEADLINE


def test_a_renewal_during_the_stop_ends_the_stop(pod, runpod):
    run_dir = pod.train(deaf=True)
    assert pod.at_deadline()["state"] == "stopping"
    pod.renew(DEADLINE + 3600)
    assert pod.after(5)["state"] == "waiting"
    (run_dir / "stop").unlink()
    assert pod.at_deadline(3599)["state"] == "waiting"
    assert pod.at_deadline(3600)["state"] == "stopping"
    assert (run_dir / "stop").exists()
    assert pod.after(149)["state"] == "stopping"  # another stop with times of its own
    assert runpod.requests == []


def test_a_renewal_counts_as_long_as_runpod_has_not_accepted(pod, runpod):
    runpod.refuse()
    assert pod.at_deadline()["state"] == "refused"
    pod.renew(DEADLINE + 3600)
    assert pod.after(5)["state"] == "waiting"
    runpod.answers.clear()
    assert pod.at_deadline(3600)["state"] == "ending"
    pod.renew(DEADLINE + 7200)
    word = pod.after(5)
    assert (word["state"], word["word"]) == ("ending", "RunPod ends this pod (204 No Content)")


# --- the clock ------------------------------------------------------------------------------------------------------


def test_a_clock_hours_behind_prolongs_nothing(pod, runpod, seen):
    pod.wall -= 5 * 3600
    pod.start()
    assert pod.after(8719)["state"] == "waiting"
    assert pod.after(2)["state"] == "ending"
    assert runpod.requests == [TERMINATE]
    seen("the clock of a pod is 5 h behind", "leash", "it ends the pod when its count of the boot clock is over")


@pytest.mark.parametrize("hours", [5, -5])
def test_a_clock_that_is_set_ends_nothing_early_and_prolongs_nothing(pod, runpod, seen, hours):
    """The order's allowance counts from the first start, so what is late is so by the time that the boot took."""
    pod.after(1000)
    pod.wall += hours * 3600
    assert pod.after(8720 - 1000 - 101)["state"] == "waiting"
    assert pod.after(102)["state"] == "ending"
    assert runpod.requests == [TERMINATE]
    seen(f"the clock of a pod is set by {hours:+d} h", "leash", "the pod ends at its deadline, or minutes after it")


@pytest.mark.parametrize("hours", [5, -5])
def test_a_container_that_restarts_with_another_time_goes_on_counting(pod, runpod, seen, hours):
    pod.after(4000)
    pod.wall += hours * 3600
    pod.start()
    assert pod.after(4000)["state"] == "waiting"
    pod.start()
    assert pod.after(8720 - 8000 - 1)["state"] == ("waiting" if hours < 0 else "ending")
    assert pod.after(1)["state"] == "ending"
    assert runpod.requests[:1] == [TERMINATE]
    seen(f"the container of a pod restarts twice, its clock set by {hours:+d} h", "leash", "its count goes on")


def test_another_boot_of_the_host_begins_another_count(pod, runpod, monkeypatch):
    pod.after(4000)
    monkeypatch.setattr(program, "boot_id", lambda: "another")
    pod.boot = 10.0
    pod.start()
    assert pod.after(1)["state"] == "waiting"
    assert pod.at_deadline()["state"] == "ending"


def test_a_clock_that_is_wrong_at_the_start_and_set_right_ends_nothing_early(pod):
    pod.wall += 5 * 3600
    pod.start()
    pod.wall -= 5 * 3600  # before its first look
    assert pod.after(60)["state"] == "waiting"
    assert pod.at_deadline()["state"] == "ending"


def test_a_renewal_prolongs_the_count_of_the_boot_clock_too(pod, runpod):
    pod.wall -= 5 * 3600
    pod.start()
    pod.renew(DEADLINE + 3600)
    assert pod.after(8720 + 3599)["state"] == "waiting"
    pod.after(2)
    assert runpod.requests == [TERMINATE]


def test_without_an_allowance_the_wall_clock_alone_counts(pod):
    pod.start(LORA_FORGE_ALLOWANCE="")
    pod.boot += 1e6
    assert pod.at_deadline(-1)["state"] == "waiting"
    assert pod.at_deadline()["state"] == "ending"


# --- the training is asked for a checkpoint -------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["supervisor", "trainer"])
def test_a_training_is_stopped_on_request_and_a_controller_has_time_to_fetch(pod, runpod, capsys, role):
    run_dir = pod.train(role=role)
    word = pod.at_deadline()
    assert (word["state"], word["word"]) == (
        "stopping",
        "the deadline is reached; trainings asked for a checkpoint: 1",
    )
    assert (run_dir / "stop").exists()
    assert pod.processes[0].wait(PATIENCE) == -signal.SIGTERM
    assert pod.after(5)["state"] == "stopping"
    assert pod.after(119)["state"] == "stopping"
    assert runpod.requests == []
    assert pod.after(1)["state"] == "ending"
    assert runpod.requests == [TERMINATE]
    assert f"lora-forge leash: {word['word']}" in capsys.readouterr().out


def test_a_training_that_does_not_stop_is_not_waited_for_any_longer(pod, runpod):
    pod.train(deaf=True)
    pod.at_deadline()
    assert pod.after(150)["state"] == "stopping"
    assert pod.after(119)["state"] == "stopping"
    assert pod.processes[0].poll() is None
    assert pod.after(1)["state"] == "ending"
    assert runpod.requests == [TERMINATE]


def test_every_living_training_is_asked_once_and_nothing_else_is_touched(pod):
    runs = [pod.train(f"mayor-{number}", deaf=True) for number in range(2)]
    dead, other, broken = pod.train("dead-0"), pod.train("other-0"), pod.train("broken-0")
    pod.processes[2].kill()
    eventually(lambda: not rundir.is_alive(rundir.read_json(dead / "status.json")["supervisor"]))  # a zombie
    noted = rundir.identity(pod.processes[3].pid)
    rundir.write_json(other / "status.json", {"supervisor": {**noted, "start": noted["start"] + 1}})  # a pid again
    (broken / "status.json").write_text('{"supervisor": {"pid": "x"}, "trainer": 7}')
    assert pod.at_deadline()["word"].endswith("a checkpoint: 2")
    assert all((run / "stop").exists() for run in runs)
    assert not any((run / "stop").exists() for run in (dead, other, broken))
    (runs[0] / "stop").unlink()
    pod.after(5)
    assert not (runs[0] / "stop").exists()
    assert [process.poll() for process in pod.processes[3:]] == [None, None]


def test_another_boot_is_another_process(pod, runpod):
    run_dir = pod.train()
    noted = {**rundir.identity(pod.processes[0].pid), "boot": "another"}
    rundir.write_json(run_dir / "status.json", {"supervisor": noted})
    assert pod.at_deadline()["state"] == "ending"
    assert pod.processes[0].poll() is None
    assert runpod.requests == [TERMINATE]


# --- the end --------------------------------------------------------------------------------------------------------


def test_without_a_training_the_pod_ends_at_once(pod, runpod, capsys):
    assert pod.at_deadline()["word"] == "RunPod ends this pod (204 No Content)"
    assert runpod.requests == [TERMINATE]
    assert runpod.bodies == [b'{"action":"terminate"}']
    sent = runpod.headers[0]
    assert (sent["Authorization"], sent["User-Agent"]) == (f"Bearer {KEY}", "lora-forge-leash")
    assert sent["Content-Type"] == "application/json"
    pod.after(59)
    assert len(runpod.requests) == 1
    assert "COULD NOT" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "path", "body", "violation"),
    [
        ("POST", TERMINATE[1], b'{"action":"explode"}', "$.action: 'explode' is not one of"),
        ("POST", TERMINATE[1], b'{"act":"terminate"}', "'action' is a required property"),
        ("POST", TERMINATE[1], b'{"action":1}', "$.action: 1 is not of type 'string'"),
        ("POST", TERMINATE[1], None, "$: None is not of type 'object'"),
        ("DELETE", f"{DELETE[1]}?force=true", None, "query.force: is not described"),
        ("DELETE", f"/v2/pod/{POD}", None, f"DELETE /v2/pod/{POD} is not described"),
    ],
)
def test_a_request_that_runpod_does_not_describe_is_seen(pod, runpod, method, path, body, violation):
    pod.leash.call(method, runpod.url + path, body)
    assert violation in runpod.violations.pop()
    assert runpod.violations == []


def test_its_last_word_is_written_before_the_pod_is_gone(pod, monkeypatch):
    seen = []
    monkeypatch.setattr(pod.leash, "end", lambda: seen.append(pod.word()["word"]))
    pod.at_deadline()
    assert seen == ["RunPod is asked to end this pod"]


def test_a_pod_that_is_gone_is_ended(pod, runpod):
    runpod.refuse(404, "Not Found")
    assert pod.at_deadline()["word"] == "RunPod ends this pod (404 Not Found)"
    assert runpod.requests == [TERMINATE]


def test_a_pod_that_outlives_the_answer_is_not_ended(pod, runpod, capsys):
    runpod.refuse(404, "Not Found")
    pod.at_deadline()
    word = pod.after(60)
    assert word["state"] == "refused"
    assert "COULD NOT END THIS POD (404 Not Found, and yet it is still there)" in capsys.readouterr().out
    assert runpod.requests == [TERMINATE, TERMINATE, DELETE]


def test_where_the_action_is_refused_the_pod_is_deleted(pod, runpod):
    runpod.answers["POST"] = (409, "Conflict", {})
    assert pod.at_deadline()["state"] == "ending"
    assert runpod.requests == [TERMINATE, DELETE]


def test_a_refusal_is_said_loudly_every_minute_and_it_tries_each_time(pod, runpod, capsys):
    runpod.refuse()
    word = pod.at_deadline()
    assert word["state"] == "refused"
    assert f"lora-forge leash: {word['word']}" == FORBIDDEN
    pod.after(59)
    assert capsys.readouterr().out.count(FORBIDDEN) == 1
    pod.after(1)
    assert capsys.readouterr().out == f"{FORBIDDEN}\n"
    assert runpod.requests == [TERMINATE, DELETE] * 2
    runpod.answers.clear()
    assert pod.after(60)["state"] == "ending"


def test_two_reasons_are_both_told(pod, runpod):
    runpod.answers = {"POST": (500, "", {}), "DELETE": (401, "Unauthorized", {})}
    assert "(500 Internal Server Error, 401 Unauthorized)" in pod.at_deadline()["word"]


def test_runpod_out_of_reach_is_a_refusal(pod, runpod):
    runpod.server.server_close()
    word = pod.at_deadline()
    assert word["state"] == "refused"
    assert "(<urlopen error" not in word["word"]
    assert "Connection refused" in word["word"]


def test_a_redirect_is_no_success_and_takes_the_key_nowhere(pod, runpod):
    runpod.refuse(302, "Found", Location=f"{runpod.url}/elsewhere")
    assert "(302 Found)" in pod.at_deadline()["word"]
    assert runpod.requests == [TERMINATE, DELETE]


@pytest.mark.parametrize("missing", ["RUNPOD_API_KEY", "RUNPOD_POD_ID"])
def test_without_a_key_or_an_id_it_says_so_and_stops_the_training_all_the_same(pod, runpod, capsys, missing):
    pod.start(**{missing: ""})
    pod.train()
    own = pod.root / "leash" / f"{pod.env['RUNPOD_POD_ID'] or 'unknown'}.json"
    pod.after(0)
    said = f"NO LEASH: {missing} is not set: the training is stopped at 2026-11-23 18:32:00 UTC, the pod is not ended"
    assert capsys.readouterr().out == f"lora-forge leash: {said}\n"
    assert rundir.read_json(own)["word"] == said
    pod.at_deadline()
    assert pod.processes[0].wait(PATIENCE) == -signal.SIGTERM
    pod.after(5)
    pod.after(120)
    assert rundir.read_json(own)["state"] == "refused"
    assert f"COULD NOT END THIS POD ({missing} is not set)" in capsys.readouterr().out
    assert runpod.requests == []


@pytest.mark.parametrize("key", [KEY, "rpa_S3CR\n3T", "rpa_S3CR3T…", " rpa_S3CR3T\n"])
def test_the_key_is_told_to_nobody(pod, runpod, capsys, key):
    runpod.refuse(401, f"No such key:  {key}\n")
    pod.start(RUNPOD_API_KEY=key)
    pod.at_deadline()
    pod.after(60)
    said = capsys.readouterr()
    written = "".join(path.read_text() for path in pod.root.rglob("*") if path.is_file())
    assert "COULD NOT END" in said.out
    assert "COULD NOT END" in written
    for text in (said.out, said.err, written):
        assert "S3CR" not in text


# --- nothing stops the leash ----------------------------------------------------------------------------------------


def test_a_root_that_cannot_be_written_stops_nothing(pod, runpod):
    pod.root.write_text("a file where the folder should be")
    pod.after(5)
    pod.at_deadline()
    assert runpod.requests == [TERMINATE]


def test_a_full_disk_stops_nothing_and_the_word_follows_when_there_is_room(pod, runpod, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    pod.train(deaf=True)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_text", full)
        patch.setattr(pathlib.Path, "touch", full)
        assert pod.at_deadline() == {}
    assert pod.after(5)["state"] == "stopping"


def test_a_log_that_nobody_reads_stops_nothing(pod, runpod, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    sys.stdout.close()
    pod.at_deadline()
    assert runpod.requests == [TERMINATE]


def test_a_log_in_ascii_loses_no_line(pod, runpod, monkeypatch):
    log = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log, encoding="ascii"))
    runpod.refuse(403, "Geht nicht – später")
    pod.at_deadline()
    assert b"COULD NOT END THIS POD (403 Geht nicht \\u2013 sp\\xe4ter)" in log.getvalue()


def test_a_volume_that_hangs_does_not_keep_the_pod(pod, runpod):
    (pod.root / "leash").mkdir(parents=True)
    os.mkfifo(pod.root / "leash" / f"{POD}.renewed")  # a read that never comes back
    pod.wall = DEADLINE - 590
    pod.start()
    stuck = threading.Thread(target=pod.leash.step, daemon=True)
    pod.wall, pod.boot = DEADLINE, pod.boot + 590
    pod.leash.insist()
    stuck.start()
    assert runpod.requests == []
    pod.boot += 20
    pod.leash.insist()
    assert runpod.requests == [TERMINATE]
    pod.boot += 30
    pod.leash.insist()
    assert len(runpod.requests) == 1
    assert stuck.is_alive()
    (pod.root / "leash" / f"{POD}.renewed").write_text("")  # let it go
    stuck.join(PATIENCE)
    assert not stuck.is_alive()


def test_a_leash_that_works_is_not_hurried(pod, runpod):
    pod.train(deaf=True)
    pod.after(0)
    pod.boot += 3600
    pod.leash.insist()  # hangs, but the pod is not due
    pod.at_deadline()
    pod.leash.insist()
    assert runpod.requests == []


def test_an_error_is_said_and_the_work_goes_on(pod, capsys):
    class Over(BaseException):
        pass

    def broken():
        raise ValueError(f"with {KEY}")

    slept: list[float] = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            raise Over

    with pytest.raises(Over):
        program.run(pod.leash, broken, sleep)
    assert slept == [5.0] * 3
    assert capsys.readouterr().out == "lora-forge leash: ValueError in broken\n" * 3


# --- as a pod starts it ---------------------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path):
    """Provide a starter of processes whose output goes to a file; it returns how to read it. They end with the test."""
    processes = []

    def start(command, env):
        out = tmp_path / "container.log"
        with out.open("wb") as file:
            made = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True, cwd=tmp_path)
        processes.append(made)
        return made, out.read_text

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_real_leash_ends_its_pod(pod, runpod, started):
    env = {**os.environ, **pod.env, "LORA_FORGE_DEADLINE": str(time.time() - 60), "LC_ALL": "POSIX"}
    process, log = started([sys.executable, str(PROGRAM)], env)
    eventually(lambda: "RunPod ends this pod" in log())
    assert runpod.requests == [TERMINATE]
    eventually(lambda: pod.word().get("word") == "RunPod ends this pod (204 No Content)")
    assert outside.read_status(pod.root, POD)["alive"]
    assert process.poll() is None  # as long as the pod is there
    assert "Traceback" not in log()
    assert KEY not in log()


@pytest.mark.parametrize("key", [KEY, ""])
def test_a_controller_takes_the_word_of_a_real_leash_and_of_no_other(pod, runpod, started, key):
    env = {**os.environ, **pod.env, "RUNPOD_API_KEY": key, "LORA_FORGE_DEADLINE": str(time.time() + 600)}
    _, log = started([sys.executable, str(PROGRAM)], env)
    budget = {"usd_per_hour": 1.0, "spent": 0.0, "since": time.time(), "max_usd": 0.0, "max_hours": 1.0, "pod": POD,
              "claim": str(pod.root / "none.json"), "root": str(pod.root)}  # fmt: skip
    given = json.dumps({"budget": budget, "timeout": PATIENCE, "unreachable_timeout": 5})
    command = [sys.executable, "-m", "ansible", "adhoc", "localhost", "-c", "local", "-m", "await_leash", "-a", given]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) is bool(key), done.stdout + done.stderr
    assert (
        "unleashed" not in done.stdout if key else "its leash cannot end it: RUNPOD_API_KEY is not set" in done.stdout
    )
    assert KEY not in log() + done.stdout + done.stderr
    assert runpod.looks == bool(key)


def test_a_real_leash_whose_volume_hangs_ends_its_pod(pod, runpod, started, tmp_path):
    text = PROGRAM.read_text()
    for old, new in (("TICK = 5.0 ", "TICK = 0.05 "), ("HUNG = 600.0 ", "HUNG = 0.2 ")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "leash.py").write_text(text)
    (pod.root / "leash").mkdir(parents=True)
    os.mkfifo(pod.root / "leash" / f"{POD}.renewed")
    env = {**os.environ, **pod.env, "LORA_FORGE_DEADLINE": str(time.time() - 60)}
    _, log = started([sys.executable, "leash.py"], env)
    eventually(lambda: "RunPod ends this pod" in log())
    assert runpod.requests == [TERMINATE]


def test_a_pod_has_python_3_8_at_least():
    ast.parse(PROGRAM.read_text(), feature_version=(3, 8))


def test_the_leash_starts_again_and_again_and_the_image_starts_what_it_always_starts(tmp_path, started, monkeypatch):
    monkeypatch.setattr(outside, "PROGRAM", str(tmp_path / "leash.py"))  # not /tmp, which others use
    fake = f"import pathlib\npathlib.Path({str(tmp_path / 'leashes')!r}).open('a').write('«1»\\n')\n"
    (tmp_path / "bin").mkdir()
    nap = tmp_path / "bin" / "sleep"
    nap.write_text(f"#!/bin/sh\necho $1 >>{tmp_path}/naps\nexec /bin/sleep 0.01\n")
    image = tmp_path / "start.sh"
    image.write_text(f'#!/bin/sh\necho "$$ $1" >{tmp_path}/image\nexec /bin/sleep 3600\n')
    for path in (nap, image):
        path.chmod(0o755)
    args, value = outside.wrap_start(fake, f'{image} "as always"')
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "LORA_FORGE_LEASH": value}
    process, log = started(shlex.split(args), env)
    eventually(lambda: (tmp_path / "leashes").exists() and (tmp_path / "leashes").read_text().count("«1»") >= 2)
    eventually(lambda: (tmp_path / "image").exists() and (tmp_path / "image").read_text())
    assert (tmp_path / "image").read_text() == f"{process.pid} as always\n"  # in the shell's own place: PID 1
    assert set((tmp_path / "naps").read_text().split()) == {"5"}
    assert log() == ""


def test_the_program_travels_whole_and_is_always_the_same():
    args, value = outside.wrap_start(PROGRAM.read_text())
    assert gzip.decompress(base64.b64decode(value)).decode() == PROGRAM.read_text()
    assert outside.wrap_start(PROGRAM.read_text()) == (args, value)
    assert args.endswith("exec /start.sh'")
    assert args.count("'") == 2
    assert len(value) < 8192


@pytest.mark.parametrize("start", ["sh -c 'x'", "a\nb"])
def test_a_start_command_that_cannot_be_quoted(start):
    with pytest.raises(UserError, match="neither single quotes nor line breaks"):
        outside.wrap_start("", start)


# --- from outside ---------------------------------------------------------------------------------------------------


def test_renewing_changes_once_and_only_for_real(tmp_path):
    deadline = round(time.time()) + 600.0
    assert outside.renew(tmp_path, POD, deadline, check=True)
    assert list(tmp_path.iterdir()) == []
    assert outside.renew(tmp_path, POD, deadline)
    assert not outside.renew(tmp_path, POD, deadline)
    assert rundir.read_json(tmp_path / "leash" / f"{POD}.renewed") == {"deadline": deadline}


@pytest.mark.parametrize(("ahead", "unit"), [(-1, 1), (600, 1000), (0, 0), (float("nan"), 1)])
def test_a_deadline_in_the_past_or_in_other_units_is_refused(tmp_path, ahead, unit):
    deadline = (time.time() + ahead) * unit
    with pytest.raises(UserError, match=f"deadline of pod {POD} would be .* give a later one"):
        outside.renew(tmp_path, POD, deadline)


def test_a_leash_is_alive_while_it_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(outside, "shutil", types.SimpleNamespace(which=lambda name: name != "gzip"))
    assert outside.read_status(tmp_path, POD) == {"alive": False, "missing": ["gzip"]}
    (tmp_path / "leash").mkdir()
    now = time.time()
    monkeypatch.setattr(outside, "time", types.SimpleNamespace(time=lambda: now))
    for age, alive in ((0, True), (140, True), (160, False), (-3600, False)):
        word = {"state": "waiting", "beat": now - age}
        rundir.write_json(tmp_path / "leash" / f"{POD}.json", word)
        assert outside.read_status(tmp_path, POD) == {**word, "alive": alive, "beat_age": age}


def call(capsys, *, check=False, **given):
    with patch_module_args({"_ansible_check_mode": check, "pod": POD, **given}), pytest.raises(SystemExit):
        module.main()
    return json.loads(capsys.readouterr().out)


def test_the_module_waits_for_a_leash_that_comes_up(pod, capsys, monkeypatch):
    pod.wall = time.time()
    pod.start(LORA_FORGE_DEADLINE=str(pod.wall + 600))
    coming = threading.Timer(1, lambda: pod.after(0))
    coming.start()
    monkeypatch.setattr(program.Leash, "say", lambda leash, text: None)  # into the module's answer
    found = call(capsys, root=str(pod.root), wait=PATIENCE)["leash"]
    coming.join()
    assert (found["alive"], found["answer"], outside.find_fault(found)) == (True, "200 OK", {})


@pytest.mark.parametrize(
    ("env", "mends"), [({"RUNPOD_API_KEY": ""}, False), ({"LORA_FORGE_API": "http://127.0.0.1:1"}, True)]
)
def test_the_module_waits_only_for_what_may_mend(pod, monkeypatch, env, mends):
    pod.wall = time.time()
    pod.start(LORA_FORGE_DEADLINE=str(pod.wall + 600), **env)
    pod.after(0)
    slept: list[float] = []
    clock = types.SimpleNamespace(time=lambda: pod.wall, monotonic=lambda: sum(slept))
    monkeypatch.setattr(outside, "time", clock)
    found = outside.await_status(pod.root, POD, 30, slept.append)
    assert outside.find_fault(found)
    assert (sum(slept) >= 30) is mends


def test_the_module_renews_and_reads(pod, capsys):
    pod.wall = time.time()
    pod.start(LORA_FORGE_DEADLINE=str(pod.wall + 600), LORA_FORGE_ALLOWANCE="600")
    pod.after(0)
    capsys.readouterr()
    found = call(capsys, root=str(pod.root))
    assert (found["changed"], found["leash"]["alive"], found["leash"]["state"]) == (False, True, "waiting")
    later = round(time.time()) + 3600
    assert call(capsys, root=str(pod.root), deadline=later, check=True)["changed"]
    assert pod.after(0)["renewals"] == 0
    assert call(capsys, root=str(pod.root), deadline=later)["changed"]
    assert pod.after(0)["deadline"] == later
    capsys.readouterr()
    assert not call(capsys, root=str(pod.root), deadline=later)["changed"]
    failed = call(capsys, root=str(pod.root), deadline=1)
    assert failed["failed"]
    assert "give a later one" in failed["msg"]
