"""The playbooks and modules as Ansible itself reads them, what inventories declare, and hosts of which none answers."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import simulator
import yaml
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.planning.run_record import update_record
from ansible.module_utils.lora_forge.pods.claims import Claims
from ansible.module_utils.lora_forge.pods.runpod import RunPod
from ansible.module_utils.lora_forge.version import describe_versions, full_version, git_facts
from delivered import deliver, events
from lab import ROOT

PATIENCE = 600  # seconds after which a command of Ansible's counts as one that hangs


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Ansible's in the checkout."""
    program, *arguments = words
    called = [str(ROOT / ".venv/bin" / program), *arguments]
    return subprocess.run(called, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


# --- what Ansible can read ------------------------------------------------------------------------------------------


def test_ansible_doc_reads_every_module() -> None:
    modules = sorted(path.stem for path in (ROOT / "library").glob("*.py"))
    done = command("ansible-doc", "--json", "-t", "module", "-M", "library", *modules)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == modules


def test_playbooks_parse() -> None:
    playbooks = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "playbooks").glob("*.yml"))
    done = command("ansible-playbook", "--syntax-check", "-e", "role=witness", "train.yml", *playbooks)
    assert done.returncode == 0, done.stderr + done.stdout
    read = [line.removeprefix("playbook: ") for line in done.stdout.splitlines() if line.startswith("playbook: ")]
    assert read == ["train.yml", *playbooks]


# --- inventories ----------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path):
    """Plan a whole inventory, or play something else; return what was printed, and the runs by agent."""

    def play(
        inventory: dict[str, Any] | str, *options: str, playbook: str = "playbooks/plan.yml", code: int = 0
    ) -> tuple[str, dict[str, Any]]:
        if isinstance(inventory, dict):
            (tmp_path / "fleet.yml").write_text(yaml.safe_dump(inventory))
            inventory = str(tmp_path / "fleet.yml")
        places = ["-e", f"datasets_dir={ROOT}/examples/datasets", "-e", f"output_dir={tmp_path}"]
        done = command("ansible-playbook", "-i", inventory, playbook, *places, *options)
        assert done.returncode == code, done.stdout
        plan = tmp_path / "plan.json"
        runs = json.loads(plan.read_text())["runs"] if plan.exists() else []
        return " ".join(done.stdout.split()), {run["agent"]: run for run in runs}

    return play


@pytest.mark.parametrize(
    ("inventory", "trainer"),
    [
        ("inventory/ssh.example.yml", "gpu-1.example.org"),
        ("inventory/this-gpu.example.yml", "localhost"),
        ("inventory/slurm.example.yml", "cluster"),
        ("gpu.example.org,", "gpu.example.org"),
    ],
)
def test_the_example_inventories_plan(planned, inventory, trainer):
    _, runs = planned(inventory, "-e", "role=witness")
    assert list(runs) == ["witness"]
    run = runs["witness"]
    assert (run["trainer"], run["rehearsal"], run["estimate"]["memory_gib"]) == (trainer, False, 24.4)


def test_the_plan_tells_the_versions_when_asked_for_more(planned):
    told = describe_versions(git_facts(ROOT))
    text, _ = planned("gpu.example.org,", "-e", "role=witness", "-v")
    assert text.index(told) < text.index("agent run trainer")
    text, _ = planned("gpu.example.org,", "-e", "role=witness")
    assert told not in text


def test_of_a_pod_that_cannot_be_found_an_archive_has_what_is_known_here(planned, tmp_path):
    pods = {"trainers": {"hosts": {"pod-1": {"pod_gpus": ["NVIDIA A40"]}}}}
    asked = ("-e", "role=witness", "-e", "run_will_start=false")
    text, _ = planned(pods, *asked, "-e", "bundle=true", playbook="playbooks/logs.yml")
    (archive,) = (tmp_path / "bundles").iterdir()
    assert f"{archive} is written" in text
    assert "as pod-1 could not be asked: RUNPOD_API_KEY is not set" in text
    text, _ = planned(pods, *asked, playbook="playbooks/logs.yml", code=2)  # a log is there or not
    assert "RUNPOD_API_KEY is not set" in text


