"""What a webhook is told, by whom and when: real Ansible, a real HTTP server, pretended trainers."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.pods.claims import Claims
from ansible.module_utils.lora_forge.trainer import environment, runs
from lab import Lab, eventually, status, until
from safetensors.numpy import save_file

from .conftest import CONVERGE, PLAYBOOK, ROOT

SECRET = "T0KEN9XQ"  # the part of a webhook's URL that nobody may see
DETAIL = "it said {{ lookup('env', 'HOME') }} & <b> «\"quoted\"»"
SEEN = {"state": "failed", "detail": DETAIL, "progress": {"step": 3, "planned": 12, "loss": "nan", "eval_loss": 1.25}}
BUDGET = {"usd_per_hour": 2.0, "spent": 0.0, "since": time.time(), "max_usd": 1.0, "max_hours": 24.0}
PLAN = {"agent": "witness", "name": "witness", "run_id": "witness-0", "hosts": ["pod-1"]}


class Hook(http.server.ThreadingHTTPServer):
    """A webhook.

    Attributes:
        answers: The status of each answer, in this order; the last one holds on. An address that ends with a number
            is answered with that one. 0 is no answer at all.
        told: What was posted.
        paths: Where to.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.told, self.paths = [200], [], []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/{SECRET}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/json"
        self.server.paths.append(self.path)
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        own = self.path.rpartition("/")[2]
        answers = [int(own)] if own.isdigit() else self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if not answer:
            self.server.over.wait(60)
            return
        self.send_response(answer)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Desk:
    """A folder with an inventory of this machine, of a host that does not answer, and playbooks of a few lines."""

    def __init__(self, home: pathlib.Path):
        self.home, self.root = home, home / "trainer"
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        facts = {"trainer_root": str(self.root), "output_dir": str(home / "output"), "gather_facts": False}
        facts |= {"pod_state_dir": str(home / "pods")}
        gone = {"ansible_host": "127.0.0.1", "ansible_port": 9}  # nobody listens there
        hosts = {"pod-1": host | facts, "gone": gone | facts}
        (home / "hosts.yml").write_text(yaml.safe_dump({"trainers": {"hosts": hosts}}))

    def rent(self, run_ids: list[str], hours: float, usd_per_hour: float) -> None:
        """Let runs have a pod since some hours."""
        asked = time.time() - 3600 * hours
        Claims(self.home / "pods").make("pod-1", run_ids, asked, pod_id="p1", asked_at=asked, usd_per_hour=usd_per_hour)

    def play(self, url: str, tasks: list[dict[str, Any]], *arguments: str, **variables: Any) -> tuple[int, str]:
        """Run some tasks, as loudly as it goes; returns the exit code and what was printed: never the URL."""
        playbook = self.home / "play.yml"
        playbook.write_text(yaml.safe_dump([{"hosts": variables.pop("on", "pod-1"), "tasks": tasks}]))
        return self.run(url, str(playbook), *arguments, **{"run_plan": PLAN} | variables)

    def run(self, url: str, playbook: str, *arguments: str, **variables: Any) -> tuple[int, str]:
        """Run a playbook, as loudly as it goes; returns the exit code and what was printed: never the URL."""
        given = ["-e", json.dumps({k: v for k, v in variables.items() if k != "environment"})]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "PATH": f"{PLAYBOOK.parent}:{os.environ['PATH']}",
            "ANSIBLE_NOCOLOR": "1",
            "LORA_FORGE_NOTIFY_URL": url,
            **variables.get("environment", {}),
        }
        done = subprocess.run(
            [str(PLAYBOOK), "-vvv", "-i", str(self.home / "hosts.yml"), playbook, *arguments, *given],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=CONVERGE,
        )  # fmt: skip
        assert SECRET not in done.stdout
        return done.returncode, done.stdout

    def tell(self, url: str | list[str], *arguments: str, event: str = "failed", **variables: Any) -> str:
        """Tell of a run whose words came from a trainer, at one address or at each of several; returns the warnings."""
        addresses = [url] if isinstance(url, str) else url
        (self.home / "seen.json").write_text(json.dumps(SEEN))
        code, text = self.play(
            json.dumps(addresses),  # a secret, which the playbook does not show either
            [
                {"ansible.builtin.command": f"cat {self.home}/seen.json", "register": "said", "check_mode": False},
                {"ansible.builtin.set_fact": {"run_seen": "{{ said.stdout | from_json }}"}},
                {
                    "ansible.builtin.include_role": {"name": "run", "tasks_from": "notify"},
                    "vars": {
                        "run_event": event,
                        "run_event_detail": "{{ run_seen.detail }}",
                        "run_notify_url": "{{ (lookup('env', 'LORA_FORGE_NOTIFY_URL') | from_json)[item] }}",
                        "run_notify_timeout": "{{ 1 if run_notify_url is search('/0$') else 60 }}",
                    },
                    "loop": list(range(len(addresses))),
                },
            ],
            *arguments,
            **variables,
        )
        assert code == 0, text
        return "\n".join(line.strip() for line in text.splitlines() if line.startswith("  ! "))

    def role(self, url: str, role: str, entry: str, **variables: Any) -> tuple[int, str]:
        task = {"ansible.builtin.include_role": {"name": role, "tasks_from": entry}}
        return self.play(url, [task], **variables)


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Desk:
    return Desk(tmp_path)


