"""Pods of the simulated RunPod, which are real containers: every fault ends right, and nothing is left rented."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import rundir
import yaml
from seen import Seen

from .conftest import CONVERGE, ROOT, Playing, eventually, hold, planned, playing, release

KEY = "simulated-key"
SMALL = {"max_steps": 6, "save_steps": 3, "warmup_steps": 1, "gradient_accumulation_steps": 1}


class RunPod:
    """The simulator, from its tests' side: faults, and what it saw."""

    def __init__(self, url: str, state_dir: pathlib.Path):
        self.url, self.state_dir = url, state_dir

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        with urllib.request.urlopen(request, timeout=CONVERGE) as answer:
            return json.loads(answer.read() or b"null")

    def faults(self, **faults: Any) -> None:
        self.ask("POST", "/sim/faults", faults)

    def do(self, pod: str, what: str, **more: Any) -> None:
        self.ask("POST", f"/sim/pods/{pod}/do", {"what": what, **more})

    def state(self) -> dict[str, Any]:
        return self.ask("GET", "/sim/state")

    def seed(self, path: str) -> pathlib.Path:
        """Return a folder that the volume of every pod begins with from now on."""
        folder = self.state_dir / "seed" / path
        folder.mkdir(parents=True)
        return folder

    def pods(self, owner: str = "") -> list[dict[str, Any]]:
        """List the pods that cost money now, of one owner or of all."""
        found = [pod for pod in self.state()["pods"] if pod["status"] != "TERMINATED"]
        return [pod for pod in found if f"-{owner}-" in pod["name"] or not owner]


@pytest.fixture(scope="session")
def runpod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPod]:
    """Provide one simulator for all tests; in the end every pod is gone, and RunPod's description was kept to."""
    home = tmp_path_factory.mktemp("runpod")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/fakes/runpod/simulator.py"), "serve", "--port", "0",
             "--state", str(home / "state")],
            stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "CONTAINERS_CONF": str(ROOT / "tests/hosts/containers.conf")},
        )  # fmt: skip

    def url() -> Any:
        assert process.poll() is None, (home / "log").read_text()
        return re.search(r"http://\S+", (home / "log").read_text())

    made = RunPod(eventually(url, "the simulator").group(0), home / "state")
    yield made
    violations = made.state()["violations"]
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(CONVERGE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)  # it writes down where its threads are
        eventually(lambda: "Thread 0x" in (home / "log").read_text(), "its threads")
        code = None
    assert code == 0, (home / "log").read_text()
    assert not violations


class Renter:
    """A checkout's controller with pods: an inventory file, claims and an output folder of its own."""

    def __init__(self, home: pathlib.Path, runpod: RunPod, recipe: dict[str, Any] | None = None, **variables: Any):
        self.home, self.runpod, self.recipe = home, runpod, recipe or {}
        self.state, self.output = home / "pods", home / "output"
        home.mkdir(parents=True, exist_ok=True)
        plain = yaml.safe_load((ROOT / "tests/fakes/runpod/pods.yml").read_text())
        self.declare(
            {"pod-1": None}, **{**plain["vars"], "pod_unreachable_timeout": 30, "run_wandb": "disabled", **variables}
        )
        self.started: list[Playing] = []

    def declare(self, pods: dict[str, Any], **variables: Any) -> None:
        self.variables = {**getattr(self, "variables", {}), **variables}
        inventory = {"plugin": "runpod", "pods": pods, "vars": self.variables}
        (self.home / "runpod.yml").write_text(yaml.safe_dump(inventory))

    @property
    def owner(self) -> str:
        return (self.state / "owner").read_text().strip()

    def start(self, playbook: str, *arguments: str, **environment: str) -> Playing:
        log = self.home / f"play-{len(self.started)}.log"
        shared = json.dumps({"output_dir": str(self.output), "recipe": self.recipe})
        known = {"LORA_FORGE_PODS": str(self.state), "RUNPOD_API_URL": self.runpod.url, "RUNPOD_API_KEY": KEY}
        process = playing(
            (playbook, "-i", str(self.home / "runpod.yml"), "-e", shared, *arguments), ROOT, log, known | environment
        )
        self.started.append(Playing(process, log))
        return self.started[-1]

    def play(self, playbook: str, *arguments: str, seconds: float = CONVERGE, **more: str) -> tuple[int, str]:
        played = self.start(playbook, *arguments, **more)
        return played.wait(seconds), played.text()

    def run_id(self, agent: str) -> str:
        """Return what a run of an agent will be called."""
        code, text = self.play("playbooks/plan.yml", "-e", f"role={agent}")
        assert code == 0, text
        return planned(self.output, agent)

    def claims(self) -> list[dict[str, Any]]:
        return [rundir.read_json(path) for path in (self.state / "claims").glob("*.json")]

    def rented(self) -> list[dict[str, Any]]:
        return self.runpod.pods(self.owner) if (self.state / "owner").exists() else []