@pytest.mark.parametrize("playbook", ["stop", "prune"])
def test_data_that_is_gone_keeps_nobody_from_a_run(planned, tmp_path, playbook):
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "trainer_root": str(tmp_path)}
    trainers = {"trainers": {"hosts": {"a": {}, "b": {}}, "vars": here}}
    run_id = "witness-0123456789ab"
    update_record(tmp_path, run_id, lambda record, now: record.launched("b", 0, now))
    gone = ("-e", "role=witness", "-e", f"datasets_dir={tmp_path}/none")
    text, runs = planned(trainers, *gone, "-v", playbook=f"playbooks/{playbook}.yml")
    assert "! witness: it cannot be planned, and its runs are those that were noted: no dataset for witness" in text
    assert runs["witness"]["run_id"] == run_id
    assert ("stop" in playbook) == (f"{run_id} does not run" in text)
    assert "b : ok=" in text
    assert "a : ok=" not in text


def test_agents_lanes_and_forks(planned):
    hosts = {
        "a": {
            "agents": "mayor, crew",
            "run_gpus": "{{ size }}",
            "size": 2,
            "run_lanes": ["GPU-1", "GPU-{{ size }}", "GPU-3", "GPU-4"],
        },
        "b": {"agents": ["deacon"], "run_gpus": "{{ unset_size }}"},
    }
    text, runs = planned({"trainers": {"hosts": hosts}}, "-f", "1")
    placed = {agent: (run["trainer"], run["lane"], run["gpus"]) for agent, run in runs.items()}
    assert {placed.pop("crew"), placed.pop("mayor")} == {("a", 0, 2), ("a", 1, 2)}
    assert placed == {"deacon": ("b", 0, 1)}
    assert "2 hosts have work, and Ansible works on 1 at once: nothing is launched on b before" in text
    hosts["b"]["agents"] = ["deacon", "{{ unset_agent }}"]  # without it the list would be shorter than was meant
    text, _ = planned({"trainers": {"hosts": hosts}}, code=2)
    assert "'unset_agent' is undefined" in text


def test_a_gang_is_one_group(planned):
    gang = {"hosts": {"a": {}, "b": {}}, "vars": {"run_hosts": 2}}
    trainers = {"children": {"gang": gang, "rest": {"hosts": {"c": {"agents": ["mayor"]}}}}}
    _, runs = planned({"trainers": trainers})
    assert (runs["crew"]["hosts"], runs["mayor"]["hosts"]) == (["a", "b"], ["c"])
    text, _ = planned({"trainers": trainers, "rack": {"hosts": {"b": {}, "c": {}}}}, code=2)
    assert "b: run_hosts is 2, and the groups rack, gang each hold it and so many hosts" in text


def test_the_plan_by_hand_of_a_host_that_the_inventory_lacks(tmp_path):
    given = f"hosts=localhost,elsewhere root={ROOT} output={tmp_path} agents=witness datasets_dir=examples/datasets"
    done = command("ansible", "localhost", "-m", "training_plan", "-a", f"{given} move=localhost")
    assert done.returncode == 0, done.stdout
    written = json.loads((tmp_path / "plan.json").read_text())
    (run,) = written["runs"]
    assert (run["trainer"], run["rehearsal"]) == ("elsewhere", False)
    assert written["version"] == full_version(git_facts(ROOT))
    done = command("ansible", "localhost", "-m", "training_plan", "-a", f"root={ROOT}")
    assert "missing required arguments: hosts, output" in done.stdout


def test_variables_of_the_users_own_are_not_evaluated(planned, tmp_path):
    own = {"trainer_colour": f"{{{{ lookup('pipe', 'touch {tmp_path}/asked') }}}}"}
    text, _ = planned({"trainers": {"hosts": {"a": own}}}, "-e", "role=witness")
    assert "! a: there is no option trainer_colour; it is ignored" in text
    assert not (tmp_path / "asked").exists()


