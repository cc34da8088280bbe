"""Real Axolotl on a Slurm cluster of containers: from a login node to an adapter on the controller."""

from __future__ import annotations

import pathlib
import re

import pytest
import rundir
import slurm

from .conftest import Controller

RECIPE = {"max_steps": 4, "save_steps": 2, "warmup_steps": 1, "gradient_accumulation_steps": 1}


@pytest.mark.soak
def test_a_rehearsal_runs_as_a_job_to_a_proven_adapter(tmp_path: pathlib.Path) -> None:
    with slurm.Cluster(trains=True) as cluster:
        # The test hosts' environment, as the test users of other hosts have it: at one path on all machines.
        cluster.ssh("mkdir -m 700 lora-forge && ln -s /shared/env lora-forge/env")
        controller = Controller(tmp_path, {"login": cluster.trainer()}, RECIPE)
        code, text = controller.play("-e", "role=witness")
        assert code == 0, text
        manifest = controller.manifest("witness")
        assert (manifest["verdict"], manifest["steps"]["reached"], manifest["host"]["name"]) == ("verified", 4, "login")
        run_dir = cluster.home / "ann/lora-forge/runs" / manifest["run_id"]
        assert rundir.read_json(run_dir / "claim.json")["node"] in slurm.NODES
        assert re.search(r"witness-\w+ started \(slurm; .*\n\s+job \d+; Slurm starts it", text)
        code, text = controller.play("-e", "role=witness", "-v")
        assert code == 0, text
        assert "witness is ready already" in text
        assert not re.search(r"changed=[1-9]", text)