@pytest.fixture
def renters(tmp_path: pathlib.Path, runpod: RunPod) -> Iterator[Callable[..., Renter]]:
    """Provide a maker of renters. After the test no fault is left, and no pod."""
    made: list[Renter] = []

    def make(**variables: Any) -> Renter:
        made.append(Renter(tmp_path / str(len(made)), runpod, **variables))
        return made[-1]

    yield make
    runpod.ask("DELETE", "/sim/faults")
    shutil.rmtree(runpod.state_dir / "seed", ignore_errors=True)
    for renter in made:
        for played in renter.started:
            played.kill()
    for pod in runpod.pods():
        runpod.do(pod["id"], "vanish")


# What goes wrong on the way to a pod, all in one life, what is seen of it, and how many orders it takes. Each life ends
# with one pod that answers, and is released.
LIVES: dict[str, tuple[dict[str, Any], dict[str, tuple[str, str]], int]] = {
    "a crowded evening": (
        {
            "no_capacity": {"gpu": "NVIDIA L40S"},
            "stale_port": {"seconds": 3, "times": 1},
            "ssh_delay": {"seconds": 4, "times": 1},
            "slow": {"seconds": 1, "times": 3},
        },
        {
            "no capacity for the first GPU": ("NVIDIA A100-SXM4-80GB, SECURE.*ordered", "the next candidate"),
            "a stale port, then an sshd that comes up late": ("no SSH answer", "the port is read again"),
            "an API that takes a second for everything": ("", "no difference"),
        },
        2,
    ),
    "refusals": (
        {
            "create_status": [{"status": 403, "times": 1}, {"status": 429, "retry_after": 1, "times": 1}],
            "create_although": {"status": 500, "times": 1},
        },
        {
            "403 for the first GPU": ("NVIDIA A100-SXM4-80GB|looking for its pod", "the next candidate"),
            "429 with Retry-After": ("", "waited as long as it says"),
            "500 to the order, although the pod was made": ("looking for its pod", "found by its name"),
        },
        3,
    ),
    "lost answers": (
        {
            "drop_answer": {"method": "POST", "path_contains": "/v2/pods", "times": 1},
            "late_list": {"seconds": 3},
            "refuse": {"method": "GET", "path_contains": "/v2/catalog", "status": 502, "times": 2},
        },
        {
            "the answer to the order is dropped, and the pod is listed late": (
                "looking for its pod", "found by its name, not ordered again",
            ),
            "502 to the catalogue": ("", "asked again"),
        },
        1,
    ),
    "bad machines": (
        {"stuck_provisioning": {"times": 1}, "boots_to": [{"status": "ERROR", "times": 1}]},
        {
            "stuck in PROVISIONING": ("is released: it did not answer SSH within", "released; another one"),
            "boots to ERROR": ("is released: it is ERROR", "released; another one"),
        },
        3,
    ),
    "no stock": (
        {"no_capacity": {"times": 2}},
        {"no capacity at all, for a while": ("no capacity for NVIDIA L40S, .*ordered", "asked again later")},
        3,
    ),
}  # fmt: skip


LONG = {"bad machines", "no stock"}  # what waits for minutes; each of the others waits for seconds