def test_options_that_a_launch_would_refuse_are_refused_by_the_plan(planned):
    trainers = {"hosts": {"a": {"run_gpu": 2, "pod_max_usd_per_houre": 1, "trainer_colour": "red"}, "b": {}}}
    late = "{{ ansible_facts.default_ipv4.address }}"  # what is known only when the host was asked
    trainers["vars"] = {"run_notify_on": ["failed", "money"], "run_address": late}
    wrong = ("-e", "run_backend=sysemd", "-e", "run_stop_timeout=soon")
    text, runs = planned({"trainers": trainers}, "-e", "role=witness", *wrong, code=2)
    assert not runs
    assert "-e: run_backend is «sysemd»; it takes auto, systemd, tmux, process, slurm; did you mean «systemd»?" in text
    assert "-e: run_stop_timeout is «soon»; it takes a whole number" in text
    text, runs = planned({"trainers": trainers}, "-e", "role=witness", code=2)
    assert not runs
    for sentence in (
        "a, b: run_notify_on holds «money», which is called over_budget now",
        "a: there is no option run_gpu; did you mean «run_gpus»?",
        "a: there is no option pod_max_usd_per_houre; did you mean «pod_max_usd_per_hour»?",
    ):
        assert sentence in text
    trainers = {"hosts": {"a": {"trainer_colour": "red", "run_address": late, "run_stop_timeout": "{{ 5 * 60 }}"}}}
    text, runs = planned({"trainers": trainers}, "-e", "role=witness", "-e", "run_backend=tmux")
    assert "! a: there is no option trainer_colour; it is ignored" in text
    assert runs["witness"]["trainer"] == "a"


@pytest.mark.parametrize("playbook", ["plan", "status", "logs", "stop", "prune", "promote", "report", "sweep", "reap"])
def test_a_slip_on_the_command_line_starts_nothing(planned, playbook):
    slips = ("-e", "rolle=witness", "-e", "agent=mayor", "-e", "datset_dir=x")
    text, runs = planned({"trainers": {"hosts": {"a": {}}}}, *slips, playbook=f"playbooks/{playbook}.yml", code=2)
    for name, meant in (("rolle", "role"), ("agent", "role"), ("datset_dir", "datasets_dir")):
        assert f"-e: there is no option {name}; did you mean «{meant}»?" in text
    assert not runs


@pytest.mark.parametrize("playbook", ["plan", "status", "report"])
def test_a_role_that_is_empty_though_given_means_nobody(planned, playbook):
    text, runs = planned("localhost,", "-e", "role=", playbook=f"playbooks/{playbook}.yml", code=2)
    assert "role is given, and empty" in text
    assert not runs


def test_settings_of_the_users_own_do_not_break_a_plan(planned, monkeypatch):
    for name in ("ROLES_PATH", "LIBRARY", "ACTION_PLUGINS", "CALLBACK_PLUGINS", "MODULE_UTILS"):
        monkeypatch.setenv(f"ANSIBLE_{name}", "/nowhere")
    monkeypatch.setenv("ANSIBLE_STRATEGY", "free")
    monkeypatch.setenv("WANDB_API_KEY", "no key")  # which is refused where it would be used
    monkeypatch.setenv("WANDB_MODE", "disabled")
    text, runs = planned("localhost,", "-e", "role=witness")
    assert "the environment's WANDB_API_KEY" not in text
    assert list(runs) == ["witness"]


@pytest.mark.parametrize("playbook", ["playbooks/plan.yml", "playbooks/status.yml"])
def test_other_settings_than_those_of_the_checkout_are_told(planned, playbook, tmp_path, monkeypatch):
    other = tmp_path / "other.cfg"
    other.write_text("[defaults]\nforks = 3\n")
    monkeypatch.setenv("ANSIBLE_CONFIG", str(other))
    text, runs = planned("localhost,", "-e", "role=witness", playbook=playbook, code=2)
    said = f"Ansible has read {other} in place of {ROOT}/ansible.cfg, whose settings lora-forge needs"
    assert f"{said}; ANSIBLE_CONFIG says so: unset ANSIBLE_CONFIG" in text
    assert not runs


def test_a_variable_that_nothing_reads_is_warned_of_unless_the_inventory_has_it(planned):
    trainers = {"hosts": {"a": {"trainer_root": "{{ my_disk }}/forge"}}}
    given = ("-e", "role=witness", "-e", "my_disk=/data", "-e", "regoin=eu")
    text, runs = planned({"trainers": trainers}, *given)
    assert "! -e: nothing reads regoin: it is no option, and nothing of your inventory" in text
    assert "my_disk" not in text
    assert list(runs) == ["witness"]


