"""What the Slurm cluster of tests/hosts is made by: its configuration, its name, its addresses."""

from __future__ import annotations

import pathlib

import pytest
import sandbox
import slurm


def test_settings_take_the_place_of_lines() -> None:
    lines = slurm.configuration(True, {"KillWait": "5", "MessageTimeout": "2"}).splitlines()
    assert [line for line in lines if line.startswith("KillWait=")] == ["KillWait=5"]
    assert {"MessageTimeout=2", "ProctrackType=proctrack/cgroup", "MinJobAge=300"} <= set(lines)


def test_without_cgroups_jobs_are_kept_by_process_ids() -> None:
    assert "ProctrackType=proctrack/linuxproc" in slurm.configuration(False, {}).splitlines()


def test_sandboxes_and_their_workers_have_clusters_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses() -> list[str]:
        cluster = slurm.Cluster()
        assert cluster.container("c1").startswith(sandbox.name())  # or the janitor would not find it
        assert cluster.state.name.startswith(sandbox.name())
        command = cluster._command("login", "image", [])
        return [command[command.index(option) + 1] for option in ("--name", "--ip", "--publish")]

    found = []
    for port in (sandbox.RANGE.start, sandbox.RANGE[1], sandbox.RANGE[-1]):
        monkeypatch.setenv("LORA_FORGE_SANDBOX", f"/tmp/{sandbox.NAME}-{port}")
        monkeypatch.setenv("LORA_FORGE_PORT", str(port))
        for worker in ("gw0", "gw4"):
            monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
            found.append(addresses())
    assert all(len(set(column)) == len(found) for column in zip(*found))


def test_by_hand_each_checkout_has_one_that_no_janitor_takes_for_a_sandbox_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORA_FORGE_SANDBOX")
    made = []
    for checkout in ("/src/a", "/src/b"):
        monkeypatch.setattr(slurm, "ROOT", pathlib.Path(checkout))
        made.append(slurm.place())
    assert all(len(set(column)) == 2 for column in zip(*made))
    assert all(name.startswith(f"{sandbox.NAME}-slurm-") for name, _, _ in made)
    assert all(port >= sandbox.RANGE.stop for _, port, _ in made)
