"""Answers that would like to be more than answers: variables, hosts, templates, programs. They are what they say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hostile import CONTROL, Guard, Played, Stage

AGENTS = {"good": "witness", "finished": "mayor", "new": "deacon"}


def poison(stage: Stage) -> dict[str, Any]:
    """Return what a host adds to each of its answers."""
    program, elsewhere = str(stage.canary), str(stage.folder / "stolen")
    templated = f"{{{{ lookup('ansible.builtin.pipe', '{program}') }}}}"
    variables = {
        "ansible_python_interpreter": program, "discovered_interpreter_python": program,
        "ansible_ssh_executable": program, "ansible_ssh_common_args": f"-o ProxyCommand={program}",
        "ansible_ssh_extra_args": f"-o ProxyCommand={program}", "ansible_connection": "local",
        "ansible_shell_executable": program, "ansible_become": True, "ansible_become_exe": program,
        "trainer_rsync_options": [f"--rsh={program}"], "trainer_root": elsewhere, "trainer_uv": program,
        "output_dir": elsewhere, "run_output": elsewhere, "run_module": templated, "run_notify_url": templated,
        "run_plans": [], "run_pull_checkpoints": templated, "run_stop_timeout": templated,
    }  # fmt: skip
    stranger = {"host_name": "stranger", "groups": ["to_train"], "host_vars": {"ansible_connection": "local"}}
    return {
        "ansible_facts": variables,
        "_ansible_facts_cacheable": True,
        "ansible_facts_cacheable": True,
        "add_host": stranger,
        "add_group": "strangers",
        "parent_groups": ["all"],
        "_ansible_delegated_vars": {"ansible_host": "stranger", "ansible_delegated_host": "localhost", **variables},
        "_ansible_notify": ["stranger"],
        "_ansible_item_result": True,
        "ansible_job_id": "1.1",
        "results_file": elsewhere,
        "warnings": [f"your controller is \x1b[2J\x1b]0;owned\x07 {templated}"],
        "deprecations": [{"msg": f"\x1b[31m{templated}", "version": "9"}],
        "exception": f"Traceback (most recent call last):\n{templated}",
        "invocation": {"module_args": {"root": templated}},
        "diff": {"before": templated, "after": f"\x1b[2J{templated}"},
        "stdout": templated,
        "stderr": f"\x1b]0;owned\x07{templated}",
        "backup_file": elsewhere,
        "attempts": templated,
        "retries": "many",
    }


@pytest.fixture(scope="module")
def trainers(stage: Stage) -> dict[str, Any]:
    """Make a host that is honest, and three that add to every answer; of the last one the GPU is looked at, too."""
    for name, agent in AGENTS.items():
        stage.host(name, agent)
    stage.finished("good", "witness")
    stage.checkpoint(stage.finished("finished", "mayor"), 4)
    stage.model("new", "deacon")
    (stage.folder / "stolen").mkdir()
    more = poison(stage)
    templated = more["stdout"]
    for name in ("finished", "new"):
        stage.face(name, "module", "add", more=more, blur=f"\x1b[2J {templated}")
    stage.host("gpu", "polecat", run_profile="", trainer_lock="trainer-cpu", trainer_gpu_required=True)
    card = {"index": 0, "uuid": templated, "name": f"\x1b[2J{templated}", "memory_mib": 81920, "driver": templated}
    answers: dict[str, Any] = {
        "gpu_info": {"gpus": [card], "driver": templated, "runs": False, "warnings_found": [f"\x1b[2J {templated}"]},
        "base_model": {"state": "present", "path": templated, "mark": templated, "bytes": 1, "total_bytes": 1},
        "command": {"rc": 1, "stdout": json.dumps({"error": f"\x1b[2J {templated}"}), "stderr": templated},
    }
    for name, answer in answers.items():
        stage.face("gpu", f"module:{name}", "say", text=json.dumps({"changed": False, **more, **answer}))
    stage.face("gpu", "module", "add", more=more, blur=f"\x1b[2J {templated}")
    return more


@pytest.fixture(scope="module")
def guard(stage: Stage, trainers: dict[str, Any]) -> Guard:
    return stage.watch_over()


@pytest.fixture(scope="module")
def commands(stage: Stage, guard: Guard) -> dict[str, Played]:
    """Play what asks a trainer; facts become variables here, so that it is not Ansible's configuration that helps."""
    played = {}
    for words in ("status", "provision", "train", "stop", "logs", "prune"):
        roles = [] if words == "status" else ["-e", f"role={','.join([*AGENTS.values(), 'polecat'])}"]
        if words in ("train", "stop", "logs", "prune"):
            roles = ["-e", f"role={','.join(AGENTS.values())}"]
        playbook = "train.yml" if words == "train" else f"playbooks/{words}.yml"
        played[words] = stage.play(playbook, *roles, ANSIBLE_INJECT_FACT_VARS="true")
    return played


NAMES = ("status", "provision", "train", "stop", "logs", "prune")
HOSTS = ("finished", "new", "gpu")


def test_the_hosts_told_all_that(stage: Stage, commands: dict[str, Played]) -> None:
    """Where no host is asked any more, nothing else here would fail."""
    asked = {name.removeprefix("module:") for host in HOSTS for name in stage.did(host)}
    assert asked >= {
        "trainer_info", "trainer_environment", "gpu_info", "training_run_info", "training_run", "training_runs",
        "lora_adapter_info",
        "training_log", "checkpoint_prune", "environment_prune",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_command_comes_to_its_end(commands: dict[str, Played], name: str) -> None:
    assert commands[name].ended
    assert "Traceback" not in commands[name].text


@pytest.mark.parametrize("name", NAMES)
def test_nothing_reaches_the_terminal_but_words(commands: dict[str, Played], name: str) -> None:
    assert CONTROL.findall(commands[name].text) == []
    assert "JSON serializable" not in commands[name].text


def test_no_program_of_theirs_runs_and_nothing_lands_elsewhere(guard: Guard, commands: dict[str, Played]) -> None:
    assert guard.changes() == []


def test_no_host_is_called_otherwise_than_before(stage: Stage, commands: dict[str, Played]) -> None:
    words = [command for host in AGENTS for command in stage.commands(host)]
    assert words
    assert [command for command in words if "canary" in command or "stolen" in command] == []


@pytest.mark.parametrize("name", NAMES)
def test_nobody_joins(commands: dict[str, Played], name: str) -> None:
    assert [line for line in commands[name].text.splitlines() if line.lstrip().startswith("stranger")] == []


def test_the_honest_hosts_adapter_is_there(stage: Stage, commands: dict[str, Played]) -> None:
    [manifest] = (stage.output / "adapters/witness").glob("witness-*/manifest.json")
    assert json.loads(manifest.read_text())["verdict"] == "verified"
    assert any("good" in line for line in commands["status"].lines("witness-"))
    assert any("verified: 7 LoRA modules" in line for line in commands["train"].lines("witness"))