def test_a_newcomers_own_agent_takes_a_file_and_its_data(tmp_path):
    home = tmp_path / "checkout"
    shutil.copytree(ROOT, home, symlinks=True, ignore=lambda folder, names: {
        name for name in names if name.startswith(".") or (folder == str(ROOT) and name in ("output", "tests", "docs"))
    })  # fmt: skip
    (home / "configs/agents/boot.yml").write_text("extends: polecat\n")
    (home / "configs/groups.yml").write_text("new: [boot]\n")
    shutil.copy(ROOT / "examples/datasets/witness_train.jsonl", home / "examples/datasets/boot_train.jsonl")
    words = [str(ROOT / ".venv/bin/ansible-playbook"), "playbooks/plan.yml", "-e", "role=new"]
    done = subprocess.run(words, cwd=home, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = json.loads((home / "output/plan.json").read_text())["runs"]
    assert (run["agent"], run["state"]) == ("boot", "to train")
    assert [item["path"] for item in run["datasets"]] == ["examples/datasets/boot_train.jsonl"]


@pytest.mark.parametrize("detach", ["true", "false"])
def test_where_no_host_answers_the_summary_says_so(planned, detach):
    dead = {"ansible_host": "127.0.0.1", "ansible_port": 9}  # nobody listens there
    gang = {"hosts": {"a": {}, "b": {}}, "vars": {"run_hosts": 2, "agents": ["crew"]}}
    trainers = {"children": {"gang": gang, "rest": {"hosts": {"c": {"agents": ["mayor"]}}}}, "vars": dead}
    text, runs = planned({"trainers": trainers}, "-e", f"detach={detach}", playbook="train.yml", code=2)
    refused = "does not answer: ssh: connect to host 127.0.0.1 port 9: Connection refused"
    assert f"crew is not ready: {runs['crew']['run_id']} on a: b {refused}" in text
    assert f"mayor is not ready: {runs['mayor']['run_id']} on c: c {refused}" in text
    assert "-e move=c gives it up, and starts what it had on another trainer" in text
    assert "0 of 2 are verified" in text


# What Ansible's own wrapper of a module imports first, and what nothing but a module of ours does.
@pytest.mark.parametrize("part", ["zipfile", "getpass"])
def test_a_trainer_whose_python_is_broken_is_told_with_what_it_lacks(part, planned, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / f"parts/{part}.py").write_text("import no_such_part\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/parts exec {sys.executable} "$@"\n')
    python.chmod(0o700)
    known = {"ansible_connection": "local", "ansible_python_interpreter": str(python), "trainer_root": str(tmp_path)}
    text, _ = planned({"trainers": {"hosts": {"gpu-1": known}}}, playbook="playbooks/status.yml")
    assert re.search("gpu-1.*: (ModuleNotFoundError: )?No module named 'no_such_part'", text), text


# --- promote.yml ----------------------------------------------------------------------------------------------------


def test_an_adapter_is_promoted_by_hand(tmp_path):
    home = tmp_path / "adapters/witness"
    for run_id, loss in (("witness-a", 0.882), ("witness-b", 0.912)):
        logged = events([(1, 2.0), (12, 1.0)], [(12, loss)])
        manifest = store.read_manifest(deliver(tmp_path, "witness", run_id, logged))
        assert manifest
        evaluated = dataclasses.replace(manifest, evaluation=promotion.evaluation_of(manifest))
        (home / run_id / "manifest.json").write_text(json.dumps(evaluated.as_dict()))
        promotion.promote(home, run_id, promotion.Gate())

    def play(*options: str) -> tuple[int, str]:
        given = ["-e", "role=witness", "-e", f"output_dir={tmp_path}"]
        done = command("ansible-playbook", "playbooks/promote.yml", "-v", *given, *options)
        return done.returncode, done.stdout

    code, text = play()
    rows = [line.split() for line in text.splitlines() if line.startswith("  witness-")]
    assert (code, sorted((row[0], row[1], row[4], row[5], row[-1]) for row in rows)) == (
        0,
        [("witness-a", "–", "0.882", "12/12", "latest"), ("witness-b", "–", "0.912", "12/12", "yes")],
    )
    for changed, latest, options in ((1, "witness-a", ["--check"]), (1, "witness-b", []), (0, "witness-b", [])):
        code, text = play("-e", "run_id=witness-b", *options)
        assert (code, (home / "latest").readlink().name) == (0, latest)
        assert f"changed={changed} " in text
    code, text = play("-e", "run_id=witness-bb")
    assert code == 2
    assert "did you mean «witness-b»?" in text


# --- a limit --------------------------------------------------------------------------------------------------------


FLEET = {
    "trainers": {"hosts": {"gpu-1": {"agents": ["mayor"]}, "gpu-2": {}, "gpu-3": {}}},
    "rest": {"hosts": {"web": {}}},
}


@pytest.fixture
def fleet(tmp_path):
    """Write an inventory of three trainers and a host that is none."""
    (tmp_path / "fleet.yml").write_text(yaml.safe_dump(FLEET))
    return str(tmp_path / "fleet.yml")


def test_a_limit_picks_the_trainers(planned, fleet) -> None:
    _, runs = planned(fleet, "-l", "gpu-1")
    assert {agent: run["trainer"] for agent, run in runs.items()} == {"mayor": "gpu-1"}
    _, runs = planned(fleet, "-l", "trainers:!gpu-1:&gpu-*:!gpu-2")  # as a union with localhost could not be said
    assert {run["trainer"] for run in runs.values()} == {"gpu-3"}
    assert "witness" in runs
    assert "mayor" not in runs  # gpu-1 declares it
    text, runs = planned(fleet, "-l", "gpu-1,localhost", "-e", "role=all")
    assert list(runs) == ["mayor"]
    assert "left alone, as every trainer within --limit declares other agents: crew, " in text


def test_a_file_of_hosts_is_a_limit_too(planned, fleet, tmp_path) -> None:
    (tmp_path / "again").write_text("gpu-2\n")
    _, runs = planned(fleet, "--limit", f"@{tmp_path}/again", "-e", "role=mayor")
    assert runs["mayor"]["trainer"] == "gpu-2"


def test_a_name_of_a_limit_that_is_nowhere_is_told_and_the_others_are_played(planned, fleet, tmp_path) -> None:
    (tmp_path / "again").write_text("gpu-2\ngpu-33\n")
    text, runs = planned(fleet, "-e", "role=witness", "-l", f"@{tmp_path}/again,web-1")
    assert runs["witness"]["trainer"] == "gpu-2"
    assert "! --limit: the inventory has no host or group «gpu-33»; did you mean «gpu-3»? It is passed over" in text
    assert "! --limit: the inventory has no host or group «web-1»; did you mean «web»? It is passed over" in text


@pytest.mark.parametrize("callback", ["lora_forge", "ansible.builtin.default"])
@pytest.mark.parametrize(
    ("playbook", "limit", "code", "why"),
    [
        ("train.yml", "web", 4, "--limit web names no trainer of the inventory, so that nothing would be done"),
        ("playbooks/reap.yml", "web", 4, "Trainers: gpu-1, gpu-2, gpu-3"),
        ("train.yml", "gpu-9", 1, "--limit leaves us with no hosts to target"),  # Ansible's own
        ("train.yml", "all:!gpu-9", 4, "leaves out «gpu-9», and the inventory has no such host or group; did you mean"),
    ],
)
def test_a_limit_without_a_trainer_ends_before_anything_is_done(
    fleet, tmp_path, monkeypatch, callback, playbook, limit, code, why
) -> None:
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", callback)
    done = command("ansible-playbook", "-i", fleet, "-l", limit, playbook, "-e", f"output_dir={tmp_path}/output")
    assert done.returncode == code, done.stdout
    assert why in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "TASK" not in done.stdout
    assert not (tmp_path / "output").exists()


def test_localhost_as_a_limit(planned) -> None:
    both = {"localhost": {"ansible_connection": "local", "run_profile": "rehearsal"}, "gpu-1": {}}
    _, runs = planned({"trainers": {"hosts": both}}, "-l", "localhost", "-e", "role=witness")
    assert runs["witness"]["trainer"] == "localhost"
    _, runs = planned({"trainers": {"hosts": both}}, "-l", "gpu-1", "-e", "role=witness")
    assert runs["witness"]["trainer"] == "gpu-1"
    controller = {"all": {"hosts": {"localhost": {}}}, "trainers": {"hosts": {"gpu-1": {}}}}
    text, _ = planned(controller, "-l", "localhost", "-e", "role=witness", code=2)
    assert "--limit leaves no host to train on. Trainers: gpu-1" in text
    text, _ = planned(controller, "-l", "localhost", playbook="playbooks/report.yml")  # knows no hosts
    assert "report.html" in text


def test_what_a_limit_leaves_out_is_not_touched(planned, tmp_path) -> None:
    """As three hosts that nobody can reach: whoever is asked says so."""
    dead = {"ansible_host": "127.0.0.1", "ansible_port": 9}
    trainers = {"hosts": {"gpu-1": {}, "gpu-2": {}, "gpu-3": {}}, "vars": dead}
    text, runs = planned({"trainers": trainers}, "-e", "role=witness", "-l", "gpu-2", playbook="train.yml", code=2)
    assert runs["witness"]["trainer"] == "gpu-2"
    assert f"witness is not ready: {runs['witness']['run_id']} on gpu-2: gpu-2 does not answer" in text
    assert not re.search("gpu-[13]", text)
    text, _ = planned({"trainers": trainers}, "-l", "all:!gpu-2", playbook="playbooks/status.yml")
    assert re.search("gpu-1.*gpu-3", text)
    assert "gpu-2" not in text
    assert json.loads((tmp_path / "status.json").read_text())["hosts"][0]["name"] == "gpu-1"


def test_what_was_launched_elsewhere_goes_on_there(planned, fleet, tmp_path) -> None:
    _, runs = planned(fleet, "-e", "role=witness,crew", "-l", "gpu-3")
    (tmp_path / "runs").mkdir()
    run_id = runs["witness"]["run_id"]
    placed = {"run_id": run_id, "trainer": "gpu-2", "lane": 0, "state": "launched", "final": False}
    (tmp_path / f"runs/{run_id}.json").write_text(json.dumps(placed))
    text, runs = planned(fleet, "-e", "role=witness,crew", "-l", "gpu-3")
    assert list(runs) == ["crew"]
    assert f"left alone, as they were launched where --limit does not reach: {run_id} on gpu-2" in text
    text, _ = planned(fleet, "-e", "role=witness", "-l", "gpu-3", playbook="playbooks/stop.yml", code=2)
    assert "nothing is to be done within --limit left alone, as they were launched where --limit does not" in text
    _, runs = planned(fleet, "-e", "role=witness", "-l", "gpu-3", "-e", "move=gpu-2")
    assert runs["witness"]["trainer"] == "gpu-3"


def test_a_gang_is_within_a_limit_with_all_of_its_hosts(planned) -> None:
    gang = {"hosts": {"a": {}, "b": {}}, "vars": {"run_hosts": 2}}
    trainers = {"trainers": {"children": {"gang": gang, "rest": {"hosts": {"c": {}, "d": {}}}}}}
    _, runs = planned(trainers, "-l", "all:!b", "-e", "role=witness")  # the hosts left out are two as well
    assert runs["witness"]["hosts"] == ["c"]
    _, runs = planned(trainers, "-l", "gang", "-e", "role=witness")
    assert runs["witness"]["hosts"] == ["a", "b"]
    text, _ = planned(trainers, "-l", "a", "-e", "role=witness", code=2)
    assert "--limit leaves no host to train on; a gang trains with all of its hosts" in text


def test_only_localhost_and_hosts_that_are_added_pass_a_limit(fleet, tmp_path) -> None:
    """In a playbook of the user's that has one of ours in it, and in another one of the same command."""
    mine = [
        {"hosts": "localhost", "gather_facts": False,
         "tasks": [{"ansible.builtin.add_host": {"name": "new", "groups": "added", "ansible_connection": "local"}}]},
        {"hosts": "gpu-1,gpu-2,added,localhost", "gather_facts": False, "connection": "local",
         "tasks": [{"ansible.builtin.debug": {"msg": "played on {{ inventory_hostname }}"}}]},
    ]  # fmt: skip
    (tmp_path / "site.yml").write_text(
        yaml.safe_dump([*mine, {"import_playbook": str(ROOT / "playbooks/promote.yml")}])
    )
    (tmp_path / "other.yml").write_text(yaml.safe_dump(mine[1:]))
    words = ("-e", "role=witness", "-e", f"output_dir={tmp_path}", "-v")
    done = command(
        "ansible-playbook", "-i", fleet, "-l", "gpu-2", f"{tmp_path}/site.yml", f"{tmp_path}/other.yml", *words
    )
    assert done.returncode == 0, done.stdout
    ours, theirs = done.stdout.rsplit("PLAY [gpu-1,gpu-2,added,localhost]", 1)
    assert set(re.findall(r"played on ([\w-]+)", ours)) == {"localhost", "gpu-2", "new"}
    assert set(re.findall(r"played on ([\w-]+)", theirs)) == {"gpu-2", "new"}


def test_a_limit_releases_no_other_pod(tmp_path, monkeypatch) -> None:
    """RunPod cannot be reached: who would be released says so."""
    monkeypatch.setenv("RUNPOD_API_KEY", "none")
    monkeypatch.setenv("RUNPOD_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LORA_FORGE_PODS", str(tmp_path / "pods"))
    pods = {"trainers": {"hosts": {f"pod-{number}": {"pod_gpus": ["NVIDIA A40"]} for number in (1, 2, 3)}}}
    (tmp_path / "pods.yml").write_text(yaml.safe_dump(pods))

    def release(named: str, limit: str) -> tuple[int, str]:
        words = ("-i", f"{tmp_path}/pods.yml", "playbooks/release.yml", "-v", "-e", f"pod={named}", "-l", limit)
        done = command("ansible-playbook", *words)
        return done.returncode, done.stdout

    code, text = release("pod-1,pod-2", "pod-2,pod-3")
    assert "pod-1: left alone, as --limit leaves it out" in text
    assert set(re.findall(r"^(?:ok|changed|fatal|failed): \[(.+?)(?: ->.*)?\]", text, re.M)) == {"localhost", "pod-2"}
    code, text = release("pod-1", "pod-2,pod-3")
    assert code == 2
    assert "--limit leaves out pod-1, so that nothing would be released" in text


def test_a_host_that_is_no_pod_is_not_released_and_no_key_is_asked_for(tmp_path) -> None:
    hosts = {"trainers": {"hosts": {"cluster": {}, "pod-1": {"pod_gpus": ["NVIDIA A40"]}}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    words = ("-i", f"{tmp_path}/hosts.yml", "playbooks/release.yml", "-e", "pod=cluster,pod-1")
    done = command("ansible-playbook", *words)
    assert done.returncode == 2
    assert "cluster: no pod, and nothing of RunPod's is to be released there" in done.stdout
    assert "RUNPOD_API_KEY" not in done.stdout


def test_reap_within_a_limit_lists_all_pods_and_releases_those_of_its_hosts_alone(tmp_path, monkeypatch) -> None:
    claims = Claims(tmp_path / "pods")
    pods = {"trainers": {"hosts": {f"pod-{number}": {"pod_gpus": ["NVIDIA A40"]} for number in (1, 2)}}}
    (tmp_path / "pods.yml").write_text(yaml.safe_dump(pods))
    with simulator.Simulator(tmp_path / "state", "none") as sim:
        account, gpu = RunPod(sim.api.key, sim.url), {"id": "NVIDIA GeForce RTX 4090", "count": 1}
        for host in ("pod-1", "pod-2", "pod-of-another-inventory"):
            name = f"lora-forge-{claims.owner}-{host}-0a1b2c"
            account.create_pod({"name": name, "image": "runpod/pytorch:1", "gpu": gpu, "ports": ["22/tcp"]})
        monkeypatch.setenv("RUNPOD_API_KEY", sim.api.key)
        monkeypatch.setenv("RUNPOD_API_URL", sim.url)
        monkeypatch.setenv("LORA_FORGE_PODS", str(tmp_path / "pods"))

        def reap(*options: str) -> tuple[str, int]:
            """Return what is said, and how many pods there are then."""
            words = ("-i", f"{tmp_path}/pods.yml", "-l", "pod-2", "playbooks/reap.yml", *options)
            done = command("ansible-playbook", *words)
            assert done.returncode == 0, done.stdout
            return " ".join(done.stdout.split()), len(account.list_pods())

        text, left = reap()
        for host in ("pod-1", "pod-2", "pod-of-another-inventory"):
            assert re.search(rf" {host} \S+ this checkout ", text), text
        assert "for nothing: pod-2. To release: " in text
        assert "--limit pod-2 playbooks/reap.yml -e confirm=true" in text
        assert left == 3
        assert reap("-e", "confirm=true", "--check")[1] == 3
        text, left = reap("-e", "confirm=true")
        assert left == 2
        assert not re.search("released.*pod-(1|of)", text)
        assert "for nothing" not in reap()[0]
        assert sim.api.state()["violations"] == []
