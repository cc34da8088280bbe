"""What runs on a trainer's own Python, run for real on CPython 3.9, the oldest that a trainer may have."""

from __future__ import annotations

import ast
import base64
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import rundir
import yaml
from ansible.module_utils.lora_forge.trainer import cpython
from lab import FAKE, counted_steps, events, eventually, starts, status

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The one list of these modules is for people, and stands in docs/contributing.md.
LISTED = re.findall(r"`(\w+)`", re.search(r"^- What runs on a trainer's own Python .*? and what they import",
                                          (ROOT / "docs/contributing.md").read_text(), re.MULTILINE)[0])  # fmt: skip
PROGRAMS = (
    "roles/run/files/supervisor.py",
    "roles/run/files/slurm_job.py",
    "roles/pod/files/leash.py",
    "module_utils/lora_forge/rundir.py",
)
PATIENCE = 120.0  # seconds for what takes one or two; only a test that fails waits so long
GPU = "GPU-5a1f0c3e-8a5b-4f0e-9a57-3d1c2b4e6f70"  # the first one of the fake nvidia-smi
POD, KEY = "7h9k2m4n6p", "rpa_S3CR3T"
TERMINATE, DELETE = ("POST", f"/v2/pods/{POD}/action"), ("DELETE", f"/v2/pods/{POD}")


# --- a Python 3.9 ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def python39():
    """Return the path of a CPython 3.9; skip the test without one, unless the one that is named will not do."""
    named = os.environ.get("LORA_FORGE_PYTHON39")
    if named:
        assert cpython.probe(named, ["3.9"]), f"LORA_FORGE_PYTHON39 is {named}, which is no CPython 3.9"
        return os.path.realpath(named)
    found = cpython.find_interpreter(["3.9"], ROOT / ".trainer", dict(os.environ))
    if found is None:
        pytest.skip(
            "NOTHING WAS RUN ON PYTHON 3.9: there is none on PATH, in pyenv or in uv. Install one (.venv/bin/uv python "
            "install 3.9, or pyenv install 3.9), or name one: LORA_FORGE_PYTHON39=/path/to/python3.9"
        )
    return os.path.realpath(found.path)


@pytest.fixture
def lab39(lab, python39):
    """Provide a pretended trainer whose Python is 3.9."""
    lab.python = python39
    return lab


def program_of(noted: dict[str, Any]) -> str:
    """Return which program a process is that was noted by rundir.identity."""
    assert rundir.is_alive(noted)
    return os.readlink(f"/proc/{noted['pid']}/exe")


def brought(process: subprocess.Popen[bytes], log: pathlib.Path, condition: Callable[[], Any]) -> Any:
    """Return the first true value of a condition that a process brings about; fail with its log if it does not."""

    def look() -> Any:
        ended = process.poll() is not None  # before the look: it may come to its end between the two
        value = condition()
        assert value or not ended, f"it has ended with {process.returncode}"
        return value

    try:
        return eventually(look, PATIENCE)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from None


def until(process: subprocess.Popen[bytes], run: pathlib.Path, state: str) -> dict[str, Any]:
    """Return the status of a run once its supervisor has brought it into a state."""
    return brought(process, run / "supervisor.out", lambda: status(run).get("state") == state and status(run))


def reached(process: subprocess.Popen[bytes], run: pathlib.Path, step: int) -> None:
    """Wait until a step was logged."""
    log = run / "supervisor.out"
    brought(process, log, lambda: any(event["step"] >= step for event in events(run, "log")))


# --- which modules these are ----------------------------------------------------------------------------------------


def modules_of_action(name: str) -> set[str]:
    """Name the modules that Ansible runs on the host for a task: an action plugin's, or the module itself."""
    plugin = ROOT / "action_plugins" / f"{name}.py"
    if not plugin.exists():
        return {name} if (ROOT / "library" / f"{name}.py").exists() else set()
    if plugin.is_symlink():  # to on_controller.py, which runs it in Ansible's own process, or to on_trainer.py
        return {name} if plugin.readlink().name == "on_trainer.py" else set()
    text = plugin.read_text()
    called = set(re.findall(r'\brun_action\("(\w+)"', text)) - {name}
    # python=: the interpreter of the trainer's environment.
    own = set(re.findall(r'(?:_execute|run)_module[(,]\s*"(\w+)"(?![^)]*\bpython=)', text))
    return own.union(*map(modules_of_action, called))