# --- the message and its way


def test_json_after_an_error_of_the_server(desk: Desk, hook: Hook) -> None:
    hook.answers = [503, 200]
    # Two dollars and a half for it and for another one that is not delivered either.
    desk.rent(["witness-0", "mayor-0"], hours=2.5, usd_per_hour=2.0)
    began = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    assert desk.tell(hook.url, run_budget=BUDGET) == ""
    first, second = hook.told
    found = dict(second)
    assert began <= datetime.datetime.fromisoformat(found.pop("at")) <= datetime.datetime.now(datetime.timezone.utc)
    assert 2.5 <= found.pop("cost_usd") < 3
    assert found == {
        "event": "failed",
        "agent": "witness",
        "run_id": "witness-0",
        "trainer": "pod-1",
        "detail": DETAIL,
        "step": 3,
        "planned": 12,
        "loss": "nan",
        "eval_loss": 1.25,
        "url": None,
    }
    assert first["detail"] == DETAIL


def test_slack_is_known_by_its_host(desk: Desk, hook: Hook) -> None:
    proxy = {"http_proxy": f"http://127.0.0.1:{hook.server_port}"}
    assert desk.tell(f"http://hooks.slack.com/services/{SECRET}", environment=proxy) == ""
    assert hook.paths == [f"http://hooks.slack.com/services/{SECRET}"]
    head, detail = hook.told[0].pop("text").splitlines()
    assert hook.told == [{}]
    assert head == "witness failed: witness-0 on pod-1, step 3/12, loss nan, eval 1.25"
    assert detail == DETAIL.replace("&", "&amp;").replace("<b>", "&lt;b&gt;")


def test_slack_by_choice(desk: Desk, hook: Hook) -> None:
    assert desk.tell(hook.url, event="money", run_notify_form="slack") == ""
    assert hook.told[0]["text"].startswith("witness would cost too much: witness-0 on pod-1, step 3/12")


def test_what_does_not_arrive_is_a_warning(desk: Desk, hook: Hook) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, and nobody listens
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/{SECRET}"
        answers = [f"{hook.url}/{status}" for status in (404, 302, 500, 0)]
        wrong = [f"no-url-{SECRET}", f"http://[{SECRET}", f"gopher://{SECRET}/"]
        warned = desk.tell([*answers, nobody, *wrong]).splitlines()
    warning = "! «witness: failed» was not told: "
    assert warned[:5] == [
        f"{warning}the address in run_notify_url {words}"
        for words in (
            "answered with status 404",
            "answered with status 302",
            "answered with status 500",
            "did not answer within 1 s",
            "cannot be reached",
        )
    ]
    assert [line.startswith(f"{warning}the ") for line in warned[5:]] == [True] * 3
    asked = [path.rpartition("/")[2] for path in hook.paths]
    assert asked == ["404", "302", "500", "500", "500", "500", "0"]


@pytest.mark.parametrize("case", ["off", "unwanted", "check"])
def test_nobody_is_told(desk: Desk, hook: Hook, case: str) -> None:
    url = "" if case == "off" else hook.url
    wanted = ["finished", "stalled"] if case == "unwanted" else ["failed"]
    assert desk.tell(url, *(["--check"] if case == "check" else []), run_notify_on=wanted) == ""
    assert hook.told == []


# --- who tells what