@pytest.mark.parametrize(
    "life", [pytest.param(life, marks=[pytest.mark.soak] if life in LONG else []) for life in LIVES]
)
def test_a_pod_is_had_all_the_same(life: str, renters: Callable[..., Renter], runpod: RunPod, seen: Seen) -> None:
    faults, expected, orders = LIVES[life]
    renter = renters(pod_boot_timeout=90 if life == "bad machines" else CONVERGE)
    runpod.faults(**faults)
    before = len(runpod.state()["requests"])
    code, text = renter.play("tests/e2e/order.yml")
    assert code == 0, text
    assert not renter.rented()
    state = runpod.state()
    asked = [one for one in state["requests"][before:] if one["path"].startswith("/v2")]
    assert sum(one["method"] == "POST" for one in asked) == orders
    last = [claim for claim in renter.claims() if claim["word"] == "its adapters are collected"]
    assert len(last) == 1
    assert last[0]["ready_at"]
    mine = [pod for pod in state["pods"] if f"-{renter.owner}-" in pod["name"]]
    assert sorted(pod["id"] for pod in mine) == sorted(claim["pod_id"] for claim in renter.claims())
    assert all(pod["usd"] <= 2.00 * 2 for pod in mine)
    for fault, (said, words) in expected.items():
        assert re.search(said, text, re.S), text
        seen(fault, "RunPod", f"{words}; a pod that answers, released in the end, none left ({len(asked)} requests)")


