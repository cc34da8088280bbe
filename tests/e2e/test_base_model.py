"""The base model comes to its trainer: the real huggingface_hub, in its own environment, against a pretended hub."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import rundir
import yaml
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import recipe
from ansible.module_utils.lora_forge.trainer import base_model, environment
from hub import Hub, Model, tiny_model

from .conftest import CONVERGE, PLAYBOOK, ROOT, Checkout, eventually
from .test_learning import SMALL, Bench

NAME = "Acme/Tiny"
SECOND = "model-00002-of-00002.safetensors"
MIB = 1024 * 1024
LOCK = ROOT / "requirements/trainer-cpu.txt"


@pytest.fixture(scope="session")
def hub_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the Python of the small environment, made as a trainer makes it."""
    root, lock = tmp_path_factory.mktemp("hub"), ROOT / "requirements/hub.txt"
    python = environment.interpreter("", True, root.parent)
    environment.ensure(root, lock, str(ROOT / ".venv/bin/uv"), python, "")
    return str(root / environment.environment_name(lock) / "bin/python")


class Site:
    """A trainer's HF_HOME, and the program as it is staged there (of a faster pulse)."""

    def __init__(self, home: pathlib.Path, python: str, hub: Hub):
        self.home, self.python, self.hub = home / "hf", python, hub
        staged = home / "bin"
        staged.mkdir()
        text = (ROOT / "roles/trainer/files/fetch_model.py").read_text()
        for old, new in (("HEARTBEAT = 1.0 ", "HEARTBEAT = 0.05 "), ("BACKOFF = 1.0 ", "BACKOFF = 0.01 ")):
            assert old in text
            text = text.replace(old, new)
        self.program = staged / "fetch_model.py"
        self.program.write_text(text)
        shutil.copy(ROOT / "module_utils/lora_forge/rundir.py", staged)

    def state_dir(self, revision: str = "") -> pathlib.Path:
        return base_model.state_dir(NAME, revision, self.home)

    def begin(self, revision: str = "", token: str = "") -> bool:
        return base_model.start_fetch(NAME, revision, self.home, self.python, str(self.program), token)

    def look(self, revision: str = "") -> dict[str, Any]:
        return base_model.model_state(NAME, revision, self.home)

    def until(self, *states: str, revision: str = "") -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            found = self.look(revision)
            return found if found["state"] in states else None

        try:
            return eventually(reached, f"{states}")
        except AssertionError:
            log = (self.state_dir(revision) / "fetch.log").read_text()
            raise AssertionError(f"{self.look(revision)}\n{log}") from None

    def fetch(self, revision: str = "", token: str = "") -> dict[str, Any]:
        """Fetch to the end, good or bad; the process has ended, too."""
        assert self.begin(revision, token)
        found = self.until("present", "failed", revision=revision)
        noted = rundir.read_json(self.state_dir(revision) / "status.json")["process"]
        eventually(lambda: not rundir.is_alive(noted), "the fetch ends after its last word")
        return found

    def kill(self) -> None:
        for status in self.home.glob("lora-forge/*/status.json"):
            noted = rundir.read_json(status).get("process")
            if rundir.is_alive(noted):
                os.kill(noted["pid"], signal.SIGKILL)
                eventually(lambda noted=noted: not rundir.is_alive(noted), "a killed process goes")