@pytest.fixture
def trained(lab: Lab, desk: Desk) -> Any:
    """Starts a pretended training on the desk's trainer."""

    def start(*states: str, **settings: Any) -> pathlib.Path:
        run_dir = lab.make("witness-0", desk.root / "runs", **settings)
        lab.supervise(run_dir)
        if states:
            until(run_dir, *states)
        return run_dir

    return start


def test_a_failure_is_told_once(desk: Desk, hook: Hook, trained: Any) -> None:
    trained("failed", crash_at=3, crash_say="CUDA out of memory, {{ says }} the trainer")
    for _ in range(2):  # the second one only looks again
        code, text = desk.role(hook.url, "run", "watch")
        assert code == 2
        assert "witness-0 is failed" in text
    assert [(one["event"], one["step"], one["loss"]) for one in hook.told] == [("failed", 2, 1.0)]
    assert "CUDA out of memory, {{ says }} the trainer" in hook.told[0]["detail"]


def test_a_standstill_is_told_and_what_a_person_stopped_is_not(desk: Desk, hook: Hook, trained: Any) -> None:
    run_dir = trained(hang_at=3, stop_timeout=1)
    eventually(lambda: len(runs.observe(run_dir).events) > 2)
    code, _ = desk.role(hook.url, "run", "watch", run_stall_timeout=2)
    assert code == 2
    assert [(one["event"], one["detail"][:11]) for one in hook.told] == [("stalled", "no step for")]

    assert runs.stop(run_dir, 1)
    code, text = desk.role(hook.url, "run", "watch")
    assert code == 2
    assert "witness-0 is stopped" in text
    assert len(hook.told) == 1


def test_a_broken_cap_is_told_with_what_became_of_the_checkpoint(desk: Desk, hook: Hook, trained: Any) -> None:
    run_dir = trained(steps=2000)
    eventually(lambda: runs.observe(run_dir).checkpoint["step"])
    desk.rent(["witness-0"], hours=1.0, usd_per_hour=2.0)
    code, _ = desk.role(hook.url, "run", "watch", run_budget=BUDGET | {"since": time.time() - 3600})
    assert code == 2
    assert status(run_dir)["state"] == "stopped"
    [told] = hook.told
    assert (told["event"], told["planned"]) == ("money", 2000)
    assert "pod_max_usd is 1.00. What there is was kept; with a higher cap the same command goes on" in told["detail"]
    assert 2 <= told["cost_usd"] < 3


def test_what_cannot_be_stopped_is_told_all_the_same(desk: Desk, hook: Hook, trained: Any) -> None:
    run_dir = trained(hang_at=3, stop_timeout=1)
    eventually(lambda: len(runs.observe(run_dir).events) > 2)
    budget = BUDGET | {"since": time.time() - 3600}
    code, text = desk.role(hook.url, "run", "watch", run_budget=budget, run_stop_timeout="soon")
    assert code == 2, text
    [told] = hook.told
    assert told["event"] == "money"
    assert told["detail"].startswith("witness-0 could not be stopped (")
    assert "It goes on costing; playbooks/stop.yml -e role=witness stops it" in told["detail"]
    assert status(run_dir)["state"] == "running"


def test_watching_that_gives_up_is_told(desk: Desk, hook: Hook) -> None:
    code, text = desk.role(hook.url, "run", "watch", on="gone", run_unreachable_timeout=1)
    assert code == 2, text
    [told] = hook.told
    assert (told["event"], told["trainer"]) == ("failed", "gone")
    assert told["detail"].startswith("no connection for 0:01: ")


@pytest.mark.parametrize("attempt", [{}, {"pod_gpus": ["L40S"], "pod_attempt": 1}])
def test_a_launch_that_fails_is_told_once_and_on_a_pod_by_whoever_gives_up(
    desk: Desk, hook: Hook, attempt: dict[str, Any]
) -> None:
    launch = {"ansible.builtin.include_tasks": str(ROOT / "playbooks/tasks/launch_run.yml")}
    code, text = desk.play(hook.url, [launch], **attempt)  # of a plan that says too little to start anything
    assert code == 0, text
    assert [one["event"] for one in hook.told] == ([] if attempt else ["failed"])