def modules_of_tasks(path: pathlib.Path, seen: set[pathlib.Path]) -> set[str]:
    """Name the modules that a task file runs on its host's own Python, with all files and roles that it includes."""
    if path in seen:
        return set()
    seen.add(path)
    return modules_of_list(yaml.safe_load(path.read_text()), path.parent, seen)


def modules_of_list(tasks: list[dict[str, Any]], folder: pathlib.Path, seen: set[pathlib.Path]) -> set[str]:
    found: set[str] = set()
    for task in tasks:
        if task.get("delegate_to") == "localhost":
            continue
        for part in ("block", "rescue", "always"):
            found |= modules_of_list(task.get(part, []), folder, seen)
        for key, value in task.items():
            word = key.removeprefix("ansible.builtin.")
            if word in ("include_role", "import_role"):
                entry = f"roles/{value['name']}/tasks/{value.get('tasks_from', 'main')}.yml"
                found |= modules_of_tasks(ROOT / entry, seen)
            elif word in ("include_tasks", "import_tasks"):
                names = re.findall(r"[\w/]+\.yml", value)
                assert names, f"{folder}: which files does «{value}» include?"
                for name in names:
                    found |= modules_of_tasks(folder / name, seen)
            elif "ansible_python_interpreter" not in task.get("vars", {}):
                found |= modules_of_action(word)
    return found


def modules_on_trainers() -> set[str]:
    """Name the modules that the plays run on a trainer's own Python."""
    found, seen = set(), set()
    for path in sorted((ROOT / "playbooks").glob("*.yml")):
        for play in yaml.safe_load(path.read_text()):
            if play.get("hosts", "localhost") == "localhost":  # without hosts it imports another playbook
                continue
            assert not play.keys() & {"roles", "pre_tasks", "post_tasks", "handlers"}, f"{path}: look there, too"
            found |= modules_of_list(play["tasks"], path.parent, seen)
    return found


