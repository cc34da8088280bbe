"""A login node of Slurm before anything is submitted to it: real Ansible, and a pretended sbatch on this machine."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.trainer.slurm_queue import job_name
from lab import ROOT

PATIENCE = 300  # seconds; only what hangs takes them
# Submits nothing: of whatever else it is asked the test hears.
SBATCH = """#!/bin/sh
case "$1" in
  --version) echo slurm 24.11.5 ;;
  --test-only) echo "$*" >>{home}/asked; cat {home}/refusal; [ ! -s {home}/refusal ] ;;
  *) touch {home}/submitted ;;
esac
"""
ASKED = {"partition": "gpu", "gres": "gpu:1", "time": "12:00:00"}


class LoginNode:
    """A trainer: this very machine, with sbatch on its PATH."""

    def __init__(self, home: pathlib.Path):
        self.home = home
        (home / "bin").mkdir()
        (home / "bin/sbatch").write_text(SBATCH.format(home=home))
        (home / "bin/sbatch").chmod(0o755)
        (home / "refusal").touch()

    def train(self, **variables: Any) -> str:
        """Try to train on it, for real; returns what was told."""
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable,
                "trainer_root": str(self.home / "root"), **variables}  # fmt: skip
        (self.home / "hosts.yml").write_text(yaml.safe_dump({"trainers": {"hosts": {"cluster": host}}}))
        places = ["-e", f"datasets_dir={ROOT}/examples/datasets", "-e", f"output_dir={self.home}/output"]
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(self.home / "hosts.yml"), "train.yml"]
        env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "PATH": f"{self.home}/bin:{os.environ['PATH']}", "COLUMNS": "1000"}
        done = subprocess.run(
            [*command, "-e", "role=witness", *places], cwd=ROOT, env=env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode != 0
        assert "Traceback" not in done.stdout
        assert not (self.home / "submitted").exists()
        assert not (self.home / "root/env").exists()  # nothing was installed either
        return " ".join(done.stdout.split())

    def check(self, runs: list[str]) -> dict[str, Any]:
        """Have slurm_check ask for some runs; returns what it answers."""
        given = {"root": str(self.home / "root"), "job": ASKED, "gpus": 1, "runs": runs}
        (self.home / "ask.yml").write_text(
            yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": [
                {"slurm_check": given, "register": "found", "ignore_errors": True},
                {"copy": {"dest": f"{self.home}/found", "content": "{{ found | to_json }}"}},
            ]}])
        )  # fmt: skip
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", "localhost,", "-c", "local"]
        interpreter = f"ansible_python_interpreter={sys.executable}"
        env = {**os.environ, "PATH": f"{self.home}/bin:{os.environ['PATH']}"}
        subprocess.run(
            [*command, "-e", interpreter, str(self.home / "ask.yml")], cwd=ROOT, env=env, check=True, timeout=PATIENCE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        found: dict[str, Any] = json.loads((self.home / "found").read_text())
        return found


@pytest.fixture
def login_node(tmp_path: pathlib.Path) -> LoginNode:
    return LoginNode(tmp_path)


@pytest.mark.skipif(pathlib.Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_login_node_is_told_from_a_host_that_lacks_its_driver(login_node: LoginNode) -> None:
    text = login_node.train()
    assert "this host has Slurm's sbatch and no GPU, as a login node has. Set run_backend: slurm, and run_slurm" in text


def test_what_slurm_does_not_take_is_told_in_its_own_words(login_node: LoginNode) -> None:
    (login_node.home / "refusal").write_text("sbatch: error: invalid partition specified: gpux\n"
                                             "allocation failure: Invalid partition name specified\n")  # fmt: skip
    text = login_node.train(run_backend="slurm", run_slurm=ASKED | {"partition": "gpux"})
    assert (
        "Slurm does not take such a job: invalid partition specified: gpux; allocation failure: Invalid partition "
        "name specified run_slurm in the inventory asks for gres gpu:1, partition gpux, time 12:00:00; «sinfo -o "
    ) in text
    asked = (login_node.home / "asked").read_text()
    assert {"--partition=gpux", "--gres=gpu:1", "--time=12:00:00", "--export=NIL"} <= set(asked.split())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("'partion': 'gpu'", "run_slurm has no «partion»; did you mean «partition»? It takes account"),
        ("'time': '2-00'", "a job may take 48 GPU hours (48 h on a GPU), and run_slurm_max_gpu_hours is 24"),
        ("'time': '5'", "time is «5», and a job is told to end 360 s before (a minute and run_stop_timeout)"),
    ],
)
def test_what_the_plan_cannot_know_yet_is_checked_on_the_login_node(
    login_node: LoginNode, more: str, words: str
) -> None:
    late = f"{{{{ {{'gres': 'gpu:1', 'account': run_plans[0].agent, {more}}} }}}}"
    text = login_node.train(run_backend="slurm", run_slurm=late, run_slurm_max_gpu_hours=24, run_stop_timeout=300)
    assert "witness-" in text  # it was planned
    assert words in text
    assert not (login_node.home / "asked").exists()


def test_a_rehearsal_is_refused_before_its_environment_is_made(login_node: LoginNode) -> None:
    (login_node.home / "refusal").write_text("sbatch: error: Invalid account\n")
    rehearsal = {"run_profile": "rehearsal", "trainer_lock": "trainer-cpu"}
    text = login_node.train(run_backend="slurm", run_slurm={"account": "lap"}, **rehearsal)
    assert "Slurm does not take such a job: Invalid account run_slurm in the inventory asks for account lap;" in text


SQUEUE = """#!/bin/sh
echo 'JOBID|NAME|STATE|START_TIME|NODELIST|REASON'
echo '7|{name}|PENDING|N/A||Priority'
"""


def test_what_slurm_would_not_take_any_more_keeps_nobody_from_what_it_has(login_node: LoginNode) -> None:
    limit = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    (login_node.home / "refusal").write_text(
        f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nallocation failure: {limit}\n"
    )
    waits, new = "witness-1", "witness-2"
    run_dir = login_node.home / "root/runs" / waits
    run_dir.mkdir(parents=True)
    (run_dir / "run.json").write_text(json.dumps({"backend": "slurm", "launch": "1"}))
    (login_node.home / "bin/squeue").write_text(SQUEUE.format(name=job_name(run_dir)))
    (login_node.home / "bin/squeue").chmod(0o755)
    assert login_node.check([new, waits])["version"] == "slurm 24.11.5"
    assert not (login_node.home / "asked").exists()
    refused = login_node.check([new])
    assert f"Slurm does not take such a job: QOSMaxSubmitJobPerUserLimit; allocation failure: {limit}" in refused["msg"]


def test_the_plan_names_the_host_of_a_key_that_nobody_knows(login_node: LoginNode) -> None:
    text = login_node.train(run_backend="slurm", run_slurm={**ASKED, "partion": "gpu"})
    assert "cluster: run_slurm has no «partion»; did you mean «partition»?" in text
    assert not (login_node.home / "root").exists()