def test_a_trainer_that_is_not_fit_and_one_that_does_not_answer_are_told_for_each_run(desk: Desk, hook: Hook) -> None:
    agents = {"pod-1": ["crew", "witness"], "gone": ["mayor"]}
    given = {"run_profile": "rehearsal", "trainer_lock": "trainer-cpu", "datasets_dir": "examples/datasets"}
    inventory = yaml.safe_load((desk.home / "hosts.yml").read_text())
    for name, facts in inventory["trainers"]["hosts"].items():
        facts |= {"agents": agents[name], "trainer_root": "/proc/forge", **given}
    (desk.home / "hosts.yml").write_text(yaml.safe_dump(inventory))
    own = ("-e", f"output_dir={desk.home}/output")
    code, text = desk.run(hook.url, "train.yml", "-e", "role=crew,mayor,witness", *own)
    assert code != 0, text
    told = {one["agent"]: one for one in hook.told}
    assert len(hook.told) == 3, text
    assert {agent: (one["event"], one["trainer"]) for agent, one in told.items()} == {
        "crew": ("failed", "pod-1"), "witness": ("failed", "pod-1"), "mayor": ("failed", "gone"),
    }  # fmt: skip
    assert "/proc/forge" in told["crew"]["detail"]
    assert told["mayor"]["detail"].startswith("gone does not answer: ")


def whole(run_dir: pathlib.Path) -> None:
    """Put an adapter into a pretended run that holds up."""
    tensors = {
        f"base_model.model.model.layers.0.self_attn.{module}.lora_{side}.weight": np.full(shape, 0.5, np.float32)
        for module in ("q_proj", "v_proj")
        for side, shape in (("A", (4, 8)), ("B", (6, 4)))
    }
    save_file(tensors, run_dir / "output/adapter_model.safetensors")
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "Qwen/Tiny"}
    (run_dir / "output/adapter_config.json").write_text(json.dumps(config))
    for name in ("output/tokenizer.json", "output/tokenizer_config.json", "axolotl.yml"):
        (run_dir / name).write_text("{}")


def test_an_adapter_is_told_of_when_it_is_here_and_when_it_does_not_hold_up(
    desk: Desk, hook: Hook, trained: Any
) -> None:
    run_dir = trained("finished")
    python = desk.root / "env" / environment.environment_name(ROOT / "requirements/trainer-cpu.txt") / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    keys = {"lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "base_model": "Qwen/Tiny", "sequence_len": 64}
    plan = PLAN | {
        "fingerprint": "f" * 64,
        "rehearsal": False,
        "recipe": keys,
        "recipe_sha256": "r" * 64,
        "datasets": [{"path": "t.jsonl", "use": "val", "sha256": "v" * 64, "examples": 3}],
    }
    known = {"trainer_lock": "trainer-cpu", "run_plan": plan}
    code, text = desk.role(hook.url, "adapter", "main", **known)
    assert code == 2
    assert "witness-0 is not verified: " in text
    assert [one["event"] for one in hook.told] == ["failed"], text
    assert "adapter_config.json is missing" in hook.told[0]["detail"]

    whole(run_dir)
    code, text = desk.role(hook.url, "adapter", "main", **known)
    assert code == 0, text
    told = hook.told[1]
    assert (told["event"], told["step"], told["planned"], told["loss"]) == ("finished", 8, 8, 0.25)
    assert told["detail"] == "latest points to it"
    home = desk.home / "output/adapters/witness"
    assert os.readlink(home / "latest") == "witness-0"
    manifest = json.loads((home / "witness-0/manifest.json").read_text())
    assert manifest["evaluation"]["source"] == "file"
    assert manifest["git"] == store.git_facts(ROOT)  # of the checkout, wherever the output is

    # The same training again, with a worse end: delivered, and latest stays.
    worse = desk.root / "runs/witness-0-2"
    shutil.copytree(run_dir, worse)
    log = (worse / "metrics.jsonl").read_text()
    (worse / "metrics.jsonl").write_text(log.replace('"eval_loss": 0.2625', '"eval_loss": 0.3'))
    code, text = desk.role(hook.url, "adapter", "main", **known | {"run_plan": plan | {"run_id": "witness-0-2"}})
    assert code == 0, text
    assert os.readlink(home / "latest") == "witness-0"
    assert hook.told[2]["detail"].startswith("latest stays at witness-0: eval 0.3 is 14.3 % worse than its 0.2625 (")
    assert len(hook.told) == 3, text