def imported(path: pathlib.Path, seen: set[pathlib.Path]) -> set[pathlib.Path]:
    """Return a file, and all files of module_utils that it imports."""
    seen.add(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ansible.module_utils.lora_forge"):
            place = ROOT.joinpath(*node.module.split(".")[1:])
            for other in (place.with_suffix(".py"), *(place / f"{alias.name}.py" for alias in node.names)):
                if other.exists() and other not in seen:
                    imported(other, seen)
    return seen


def shipped() -> list[pathlib.Path]:
    """List every file that a trainer's own Python runs."""
    seen = {ROOT / name for name in PROGRAMS}
    for name in LISTED:
        imported(ROOT / "library" / f"{name}.py", seen)
    return sorted(seen)


def test_the_list_for_people_is_what_the_plays_run_on_trainers():
    assert sorted(LISTED) == sorted(modules_on_trainers())


def test_each_of_them_is_called_on_python_3_9():
    assert set(LISTED) <= {key for call in (*ON_A_HOST, *ON_A_RUN, *ON_A_POD) for key in call}


@pytest.mark.parametrize("path", shipped(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_its_grammar_is_that_of_python_3_9(path):
    """Where there is no Python 3.9, this is all that is known."""
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("path", PROGRAMS)
def test_programs_import_the_standard_library_alone(python39, path):
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    } - {"rundir", "slurm_job"}
    command = [python39, "-I", "-S", "-c", f"import {', '.join(sorted(names - {'__future__'}))}"]  # -S: no packages
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the supervisor -------------------------------------------------------------------------------------------------


def test_a_run_goes_through_a_crash_to_its_end(lab39, tmp_path):
    run = lab39.make(crash_at=5, crash_once=1, crash_say="RuntimeError: a crash – with a dash")
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    rundir.write_json(run / "run.json", {**rundir.read_json(run / "run.json"), "prepared": str(prepared)})
    (run / "env").write_text("HF_TOKEN=hf_S3CR3T\n")
    cut_off = run / "output/checkpoint-7"
    cut_off.mkdir(parents=True)
    end = until(lab39.supervise(run), run, "finished")
    assert (end["reason"], end["exit_code"], end["starts"], end["resumed_from"]) == (None, 0, 2, 4)
    assert starts(run) == [0, 4]
    assert counted_steps(run) == list(range(1, 9))
    assert rundir.last_complete(run / "output") == 8
    assert not prepared.exists()
    assert not (run / "env").exists()
    assert "token: hf_S3CR3T" in (run / "train.log").read_text()
    said = (run / "supervisor.log").read_text()
    assert "checkpoint-7 is not whole (no complete.json: its writing was cut off); set aside" in said
    assert "crashed: exit code 1: RuntimeError: a crash – with a dash; resuming from step 4" in said


def test_a_stop_leaves_a_checkpoint_and_the_lane_to_the_next(lab39, python39):
    first, second = lab39.make("a-1", steps=10**6, save_every=10**6), lab39.make("b-1", steps=2)
    process = lab39.supervise(first)
    reached(process, first, 1)
    assert [program_of(status(first)[name]) for name in ("supervisor", "trainer")] == [python39, python39]
    waiting = lab39.supervise(second)
    until(waiting, second, "queued")
    process.send_signal(signal.SIGTERM)
    end = until(process, first, "stopped")
    (stop,) = events(first, "stop")
    assert end["reason"]["detail"] == f"by SIGTERM (a shutdown?); checkpoint at step {stop['step']}"
    assert rundir.last_complete(first / "output") == stop["step"]
    until(waiting, second, "finished")
    assert process.wait(PATIENCE) == 0
    lab39.change(first, steps=stop["step"] + 3)
    assert until(lab39.supervise(first), first, "finished")["resumed_from"] == stop["step"]
    assert counted_steps(first) == list(range(1, stop["step"] + 4))


def test_a_run_that_cannot_go_on_says_why(lab39):
    killed, wrong, absent = lab39.make("a-1", hang_at=1), lab39.make("b-1", lane="GPU-2"), lab39.make("c-1", lane="x")
    lab39.change(wrong, lane="GPU-2", crash_at=1, crash_say="ValueError: the dataset has no column «text»")
    rundir.write_json(absent / "run.json", {**rundir.read_json(absent / "run.json"), "command": ["/no/such/python"]})
    owned = {run: lab39.supervise(run) for run in (killed, wrong, absent)}
    brought(owned[killed], killed / "supervisor.out", lambda: events(killed, "begin"))
    os.kill(status(killed)["trainer"]["pid"], signal.SIGKILL)
    why = [until(process, run, "failed")["reason"] for run, process in owned.items()]
    assert [reason["kind"] for reason in why] == ["killed", "configuration", "environment"]
    assert "SIGKILL" in why[0]["detail"]
    assert "the dataset has no column «text»" in why[1]["detail"]
    assert "/no/such/python" in why[2]["detail"]


def test_what_a_killed_supervisor_left_is_killed_before_the_next_start(lab39):
    run = lab39.make(steps=12, ignore_term=1, hang_at=3)
    process = lab39.supervise(run)
    reached(process, run, 2)
    leftover = status(run)["trainer"]
    process.kill()
    process.wait()
    assert rundir.is_alive(leftover)
    lab39.change(run, steps=12)
    assert until(lab39.supervise(run), run, "finished")["resumed_from"] == 2
    assert not rundir.is_alive(leftover)
    assert not (run / "overlap").exists()


# --- the leash ------------------------------------------------------------------------------------------------------


class RunPod(http.server.ThreadingHTTPServer):
    """RunPod's API as far as it ends pods.

    Attributes:
        status: What it answers.
        requests: (method, path) of every request.
    """

    def __init__(self) -> None:
        self.status, self.requests = 204, []
        super().__init__(("127.0.0.1", 0), Asked)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Asked(http.server.BaseHTTPRequestHandler):
    server: RunPod

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_DELETE = do_POST

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def runpod():
    server = RunPod()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def leash(tmp_path, runpod, python39):
    """Provide a starter of leashes with a faster pulse; it returns the process, and the file of its output."""
    processes = []
    text = (ROOT / "roles/pod/files/leash.py").read_text()
    quick = {"TICK = 5.0 ": "TICK = 0.05 ", "GRACE = 120.0 ": "GRACE = 0.1 ", "RETRY = 60.0 ": "RETRY = 0.1 "}
    for old, new in {**quick, '"/etc/ssh"': repr(str(tmp_path / "ssh"))}.items():
        assert old in text
        text = text.replace(old, new)

    def start(root: pathlib.Path, deadline: float, hung: float = 600.0) -> tuple[subprocess.Popen[bytes], pathlib.Path]:
        assert "HUNG = 600.0 " in text
        (tmp_path / "leash.py").write_text(text.replace("HUNG = 600.0 ", f"HUNG = {hung} "))
        env = {
            **os.environ, "no_proxy": "*", "LC_ALL": "C", "LORA_FORGE_ROOT": str(root), "RUNPOD_POD_ID": POD,
            "LORA_FORGE_DEADLINE": str(deadline), "LORA_FORGE_ALLOWANCE": "3600", "RUNPOD_API_KEY": KEY,
            "LORA_FORGE_API": f"http://127.0.0.1:{runpod.server_port}",
        }  # fmt: skip
        log = tmp_path / "container.log"
        with log.open("wb") as out:
            processes.append(subprocess.Popen([python39, str(tmp_path / "leash.py")], env=env, stdout=out, stderr=out))
        return processes[-1], log

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_leash_asks_for_a_checkpoint_and_ends_its_pod(lab39, leash, runpod, python39, tmp_path):
    blob = base64.b64encode(b"a public key").decode()
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh/ssh_host_ed25519_key.pub").write_text(f"ssh-ed25519 {blob} root@pod\n")
    root = tmp_path / "lora-forge"
    run = lab39.make("mayor-0", where=root / "runs", steps=10**6, save_every=10**6)
    supervisor = lab39.supervise(run)
    reached(supervisor, run, 1)
    process, log = leash(root, time.time() + 3600)
    brought(process, log, lambda: "this pod ends itself at" in log.read_text())
    assert program_of(rundir.identity(process.pid)) == python39
    fingerprint = base64.b64encode(hashlib.sha256(b"a public key").digest()).decode().rstrip("=")
    assert f"lora-forge host key SHA256:{fingerprint} (ssh-ed25519)" in log.read_text()
    assert runpod.requests == []
    runpod.status = 403
    own = root / "leash" / f"{POD}.json"
    brought(process, log, own.exists)  # it says its word before it makes the folder
    rundir.write_json(own.with_suffix(".renewed"), {"deadline": time.time() - 1})
    until(supervisor, run, "stopped")
    assert status(run)["reason"]["detail"] == f"on request; checkpoint at step {rundir.last_complete(run / 'output')}"
    refused = "COULD NOT END THIS POD (403 Forbidden): it goes on costing money. Release it by hand"
    brought(process, log, lambda: refused in log.read_text())
    assert runpod.requests[:2] == [TERMINATE, DELETE]
    runpod.status = 204
    ended = "RunPod ends this pod (204 No Content)"
    brought(process, log, lambda: rundir.read_json(own).get("word") == ended)
    assert runpod.requests[-1] in (TERMINATE, DELETE)
    said = log.read_text()
    assert "the deadline is reached; trainings asked for a checkpoint: 1" in said
    assert "Traceback" not in said
    assert KEY not in said


def test_a_leash_whose_volume_hangs_ends_its_pod(leash, runpod, tmp_path):
    (tmp_path / "leash").mkdir()
    os.mkfifo(tmp_path / "leash" / f"{POD}.renewed")  # a read that never comes back
    process, log = leash(tmp_path, time.time() - 60, hung=0.2)
    brought(process, log, lambda: "RunPod ends this pod" in log.read_text())
    assert TERMINATE in runpod.requests


# --- the modules, as Ansible sends them to a trainer ----------------------------------------------------------------

# Each call is a task of a play, and its name is that of its answer too.
FAILS = {"ignore_errors": True}
ENVIRONMENT = {"root": "{{ root }}", "lock": "{{ root }}/lock.txt", "uv": "{{ uv }}", "python_download": True}
OTHERS = {"root": "{{ root }}", "named": ["{{ made.python | dirname | dirname | basename }}"]}
FETCH = {"model": "owner/name", "home": "{{ root }}/models", "hf_token": "hf_S3CR3T"}
FETCH_STARTS = {**FETCH, "python": "{{ ansible_python_interpreter }}", "program": "{{ root }}/fetch.py"}
CHECK = {"home": "{{ root }}/models", "runs": [{
    "run_id": "mayor-0", "run_dir": "{{ root }}/runs/mayor-0", "model": "{{ root }}/model", "revision": "",
    "recipe": {}, "capabilities": {}, "needs": [],
}]}  # fmt: skip
PREFLIGHT = f"{ROOT}/roles/run/files/preflight.py"
GPU_CHECK = f"{ROOT}/roles/trainer/files/gpu_check.py"
ON_A_HOST: list[dict[str, Any]] = [
    {"name": "python", "ansible.builtin.setup": {"gather_subset": ["!all", "!min", "python"]}},
    {"name": "would_be_made", "trainer_environment": ENVIRONMENT, "check_mode": True},
    {"name": "made", "trainer_environment": ENVIRONMENT},
    {"name": "made_again", "trainer_environment": ENVIRONMENT},
    {"name": "would_be_removed", "environment_prune": {**OTHERS, "remove": True}, "check_mode": True},
    {"name": "only_told", "environment_prune": OTHERS},
    {"name": "removed", "environment_prune": {**OTHERS, "remove": True}},
    {"name": "removed_again", "environment_prune": {**OTHERS, "remove": True}},
    {"name": "gpus", "gpu_info": {"lock": f"{ROOT}/requirements/trainer-cuda.txt", "count": 2}},
    {"name": "gpus_lacking", "gpu_info": {"count": 3}, **FAILS},
    {"name": "no_torch", "gpu_check": {"python": "{{ ansible_python_interpreter }}", "program": GPU_CHECK}, **FAILS},
    {"name": "no_slurm", "slurm_check": {"root": "{{ root }}", "job": {"gres": "gpu:1"}, "gpus": 1}, **FAILS},
    {"name": "model_here", "base_model": {"model": "{{ root }}/model", "home": "{{ root }}/models"}},
    {
        "name": "no_axolotl",
        "recipe_check": {**CHECK, "python": "{{ ansible_python_interpreter }}", "program": PREFLIGHT},
    },
    {"name": "model_absent", "base_model": FETCH},
    {"name": "model_begun", "base_model": FETCH_STARTS},
    {"name": "model_followed", "base_model": {**FETCH, "wait": 120, "since": "fetching:0"}},
]

RUN = {"run_dir": "{{ root }}/runs/mayor-0"}
STOP = {**RUN, "stop_timeout": 120, "state": "stopped"}
ENDLESS = {
    "FAKE_STEPS": 10**6, "FAKE_DELAY": 0.1, "FAKE_EVAL_EVERY": 1, "FAKE_SAVE_EVERY": 10**6,
    "FAKE_SAY": "a word – with a dash",
}  # fmt: skip
START = {
    **RUN, "command": ["{{ ansible_python_interpreter }}", str(FAKE)], "lane": GPU, "lane_dir": "{{ root }}",
    "stop_timeout": 120, "environment": ENDLESS, "facts": {"agent": "mayor", "fingerprint": "0123456789ab"},
}  # fmt: skip
GIVEN = {"secrets": {"mayor-0": {"HF_TOKEN": "hf_S3CR3T"}}, "backend": "process"}
THREE_MORE = {**ENDLESS, "FAKE_STEPS": "{{ stopped_at.checkpoint.step + 3 }}", "FAKE_SAVE_EVERY": 1}
ON_A_RUN: list[dict[str, Any]] = [
    {"name": "no_log", "training_log": RUN, **FAILS},
    {"name": "would_start", "training_runs": {**GIVEN, "runs": [START]}, "check_mode": True},
    {"name": "started", "training_runs": {**GIVEN, "runs": [START]}},
    {"name": "attached", "training_runs": {**GIVEN, "runs": [START]}},
    {"name": "evaluated", "ansible.builtin.wait_for": {
        "path": f"{RUN['run_dir']}/metrics.jsonl", "search_regex": '"event": "eval"'}},
    {"name": "running", "training_run_info": RUN},
    {"name": "news", "training_run_info": {**RUN, "since": "{{ running.token }}", "wait": 120}},
    {"name": "trainer", "trainer_info": {"root": "{{ root }}"}},
    {"name": "two", "trainer_info": {"root": "{{ root }}", "only": ["mayor-0", "crew-0"], "paths": ["/none", "/"]}},
    {"name": "log", "training_log": RUN},
    {"name": "evidence", "training_run_evidence": {**RUN, "home": "{{ root }}/env/none"}},
    {"name": "supervisor_log", "training_log": {**RUN, "log": "supervisor", "offset": 0, "wait": 120}},
    {"name": "left_alone", "checkpoint_prune": RUN},
    {"name": "reason", "ansible.builtin.debug": {"msg": "{{ left_alone.left_alone }}"}},
    {"name": "stopped", "training_run": STOP},
    {"name": "stopped_again", "training_run": STOP},
    {"name": "stopped_at", "training_run_info": RUN},
    {"name": "resumed", "training_runs": {**GIVEN, "runs": [{**START, "environment": THREE_MORE}]}},
    {"name": "over", "training_run_info": RUN, "until": "not over.alive", "retries": 240, "delay": 0.5},
    {"name": "would_prune", "checkpoint_prune": {**RUN, "keep": 1}, "check_mode": True},
    {"name": "pruned", "checkpoint_prune": {**RUN, "keep": 1}},
    {"name": "pruned_again", "checkpoint_prune": {**RUN, "keep": 1}},
    {"name": "removed", "training_run": {**STOP, "state": "absent"}},
    {"name": "removed_again", "training_run": {**STOP, "state": "absent"}},
]  # fmt: skip

LEASH = {"root": "{{ root }}", "pod": POD}
ON_A_POD: list[dict[str, Any]] = [
    {"name": "read", "pod_leash": LEASH},
    {"name": "renewed", "pod_leash": {**LEASH, "deadline": "{{ later }}"}},
    {"name": "renewed_again", "pod_leash": {**LEASH, "deadline": "{{ later }}"}},
    {"name": "refused", "pod_leash": {**LEASH, "deadline": 1}, **FAILS},
]


@pytest.fixture
def play(tmp_path, python39):
    """Have Ansible make calls to this machine as a trainer whose Python is 3.9; return each answer by name."""
    programs = pathlib.Path(sys.executable).parent

    def run(root: pathlib.Path, calls: list[dict[str, Any]], **variables: Any) -> dict[str, dict[str, Any]]:
        tasks = [{**call, "register": call["name"]} for call in calls]
        (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "trainer", "tasks": tasks}]))
        local = {"ansible_connection": "local", "ansible_python_interpreter": python39}
        host = {**local, "root": str(root), "uv": str(programs / "uv"), **variables}
        (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"trainer": host}}}))
        env = {
            **os.environ, "ANSIBLE_CONFIG": f"{ROOT}/ansible.cfg", "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "PATH": f"{ROOT}/tests/fakes:{programs}:{os.environ['PATH']}", "FAKE_GPU": "two",
            "UV_FIND_LINKS": str(tmp_path), "UV_NO_INDEX": "1",
        }  # fmt: skip
        command = [str(programs / "ansible-playbook"), "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        try:
            made = json.loads(done.stdout)["plays"][0]["tasks"]
        except ValueError:
            raise AssertionError(done.stdout + done.stderr) from None
        answers = {task["task"]["name"]: task["hosts"]["trainer"] for task in made}
        for call in calls:
            answer = answers[call["name"]]  # the play ends with the first that fails and is not meant to
            assert bool(answer.get("failed")) == ("ignore_errors" in call), f"{call['name']}: {answer.get('msg')}"
        return answers

    return run


FETCHES = """\
import os, pathlib, sys
import rundir
home = pathlib.Path(sys.argv[1])
assert rundir.read_json(home / "request.json")["model"] == "owner/name"
(home / "weights").write_text(os.environ["HF_TOKEN"])
rundir.mark_complete(home, 0)
word = {"state": "fetching", "bytes": 0, "total_bytes": 9, "process": rundir.identity(os.getpid())}
rundir.write_json(home / "status.json", word)
rundir.write_json(home / "status.json", {**word, "state": "present", "folder": str(home), "bytes": 9})
"""


def test_a_host_is_made_fit_to_train(play, tmp_path):
    root = tmp_path / "lora-forge"
    (root / "model").mkdir(parents=True)
    wheel = tmp_path / "nothing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"nothing-1.0.dist-info/{name}", text)
    (root / "lock.txt").write_text(f"nothing==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (root / "model" / name).write_text("{}")
    (root / "fetch.py").write_text(FETCHES)
    shutil.copy(ROOT / "module_utils/lora_forge/rundir.py", root)

    old = root / "env/0123456789abcdef"
    old.mkdir(parents=True)

    told = play(root, ON_A_HOST)
    assert told["python"]["ansible_facts"]["ansible_python"]["version_info"][:2] == [3, 9]

    home = root / "env" / f"lock-{hashlib.sha256((root / 'lock.txt').read_bytes()).hexdigest()[:16]}"
    assert [told[name]["changed"] for name in ("would_be_made", "made", "made_again")] == [True, True, False]
    for name in ("made", "made_again"):
        assert (told[name]["python"], told[name]["packages"]) == (f"{home}/bin/python", 1)
    assert list(home.glob("lib/python*/site-packages/nothing-1.0.dist-info"))

    removals = [told[name] for name in ("would_be_removed", "only_told", "removed", "removed_again")]
    assert [one["changed"] for one in removals] == [True, False, True, False]
    assert [[found["name"] for found in one["environments"]] for one in removals] == [[old.name]] * 3 + [[]]
    assert (old.exists(), home.exists()) == (False, True)

    assert [gpu["uuid"] for gpu in told["gpus"]["gpus"]][:1] == [GPU]
    assert (len(told["gpus"]["gpus"]), told["gpus"]["problems"]) == (2, [])
    assert "the environment is not whole (ModuleNotFoundError: No module named 'torch')" in told["no_torch"]["msg"]
    assert "ended with 1 and without an answer: ModuleNotFoundError" in told["no_axolotl"]["left_out"]
    assert "there is no sbatch here, for a login shell neither\nName a login node" in told["no_slurm"]["msg"]
    assert told["gpus_lacking"]["failed"]
    assert told["gpus_lacking"]["msg"].startswith("1 problem(s) with the GPU of this host:\n")

    here = told["model_here"]
    assert (here["state"], here["folder"], here["bytes"], here["changed"]) == ("present", f"{root}/model", 2, False)
    assert told["model_absent"]["state"] == "absent"
    assert told["model_begun"]["changed"]
    assert (told["model_followed"]["state"], told["model_followed"]["bytes"]) == ("present", 9)
    assert (pathlib.Path(told["model_followed"]["folder"]) / "weights").read_text() == "hf_S3CR3T"


def test_a_run_is_started_watched_stopped_resumed_pruned_and_removed(play, lab39, tmp_path):
    root = tmp_path / "lora-forge"
    run = lab39.stage("mayor-0", where=root / "runs")
    told = play(root, ON_A_RUN)
    assert "nothing was ever started in" in told["no_log"]["msg"]

    assert [told[name]["changed"] for name in ("would_start", "started", "attached")] == [True, True, False]
    [started], [attached] = told["started"]["runs"], told["attached"]["runs"]
    assert (started["backend"], attached["backend"]) == ("process", "process")
    assert "hf_S3CR3T" not in str(told["started"])
    running, news = told["running"], told["news"]
    assert (running["state"], running["facts"]["agent"], running["alive"]) == ("running", "mayor", True)
    assert running["progress"]["step"] >= 1
    assert [event["event"] for event in running["events"]][:3] == ["begin", "step", "log"]
    assert news["progress"]["step"] >= running["progress"]["step"]
    assert news["token"] != running["token"]
    (seen,) = told["trainer"]["runs"]
    assert (seen["run_id"], seen["state"], seen["gpu"]["uuid"]) == ("mayor-0", "running", GPU)
    assert len(told["trainer"]["gpus"]) == 2
    assert [(seen["run_id"], seen["state"]) for seen in told["two"]["runs"]] == [
        ("mayor-0", "running"), ("crew-0", "absent")
    ]  # fmt: skip
    assert (told["two"]["gpus"], told["two"]["missing"]) == ([], ["/none"])
    assert told["log"]["text"] == "a word – with a dash token: hf_S3CR3T\n"
    assert "trainer started, pid " in told["supervisor_log"]["text"]
    assert told["supervisor_log"]["offset"] > 0
    assert (told["left_alone"]["checkpoints"], told["reason"]["msg"]) == ([], "it is alive")

    assert [told[name]["changed"] for name in ("stopped", "stopped_again")] == [True, False]
    step = told["stopped_at"]["checkpoint"]["step"]
    assert told["stopped_at"]["state"] == "stopped"
    assert told["stopped_at"]["status"]["reason"]["detail"] == f"on request; checkpoint at step {step}"
    assert f"output/checkpoint-{step}/complete.json" in told["stopped_at"]["checkpoint"]["files"]

    assert told["resumed"]["changed"]
    over = told["over"]
    assert (over["state"], over["status"]["starts"], over["status"]["resumed_from"]) == ("finished", 2, step)
    assert over["progress"]["step"] == step + 3

    assert [told[name]["changed"] for name in ("would_prune", "pruned", "pruned_again")] == [True, True, False]
    rows = told["pruned"]["checkpoints"]
    assert [(row["step"], row["keep"]) for row in rows] == [(step + more, more == 3) for more in range(4)]
    assert told["pruned"]["freed"] == told["would_prune"]["freed"] > 0
    assert [row["step"] for row in told["pruned_again"]["checkpoints"]] == [step + 3]
    assert [told[name]["changed"] for name in ("removed", "removed_again")] == [True, False]
    assert not run.exists()


def test_a_leash_is_read_and_renewed(play, leash, runpod, tmp_path):
    root, deadline = tmp_path / "lora-forge", round(time.time()) + 3600
    process, log = leash(root, deadline)
    own = root / "leash" / f"{POD}.json"
    brought(process, log, own.exists)
    told = play(root, ON_A_POD, later=deadline + 1800)
    word = told["read"]["leash"]
    assert (word["state"], word["deadline"], word["alive"]) == ("waiting", deadline, True)
    assert [told[name]["changed"] for name in ("read", "renewed", "renewed_again")] == [False, True, False]
    assert "give a later one" in told["refused"]["msg"]
    brought(process, log, lambda: rundir.read_json(own).get("renewals") == 1)
    assert rundir.read_json(own)["deadline"] == deadline + 1800
    assert log.read_text().count("this pod ends itself at") == 2
    assert runpod.requests == []