@pytest.fixture
def site(tmp_path: pathlib.Path, hub_python: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    hub = Hub()
    hub.models[NAME] = Model(tiny_model())
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    made = Site(tmp_path, hub_python, hub)
    yield made
    made.kill()
    hub.close()


def test_it_is_fetched_once(site: Site) -> None:
    more = {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"twice", "original/params.json": b"{}"}
    site.hub.models[NAME].files |= {**more, "README.md": b"words", "chat_template.jinja": b"{{ x }}"}
    files = site.hub.models[NAME].files
    found = site.fetch()
    assert found["state"] == "present", found
    snapshot = pathlib.Path(found["folder"])
    there = {str(path.relative_to(snapshot)): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}
    assert there == {name: content for name, content in files.items() if name not in {*more, "README.md"}}
    assert found["bytes"] == found["total_bytes"] == sum(map(len, there.values()))
    assert (snapshot.parents[1] / "refs/main").read_text() == snapshot.name == site.hub.models[NAME].commit
    assert base_model.local_size(snapshot) == 6 * MIB

    site.hub.requests.clear()
    assert not site.begin()
    assert site.look() == found
    assert site.hub.requests == []


def test_a_commit_is_a_revision(site: Site) -> None:
    commit = site.hub.models[NAME].commit
    found = site.fetch(revision=commit)
    assert found["folder"].endswith(f"/snapshots/{commit}")
    assert site.look()["state"] == "absent"  # main is another question
    main = site.home / f"hub/models--{NAME.replace('/', '--')}/refs/main"
    assert main.read_text() == commit  # and still the answer where Axolotl asks for the name alone
    main.write_text("f" * 40)
    (site.state_dir(commit) / "complete.json").unlink()
    assert site.fetch(revision=commit)["state"] == "present"
    assert main.read_text() == "f" * 40  # somebody fetched it as it was then
    assert site.fetch()["state"] == "present"
    assert main.read_text() == commit


def test_weights_in_one_file(site: Site) -> None:
    site.hub.models[NAME] = Model(tiny_model(shards=1))
    assert site.fetch()["state"] == "present"


def test_a_killed_fetch_goes_on_where_it_was(site: Site) -> None:
    site.hub.hold[SECOND] = 2 * MIB
    site.begin()
    eventually(lambda: site.look()["bytes"] > 5 * MIB, "one shard and two thirds of the other are there")
    seen = site.look()
    assert (seen["state"], seen["error"]) == ("fetching", "")
    assert seen["bytes"] < seen["total_bytes"]
    assert not site.begin()
    site.kill()
    assert site.look()["state"] == "absent"
    site.hub.release(cut=True)
    first = dict(site.hub.sent)
    assert site.fetch()["state"] == "present"
    assert site.hub.ranges(SECOND) == ["", f"bytes={2 * MIB}-"]
    assert {name: count - first[name] for name, count in site.hub.sent.items() if count > first[name]} == {SECOND: MIB}


def test_a_cut_connection_goes_on_where_it_was(site: Site) -> None:
    site.hub.drop[SECOND] = 2 * MIB + 5
    assert site.fetch()["state"] == "present"
    assert site.hub.ranges(SECOND) == ["", f"bytes={2 * MIB}-"]
    assert "attempt 1: " in (site.state_dir() / "fetch.log").read_text()


def test_a_passing_error_of_the_hub_is_ridden_out(site: Site) -> None:
    site.hub.refuse[SECOND] = 2
    assert site.fetch()["state"] == "present"


def test_a_lasting_error_of_the_hub_is_told_and_the_next_try_goes_on(site: Site) -> None:
    site.hub.refuse[SECOND] = 6
    found = site.fetch()
    assert found["state"] == "failed"
    assert f"({site.hub.url}) answers with HTTP 500 for {NAME}. Run the same command again later" in found["error"]
    first = dict(site.hub.sent)
    assert site.fetch()["state"] == "present"
    assert site.hub.sent["model-00001-of-00002.safetensors"] == first["model-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("access", "token", "words"),
    [
        ("gated", "", "is gated. Accept its licence on its page ({page}), then export HF_TOKEN=… where you run"),
        ("gated", "hf_stranger", "is gated, and the account of HF_TOKEN has no access to it. Ask for it on its page"),
        ("gated", "hf_wrong", "the hub does not accept HF_TOKEN: it is mistyped or was revoked."),
        ("private", "", "the hub shows no model {name}: there is none of this name, or it is private and no HF_TOKEN"),
        ("private", "hf_stranger", "or it is private and the account of HF_TOKEN has no access to it"),
    ],
)
def test_who_may_not_read_it_is_told_why(site: Site, access: str, token: str, words: str) -> None:
    setattr(site.hub.models[NAME], access, True)
    found = site.fetch(token=token)
    assert found["state"] == "failed"
    assert words.format(name=NAME, page=f"{site.hub.url}/{NAME}") in found["error"]
    assert not site.hub.sent
    assert site.fetch(token="hf_good")["state"] == "present"  # what failed is tried again
    for path in site.home.rglob("*"):
        assert path.is_dir() or b"hf_good" not in path.read_bytes(), f"the token stands in {path}"


def test_no_such_model_and_no_such_revision(site: Site) -> None:
    assert f"{NAME} has no revision «v9»" in site.fetch(revision="v9")["error"]
    site.hub.models.clear()
    assert f"the hub shows no model {NAME}" in site.fetch()["error"]


def test_pickles_are_not_fetched(site: Site) -> None:
    site.hub.models[NAME] = Model({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    found = site.fetch()
    assert f"{NAME} has no safetensors weights" in found["error"]
    assert not (site.home / "hub").exists()


def test_a_repository_that_lacks_a_shard(site: Site) -> None:
    del site.hub.models[NAME].files[SECOND]
    assert f"{NAME} lacks {SECOND}, which its model.safetensors.index.json names" in site.fetch()["error"]


def test_what_the_disk_cannot_hold_is_not_begun(site: Site) -> None:
    site.hub.models[NAME].announced[SECOND] = 10**15
    found = site.fetch()
    assert f"{NAME} needs 1000000.0 GB more in {site.home}/hub, and its disk has " in found["error"]
    assert not site.hub.sent


def test_a_size_that_is_not_the_announced_one(site: Site) -> None:
    site.hub.models[NAME].announced[SECOND] = 3 * MIB + 1
    assert f"{SECOND} has {3 * MIB} bytes instead of {3 * MIB + 1}" in site.fetch()["error"]


def test_no_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = site.fetch()
    assert found["error"].startswith("no connection to the hub (http://127.0.0.1:9): ")
    assert "name a folder on the trainer" in found["error"]


def test_offline_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert f"HF_HUB_OFFLINE is set on this trainer, so {NAME} cannot be fetched" in site.fetch()["error"]


def test_what_was_deleted_or_spoilt_comes_again(site: Site) -> None:
    snapshot = pathlib.Path(site.fetch()["folder"])
    (snapshot / SECOND).resolve().unlink()
    with (snapshot / "model-00001-of-00002.safetensors").open("r+b") as file:
        file.truncate(1000)
    seen = site.look()
    assert seen["state"] == "absent"
    assert "it has to be fetched again" in seen["error"]
    assert site.fetch()["state"] == "present"
    assert (snapshot / SECOND).read_bytes() == site.hub.models[NAME].files[SECOND]
    assert (snapshot / "model-00001-of-00002.safetensors").stat().st_size == 3 * MIB


BEGIN = """
import pathlib, sys
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.lora_forge.trainer import base_model
name, revision, home, python, program = sys.argv[2:]
print(base_model.start_fetch(name, revision, pathlib.Path(home), python, program))
"""


def test_two_at_once_fetch_once(site: Site) -> None:
    site.hub.hold[SECOND] = MIB
    asked = [NAME, "", str(site.home), site.python, str(site.program)]
    command = [sys.executable, "-c", BEGIN, str(ROOT / "module_utils"), *asked]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=CONVERGE)[0] for process in both) == ["False\n", "True\n"]
    eventually(lambda: site.look()["bytes"] >= 4 * MIB, "it goes on")
    third = subprocess.run([site.python, str(site.program), str(site.state_dir())], timeout=CONVERGE, check=False)
    assert third.returncode == 0
    site.hub.release()
    assert site.until("present", "failed")["state"] == "present"
    assert set(site.hub.sent.values()) == {3 * MIB}


def test_a_python_without_huggingface_hub(site: Site) -> None:
    site.python = str(ROOT / ".venv/bin/python")
    assert "has no huggingface_hub" in site.fetch()["error"]


def test_a_python_that_is_broken(site: Site) -> None:
    site.python = "/bin/false"
    with pytest.raises(
        UserError, match=r"the fetch of the base model did not come up \(.*fetch.log\): it says nothing"
    ):
        site.begin()


PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
  tasks:
    - fetch_model:
        model: {model}
        home: {home}
        python: {python}
        program: {program}
        hf_token: hf_good
        unreachable_timeout: 10
"""


def play(site: Site, tmp_path: pathlib.Path, *arguments: str, name: str = NAME) -> tuple[int, str]:
    playbook = tmp_path / "play.yml"
    playbook.write_text(PLAY.format(model=name, home=site.home, python=site.python, program=site.program))
    done = subprocess.run(
        [str(PLAYBOOK), "-i", "localhost,", "-v", str(playbook), *arguments],
        cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "default"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=CONVERGE,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_task_shows_progress_and_knows_it_is_there(site: Site, tmp_path: pathlib.Path) -> None:
    site.hub.models[NAME].gated = True
    code, text = play(site, tmp_path, "--check")
    assert code == 0, text
    assert not site.home.exists()
    site.hub.hold[SECOND] = MIB
    threading.Thread(
        target=lambda: (eventually(lambda: site.look()["bytes"], "it goes"), site.hub.release()), daemon=True
    ).start()
    code, text = play(site, tmp_path)
    assert code == 0, text
    assert f"  localhost: {NAME}" in text
    assert f"  localhost: {NAME} is there" in text
    assert "hf_good" not in text
    assert f"folder: {site.look()['folder']}\n" in text
    assert "state: present\n" in text
    code, again = play(site, tmp_path)
    assert code == 0, again
    assert "changed=0" in again
    assert f"{NAME} is there" not in again


def test_the_task_fails_in_words(site: Site, tmp_path: pathlib.Path) -> None:
    code, text = play(site, tmp_path, name="Acme/Other")
    assert code == 2, text
    assert "the hub shows no model Acme/Other" in text
    assert "Traceback" not in text
    code, text = play(site, tmp_path, name="/no/such/folder")
    assert code == 2, text
    assert "the base model /no/such/folder is no folder on this trainer" in text


@pytest.mark.soak
def test_a_real_run_trains_on_what_was_fetched(
    checkout: Checkout, environment: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rehearsal: the model comes from the hub at its revision, and Axolotl finds it by name, offline."""
    data = ROOT / "examples/datasets/witness_train.jsonl"
    made = tmp_path / "model"
    subprocess.run([str(environment), str(ROOT / "roles/run/files/tiny_model.py"), str(made), str(data)], check=True)
    hub = Hub()
    hub.models["Acme/Tiny"] = Model({path.name: path.read_bytes() for path in made.iterdir()})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    recipe = yaml.safe_load((ROOT / "configs/profiles/rehearsal.yml").read_text()) | {
        "base_model": "Acme/Tiny",
        "model_revision": hub.models["Acme/Tiny"].commit,
        "max_steps": 4,
        "warmup_steps": 1,
    }
    try:
        code, text = checkout.play(
            "-e", "role=witness", "-e", "run_profile=", "-e", "trainer_gpu_required=false",
            "-e", json.dumps({"recipe": recipe}),
        )  # fmt: skip
    finally:
        hub.close()
    assert code == 0, text
    assert hub.sent["model.safetensors"] == (made / "model.safetensors").stat().st_size
    manifest = checkout.manifest()
    assert manifest["base_model"] == "Acme/Tiny"
    assert manifest["rehearsal"] is False
    assert json.loads((checkout.latest() / "adapter_config.json").read_text())["base_model_name_or_path"] == "Acme/Tiny"


# What the plan asks of Axolotl is tested elsewhere, and takes half a minute each time.
TAKES_ALL = """#!{python}
import json, sys
answer = {{"problems": [], "refused": [], "warnings": [], "unknown": "", "tensors": 0, "parameters": 0}}
print(json.dumps({{"axolotl": {axolotl!r}, "answers": [answer for _ in json.load(sys.stdin)], "left_out": []}}))
"""


class Bringing:
    """A checkout whose trainer fetches a base model from a pretended hub, with its weights or without."""

    def __init__(self, checkout: Checkout, made: pathlib.Path, stub: pathlib.Path):
        self.checkout, self.made, self.stub, self.hub = checkout, made, stub, Hub()
        self.hub.models[NAME] = Model({path.name: path.read_bytes() for path in made.iterdir()})

    def play(self, playbook: str, targets: list[str]) -> tuple[int, str]:
        recipe = yaml.safe_load((ROOT / "configs/profiles/rehearsal.yml").read_text()) | {
            "base_model": NAME,
            "model_revision": self.hub.models[NAME].commit,
            "lora_target_modules": targets,
        }
        given = json.dumps({"recipe": recipe})
        options = ("-e", "role=witness", "-e", "run_profile=", "-e", "trainer_gpu_required=false", "-e", given)
        code, text = self.checkout.play(*options, "-v", "-e", f"axolotl_environment={self.stub}", playbook=playbook)
        return code, " ".join(text.split())

    def run_dir(self) -> pathlib.Path:
        return self.checkout.run_dir(self.checkout.plan()["run_id"])


@pytest.fixture
def bringing(
    checkout: Checkout, environment: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bringing]:
    made = tmp_path / "model"
    data = ROOT / "examples/datasets/witness_train.jsonl"
    subprocess.run([str(environment), str(ROOT / "roles/run/files/tiny_model.py"), str(made), str(data)], check=True)
    stub = tmp_path / "python"
    stub.write_text(TAKES_ALL.format(python=sys.executable, axolotl=recipe.pinned_version(LOCK, "axolotl")))
    stub.chmod(0o755)
    one = Bringing(checkout, made, stub)
    monkeypatch.setenv("HF_ENDPOINT", one.hub.url)
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield one
    one.hub.close()


def test_what_a_base_model_does_not_take_is_refused_before_its_weights_are_there(bringing: Bringing) -> None:
    hub = bringing.hub
    hub.refuse["model.safetensors"] = 1000  # they never come
    code, text = bringing.play("train.yml", ["query", "key"])
    assert code != 0
    assert f"the recipe of witness does not go with its base model {NAME}: PEFT refuses the LoRA keys" in text
    assert "Target modules {" in text
    assert "not found in the base model" in text
    assert "Traceback" not in text
    assert not bringing.run_dir().exists(), "nothing was staged"
    asked = {path.rpartition("/")[2] for _, path, _ in hub.requests}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= asked
    assert "model.safetensors" not in hub.sent


@pytest.mark.soak
def test_what_a_base_model_takes_is_told_and_its_tensors_are_noted(bringing: Bringing) -> None:
    hub = bringing.hub
    code, text = bringing.play("playbooks/provision.yml", ["q_proj", "v_proj"])
    assert code == 0, text
    assert "the recipe of witness fits its base model: " in text, text
    assert "trained parameters in 8 tensors" in text
    assert hub.sent["model.safetensors"] == (bringing.made / "model.safetensors").stat().st_size
    run = bringing.run_dir()
    expected = run / "expected.json"
    assert (run.stat().st_mode & 0o777, expected.stat().st_mode & 0o777) == (0o700, 0o600)
    told = json.loads(expected.read_text())
    assert (told["base_model"], told["revision"]) == (NAME, hub.models[NAME].commit)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in told["tensors"]


# A Qwen2 as small as the rehearsal's model: Qwen2.5 is what the base recipe trains.
QWEN2 = """
import json, pathlib, sys
import numpy as np
import tiny_model
from safetensors.numpy import save_file

made, corpus = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.argv = ["tiny_model.py", str(made), str(corpus)]
tiny_model.main()
config = json.loads((made / "config.json").read_text())
config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
(made / "config.json").write_text(json.dumps(config))
weights = tiny_model.make_weights(config, 0)
weights = {name: weight for name, weight in weights.items() if not name.endswith(("q_norm.weight", "k_norm.weight"))}
biases = {name.replace("weight", "bias"): np.zeros(len(weight), np.float32) for name, weight in weights.items()
          if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")}
save_file(weights | biases, made / "model.safetensors", metadata={"format": "pt"})
"""


@pytest.mark.soak
def test_a_pinned_model_is_loaded_and_patched_with_lora_kernels(
    site: Site, tmp_path: pathlib.Path, environment: pathlib.Path
) -> None:
    """The way that a GPU takes, and a rehearsal does not: offline, a pinned commit, Axolotl's LoRA kernels."""
    corpus = ROOT / "examples/datasets/witness_train.jsonl"
    made = tmp_path / "qwen2"
    path = os.pathsep.join([str(ROOT / "roles/run/files"), str(ROOT / "module_utils/lora_forge")])
    quiet = {**os.environ, "PYTHONPATH": path}
    subprocess.run([str(environment), "-c", QWEN2, str(made), str(corpus)], check=True, timeout=CONVERGE, env=quiet)
    site.hub.models[NAME] = Model({file.name: file.read_bytes() for file in made.iterdir()})
    commit = site.hub.models[NAME].commit
    assert site.fetch(revision=commit)["state"] == "present"
    requests = len(site.hub.requests)

    bench = Bench(tmp_path / "trainer", environment, corpus.parent)
    kernels = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), True)
    bench.lay("pinned", SMALL | kernels)
    config = bench.folders["pinned"] / "axolotl.yml"
    pinned = {"base_model": NAME, "model_revision": commit}
    facts = bench.folders["pinned"] / "run.json"
    rundir.write_json(facts, rundir.read_json(facts) | {"rehearsal": False})  # whose model would be made
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | pinned))
    # Whatever asks without the commit finds nothing.
    (site.home / f"hub/models--{NAME.replace('/', '--')}/refs/main").unlink()
    bench.train(HF_HOME=str(site.home), HF_ENDPOINT=site.hub.url)
    log = bench.log("pinned")
    events, _ = rundir.read_events(bench.folders["pinned"] / "metrics.jsonl")
    kinds = [event["event"] for event in events if event["event"] in ("begin", "log", "end")]
    assert kinds == ["begin"], log[-3000:]
    # Loaded, patched, and in the forward pass of its first batch, where the kernels want a GPU.
    assert "in axolotl_attn_forward" in log, log[-3000:]
    assert "RuntimeError: invalid argument to getCurrentStream" in log.splitlines()[-1], log[-3000:]
    assert len(site.hub.requests) == requests