# What cannot be helped: nothing is rented afterwards, and the sentence says what to do.
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "402: no balance": ({"create_status": {"status": 402}}, {}, "add credit"),
    "403 for every GPU": ({"create_status": {"status": 403}}, {}, "read and write access"),
    "no capacity until the timeout": (
        {"no_capacity": True}, {"pod_order_timeout": 5}, r"no capacity for NVIDIA L40S.*within 5 s.*Nothing is rented",
    ),
    "a page of HTML": ({"html_error": {"status": 404}}, {}, "404"),
    "an image without sshd": (
        {}, {"pod_image": "somebody/no-sshd:1", "pod_boot_timeout": 8, "pod_attempts": 1},
        r"did not answer SSH within 8 s.*image without sshd",
    ),
    "no host key in the log": (
        {"no_host_keys_in_log": True}, {"pod_boot_timeout": [8, 40, 200], "pod_attempts": 1},
        "its log shows no host key",
    ),
    "a price above the catalogue's": ({"wrong_cost": {"factor": 4}}, {}, "released at once"),
    "an unknown GPU": ({}, {"pod_gpus": ["NVIDIA L40"]}, "did you mean «NVIDIA L40S»"),
    "a cap below every price": ({}, {"pod_max_usd_per_hour": 0.1}, "cheapest of them is NVIDIA L40S at"),
    "a volume of another data center": (
        {}, {"pod_network_volume": "vol-eu", "pod_data_centers": ["US-TX-3"]}, "is in EU-RO-1",
    ),
    "no key": ({}, {"api_key": ""}, "RUNPOD_API_KEY is not set. Make a key"),
    "a wrong key": ({}, {"api_key": "rpa_wrong"}, "RUNPOD_API_KEY is not accepted"),
    "an option that is not there": ({}, {"pod_gpu": ["NVIDIA L40S"]}, "no option pod_gpu; did you mean «pod_gpus»"),
    "a public key that is none": ({}, {"pod_ssh_key": "{home}/bad"}, "no public key"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_helped_costs_nothing(
    fault: str, renters: Callable[..., Renter], runpod: RunPod, seen: Seen
) -> None:
    faults, variables, said = REFUSED[fault]
    renter = renters()
    own = {
        name: value.format(home=renter.home) if isinstance(value, str) else value for name, value in variables.items()
    }
    key = own.pop("api_key", KEY)
    (renter.home / "bad").write_text("x")
    (renter.home / "bad.pub").write_text("ssh-ed25519 not-base64\n")
    runpod.faults(**faults)
    foreseen = not faults and "no-sshd" not in own.get("pod_image", "")
    what = ("playbooks/plan.yml", "-e", "role=witness") if foreseen else ("tests/e2e/order.yml",)
    # What is told of a pod whose sshd answers is waited for: on a busy machine the first patience may be too short.
    patience = own.pop("pod_boot_timeout", CONVERGE)
    for seconds in patience if isinstance(patience, list) else [patience]:
        renter.declare({"pod-1": None}, **own, pod_boot_timeout=seconds)
        code, text = renter.play(*what, RUNPOD_API_KEY=key)
        assert code != 0, text
        assert "Traceback" not in text
        assert KEY not in text
        if re.search(said, " ".join(text.split())):
            break
    else:
        raise AssertionError(text)
    runpod.ask("DELETE", "/sim/faults")
    assert not renter.rented()
    assert not [claim for claim in renter.claims() if not claim["released_at"]]
    seen(
        fault, "RunPod", "found by the plan" if foreseen else "an error that says what to do; nothing rented in the end"
    )


def test_a_container_made_anew_is_not_believed_until_its_pin_is_removed(
    renters: Callable[..., Renter], runpod: RunPod, seen: Seen
) -> None:
    renter = renters()
    code, text = renter.play("tests/e2e/order.yml", "-e", "pod_keep=true")
    assert code == 0, text
    (pod,) = renter.rented()
    runpod.do(pod["id"], "move_port", stale_seconds=2)  # another disk, port and host key; the API is late to say so
    code, text = renter.play("tests/e2e/order.yml")
    assert code != 0, text
    said = re.search(r"Where you know why, remove (\S+), and the same command pins", " ".join(text.split()))
    assert said, text
    assert [one["id"] for one in renter.rented()] == [pod["id"]]
    pathlib.Path(said[1]).unlink()
    code, text = renter.play("tests/e2e/order.yml")
    assert code == 0, text
    assert not renter.rented()
    assert len(renter.claims()) == 1
    seen("the container is made anew: other port and host key, and the API names the old port for a while", "pod",
         "an error that says what to do, the pod kept; the pin removed by hand, the new key is pinned from the "
         "log")  # fmt: skip


@pytest.mark.soak
def test_a_training_outlives_its_pod(renters: Callable[..., Renter], runpod: RunPod, seen: Seen) -> None:
    renter = renters(recipe={**SMALL, "plugins": ["hold.Hold"]})
    there = runpod.seed(f"lora-forge/runs/{renter.run_id('witness')}")
    hold(there, step=3)
    runpod.faults(gpu={"word": "none", "times": 1})
    played = renter.start("train.yml", "-e", "role=witness")
    played.says("pod-1: released; it cost .*did not pass the gate")
    played.says("checkpoint 3 is on the controller")
    (pod,) = renter.rented()
    assert len(renter.claims()) == 2
    release(there)
    runpod.do(pod["id"], "vanish")
    assert played.wait() == 0, played.text()
    text = played.text()
    manifest = rundir.read_json(renter.output / "adapters/witness/latest/manifest.json")
    assert manifest["steps"] == {"planned": 6, "reached": 6, "adapter": 6}
    assert not renter.rented()
    assert len(renter.claims()) == 3
    assert set(re.findall(r"resumed from step (\d+)", text)) == {"3"}
    spent = sum(claim["usd"] for claim in renter.claims())
    assert 0 < manifest["cost"]["usd"] <= spent + 0.001
    assert f"cost {manifest['cost']['usd']:.2f} USD" in text
    assert not (renter.output / "runs" / manifest["run_id"]).exists()
    seen("a pod without its GPU", "pod", "found before anything is installed; released, and another one ordered")
    seen("the pod is deleted in mid-run", "pod", "another one is ordered; resumed there from step 3; verified")


@pytest.mark.soak
def test_a_training_that_would_cost_too_much_stops_with_a_checkpoint_and_goes_on_with_a_higher_cap(
    renters: Callable[..., Renter], runpod: RunPod, seen: Seen
) -> None:
    # No machine does so many steps for pod_max_usd, and each one boots for less.
    renter = renters(recipe={**SMALL, "max_steps": 500_000, "save_steps": 500_000})
    code, text = renter.play("train.yml", "-e", "role=witness", "-e", "pod_max_usd=0.02")
    assert code != 0
    assert re.search(r"would take about .* USD; .*pod_max_usd 0.02. Nothing was ordered", text), text
    assert not renter.claims()
    code, text = renter.play("train.yml", "-e", "role=witness", "-e", "pod_max_usd=0.5")
    assert code != 0, text
    assert re.search(r"is stopped at step \d+: .* USD, and\s+pod_max_usd is 0.50", text), text
    assert not renter.rented()
    assert sum(claim["usd"] for claim in renter.claims()) < 0.5
    played = renter.start("train.yml", "-e", "role=witness", "-e", "pod_max_usd=3000", "-e", "pod_max_hours=3000")
    step = int(re.findall(r"is stopped at step (\d+)", text)[0])
    assert step > 0
    played.says(r"started \(tmux")
    played.kill()
    (pod,) = renter.rented()
    (log,) = (runpod.state_dir / "disk/pods" / pod["id"]).glob("lora-forge/runs/*/supervisor.log")
    eventually(lambda: f"from step {step}" in log.read_text(), log.read_text)
    seen("the measured pace would break pod_max_usd", "pod",
         "checkpoint, fetched, released; with a higher cap it goes on from there")  # fmt: skip


def test_two_pods_of_one_name_are_an_error(renters: Callable[..., Renter]) -> None:
    renter = renters()
    text = (renter.home / "runpod.yml").read_text()
    (renter.home / "runpod.yml").write_text(text.replace("  pod-1: null\n", "  pod-1: null\n  pod-1: null\n"))
    code, text = renter.play("playbooks/plan.yml", "-e", "role=witness")
    assert code != 0
    assert re.search("duplicate.*pod-1", text, re.I), text


@pytest.mark.soak
def test_a_run_that_fails_keeps_its_pod_and_says_what_that_costs(
    renters: Callable[..., Renter], runpod: RunPod, seen: Seen
) -> None:
    renter = renters(recipe={**SMALL, "activation_offloading": True})
    code, text = renter.play("train.yml", "-e", "role=witness")
    assert code != 0
    assert "failed: configuration" in text, text
    assert "activation_offloading requires gradient_checkpointing" in " ".join(text.split()), text
    assert re.search(r"It costs 0\.86 USD/h until its leash ends it at \d{4}-\d\d-\d\d \d\d:\d\d", text), text
    assert "playbooks/release.yml -e pod=pod-1" in text
    (pod,) = renter.rented()
    (status,) = (runpod.state_dir / "disk/pods" / pod["id"]).glob("lora-forge/runs/*/status.json")
    assert rundir.read_json(status)["starts"] == 1
    assert not (renter.output / "adapters").exists()
    code, text = renter.play("playbooks/release.yml", "-e", "pod=pod-1")
    assert code == 0, text
    assert not renter.rented()
    seen("a recipe that Axolotl refuses", "pod", "not retried; the pod is kept for its logs, with what it costs and "
         "until when; release.yml gives it up")  # fmt: skip


@pytest.mark.soak
def test_a_pod_whose_controller_died_ends_itself(renters: Callable[..., Renter], runpod: RunPod, seen: Seen) -> None:
    renter = renters(pod_max_hours=0.02)
    runpod.faults(ssh_delay={"seconds": 20, "times": 1})
    played = renter.start("tests/e2e/order.yml")
    played.says("booting: NVIDIA.* ordered")
    played.kill()
    (pod,) = renter.rented()
    eventually(lambda: not renter.rented(), "the leash")
    ended = next(one for one in runpod.state()["pods"] if one["id"] == pod["id"])
    (claim,) = renter.claims()
    assert ended["ended_by"] == "pod"
    assert claim["deadline"] <= ended["ended"]
    seen("the controller dies before SSH answers", "pod", "its leash ends it, "
         f"{ended['ended'] - claim['deadline']:.0f} s after the deadline")  # fmt: skip
    code, text = renter.play("tests/e2e/order.yml")
    assert code != 0
    assert "its leash ended the pod" in text


def test_a_leash_that_is_refused_says_so_and_reap_releases(
    renters: Callable[..., Renter], runpod: RunPod, seen: Seen
) -> None:
    renter, other = renters(pod_max_hours=0.004), renters()
    runpod.faults(self_termination_refused={"status": 403}, ssh_delay={"seconds": 0})
    for one in (renter, other):
        played = one.start("tests/e2e/order.yml")
        played.says("booting: NVIDIA")
        played.kill()
    (pod,) = renter.rented()

    def refused() -> bool:
        return any("COULD NOT END THIS POD (403" in path.read_text() for path in (runpod.state_dir / "logs").iterdir())

    eventually(refused, "the leash's loud line")
    code, text = renter.play("playbooks/reap.yml")
    assert code == 0, text
    assert re.search(rf"pod-1 +{pod['id']} +this checkout .* nothing", text), text
    assert "another" in text
    assert "-e confirm=true" in text
    assert len(renter.rented()) == 1
    code, text = renter.play("playbooks/reap.yml", "-e", "confirm=true")
    assert code == 0, text
    assert not renter.rented()
    assert len(other.rented()) == 1
    seen(
        "the pod may not end itself",
        "pod",
        "its log says so, each minute; reap.yml lists and releases it",
    )
