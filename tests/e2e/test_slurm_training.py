"""Whole commands on a Slurm cluster of containers: from a login node to an adapter on the controller, by real Axolotl.

Where two commands meet, and training is not the point, a stand-in is in Axolotl's place.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import rundir
import slurm
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.planning.run_record import read_record
from hook import serving
from seen import Seen

from .conftest import Controller, eventually, hold, release

RECIPE = {"max_steps": 4, "save_steps": 2, "warmup_steps": 1, "gradient_accumulation_steps": 1}


@pytest.mark.soak
@pytest.mark.parametrize("flock", [True, False], ids=["locks", "no locks"])
def test_a_rehearsal_runs_as_a_job_to_a_proven_adapter(tmp_path: pathlib.Path, flock: bool) -> None:
    with slurm.Cluster(trains=True, flock=flock) as cluster:
        # The test hosts' environment, as the test users of other hosts have it: at one path on all machines.
        cluster.ssh("mkdir -m 700 lora-forge && ln -s /shared/env lora-forge/env")
        controller = Controller(tmp_path, {"login": cluster.trainer()}, RECIPE)
        code, text = controller.play("-e", "role=witness")
        assert code == 0, text
        manifest = controller.manifest("witness")
        assert (manifest["verdict"], manifest["steps"]["reached"], manifest["host"]["name"]) == ("verified", 4, "login")
        run_dir = cluster.home / "ann/lora-forge/runs" / manifest["run_id"]
        assert rundir.read_json(run_dir / "claim.json")["node"] in slurm.NODES
        assert re.search(r"witness-\w+ submitted \(slurm; .*\n\s+job \d+; Slurm starts it", text)
        code, text = controller.play("-e", "role=witness", "-v")
        assert code == 0, text
        assert "witness is ready already" in text
        assert not re.search(r"changed=[1-9]", text)


@pytest.mark.soak
def test_a_rehearsal_over_two_nodes_is_stopped_and_comes_to_one_adapter(tmp_path: pathlib.Path, seen: Seen) -> None:
    """By torchrun on gloo, in steps of one job; both nodes see one run directory, and one process writes into it."""
    with slurm.Cluster(trains=True) as cluster:
        cluster.ssh("mkdir -m 700 lora-forge && ln -s /shared/env lora-forge/env")
        given = {"login": cluster.trainer(run_hosts=2, run_module="cpu_pair")}
        controller = Controller(tmp_path, given, {**RECIPE, "plugins": ["hold.Hold"]})
        run_id = controller.plan("witness")
        run_dir = cluster.home / "ann/lora-forge/runs" / run_id

        def events(kind: str) -> list[dict[str, Any]]:
            return [event for event in rundir.read_events(run_dir / "metrics.jsonl")[0] if event["event"] == kind]

        hold(run_dir, 2)
        shutil.copy(pathlib.Path(__file__).with_name("cpu_pair.py"), run_dir / rundir.PROGRAMS)
        cluster.sh("login", "chown -R ann: /home/ann/lora-forge/runs")
        for playbook in ("provision", "launch"):
            code, text = controller.play("-e", "role=witness", playbook=f"playbooks/{playbook}.yml")
            assert code == 0, text
        eventually(lambda: [event["step"] for event in events("log")][-1:] == [2], lambda: log(run_dir))
        assert [job["nodes"] for job in cluster.jobs().values()] == ["c[1-2]"]
        secrets = dict(line.partition("=")[::2] for line in (run_dir / "env").read_text().splitlines())
        shown = [cluster.sh("login", "squeue --json; scontrol -d show job; scontrol show step").stdout]
        shown += [cluster.sh(node, "cat /proc/[0-9]*/cmdline", check=False).stdout for node in slurm.NODES]
        assert "torch.distributed.run" in shown[1]
        assert "torch.distributed.run" in shown[2]
        assert not [text for text in shown if secrets["PET_RDZV_ID"] in text]
        code, text = controller.play("-e", "role=witness", playbook="playbooks/stop.yml")
        assert code == 0, text
        assert rundir.last_complete(run_dir / "output") == 3
        release(run_dir)
        code, text = controller.play("-e", "role=witness")
        assert code == 0, text + log(run_dir)
        manifest = controller.manifest("witness")
        assert (manifest["verdict"], manifest["steps"]["reached"], manifest["host"]["name"]) == ("verified", 4, "login")
        said = (run_dir / "train.log").read_text(errors="replace")
        assert re.findall("2 processes start from step ([0-9]+)", said) == ["0", "3"]
        assert [event["step"] for event in events("begin")] == [0, 3]
        assert [event["step"] for event in events("log")] == [1, 2, 3, 4]
        assert [event["step"] for event in events("save")] == [2, 3, 4]
        # Data is prepared once, to train and to evaluate; all else is said by one process of each start.
        counted = {kind: len(events(kind)) for kind in ("data", "template", "stop", "end")}
        assert counted == {"data": 2, "template": 2, "stop": 1, "end": 2}
        assert not list((run_dir / "output").glob("incomplete-*"))
        seen("a rehearsal over two nodes is stopped", "Slurm", "one checkpoint, resumed on both; one verified adapter")


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[slurm.Cluster]:
    """Provide a cluster on which a stand-in trains for a few seconds."""
    with slurm.Cluster(trains=True) as cluster:
        cluster.furnish("3")
        yield cluster


@pytest.mark.soak
@pytest.mark.parametrize(
    ("agents", "checkouts"),
    [(["witness"], 1), (["mayor", "polecat"], 1), (["refinery"], 2)],
    ids=["one agent", "two agents", "two controllers"],
)
def test_two_commands_of_the_same_moment_share_their_jobs(
    tmp_path: pathlib.Path, stand_ins: slurm.Cluster, agents: list[str], checkouts: int, seen: Seen
) -> None:
    cluster = stand_ins
    with serving() as hook:
        given = {"login": cluster.trainer(run_notify_url=hook.url)}
        controllers = [Controller(tmp_path / str(number), given, RECIPE) for number in range(checkouts)]
        both = [controllers[number % checkouts].start("-e", f"role={','.join(agents)}") for number in range(2)]
        codes = [played.wait() for played in both]
    texts = [played.text() for played in both]
    said = "\n\n".join(texts)
    assert codes == [0, 0], said
    assert not [word for word in ("ERROR", "Traceback", "not ready") if word in said], said
    runs = {agent: controllers[0].run_id(agent) for agent in agents}
    for agent, run_id in runs.items():
        assert all(f"{agent} is ready" in text for text in texts), said
        jobs = [job for job in cluster.jobs().values() if job["name"].startswith(f"lora-forge-{run_id}-")]
        assert [job["job_state"] for job in jobs] == [["COMPLETED"]], said
        assert said.count(f"{run_id} submitted (slurm; ") == 1, said
        run_dir = cluster.home / "ann/lora-forge/runs" / run_id
        begun = [event for event in rundir.read_events(run_dir / "metrics.jsonl")[0] if event["event"] == "begin"]
        assert len(begun) == 1
        assert not [path for path in (run_dir / rundir.INCOMING).rglob("*") if path.is_file()]
        for controller in controllers:
            home, record = controller.output / "adapters" / agent, read_record(controller.output, run_id)
            assert (controller.run_id(agent), controller.manifest(agent)["verdict"]) == (run_id, "verified")
            assert store.integrity_error(home / run_id, hashes=True) is None
            assert [json.loads(line)["moved"] for line in (home / "history.jsonl").read_text().splitlines()] == [True]
            assert (record.state, record.failures, record.delivered_at > 0) == ("finished", {}, True)
    told = sorted((message["event"], message["run_id"]) for message in hook.told)
    assert told == sorted(("finished", run_id) for run_id in runs.values() for _ in controllers)
    assert not [path for controller in controllers for path in (controller.output / "incoming").glob("*")]
    who = "two controllers" if checkouts > 1 else f"two commands of one checkout, for {' and '.join(agents)}"
    outcome = "one job of each run; both ended with its adapter, promoted once and told once by each checkout"
    seen(f"{who}: train.yml twice at the same moment", "Slurm", outcome)


def log(run_dir: pathlib.Path) -> str:
    """Return what the run's training and its supervisor said."""
    files = [run_dir / name for name in ("slurm.log", "supervisor.log", "train.log")]
    return "\n".join(path.read_text(errors="replace")[-5000:] for path in files if path.exists())
