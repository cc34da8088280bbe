"""collect.yml from trainers that name other files than an adapter's, or have something else in their places."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

import pytest
from hostile import CONTROL, Guard, Played, Stage

AGENTS = {
    "good": "witness", "named": "mayor", "climbs": "deacon", "bomb": "polecat", "lies": "refinery", "others": "crew",
    "links": "gastown",
}  # fmt: skip
BAD = [name for name in AGENTS if name != "good"]
TERABYTE = 1 << 40


def row(run_dir: pathlib.Path, path: str, /, **changes: Any) -> dict[str, Any]:
    """Describe a file as lora_adapter_info does."""
    data = (run_dir / path).read_bytes()
    name = path.removeprefix("output/")
    return {"path": path, "name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}


def listed(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """List the files of a run that are its adapter."""
    names = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    inside = [f"output/{name}" for name in (*names, "trainer_state.json", "gradients.json")]
    return [row(run_dir, path) for path in (*inside, "expected.json", "axolotl.yml", "metrics.jsonl", "train.log")]


def answer(stage: Stage, host: str, files: list[dict[str, Any]]) -> None:
    more = {
        "problems": [],
        "modules": 7,
        "rank": 64,
        "parameters": 3584,
        "untrained": 0,
        "versions": {},
        "files": files,
    }
    stage.face(host, "module:lora_adapter_info", "say", text=json.dumps({"changed": False, **more}))


@pytest.fixture(scope="module")
def runs(stage: Stage) -> dict[str, pathlib.Path]:
    """Leave a finished run on each host, and something wrong with all but one."""
    found = {}
    for host, agent in AGENTS.items():
        stage.host(host, agent)
        found[host] = stage.finished(host, agent)
    key, up = str(stage.home / ".ssh/authorized_keys"), "../../../../"
    run_dir = found["named"]
    names = [key, f"{up}home/.ssh/authorized_keys", f"{up}adapters/witness/latest", "sitecustomize.py", "..", ""]
    files = [row(run_dir, "train.log", name=name) for name in names]
    answer(stage, "named", [*listed(run_dir), *files])

    run_dir = found["climbs"]
    (run_dir / "sitecustomize.py").write_text("print('here')")
    paths = [
        str(stage.home / ".bashrc"),
        "/etc/hostname",
        "output/../sitecustomize.py",
        "../../env/canary",
        "output\n/x",
    ]
    files = [row(run_dir, "train.log", path=path, name=f"wandb/{number}") for number, path in enumerate(paths)]
    answer(stage, "climbs", [*listed(run_dir), *files])

    run_dir = found["bomb"]  # it says so
    before = listed(run_dir)
    os.truncate(run_dir / "train.log", TERABYTE)
    answer(stage, "bomb", [each | {"bytes": TERABYTE} if each["path"] == "train.log" else each for each in before])

    run_dir = found["lies"]  # it says otherwise
    answer(stage, "lies", listed(run_dir))
    os.truncate(run_dir / "output/tokenizer.json", TERABYTE)

    run_dir = found["others"]
    answer(stage, "others", listed(run_dir))
    (run_dir / "given").write_text("\0".join(["train.log", "sitecustomize.py", "output/.bashrc", ""]))
    for name in ("sitecustomize.py", "output/.bashrc"):
        (run_dir / name).write_text("print('here')")
    stage.face("others", "rsync --sender", "serve", old="--files-from=-", new=f"--files-from={run_dir}/given")

    run_dir = found["links"]
    answer(stage, "links", listed(run_dir))
    for name, target in (("output/tokenizer.json", key), ("train.log", "/etc/hostname")):
        (run_dir / name).unlink()
        (run_dir / name).symlink_to(target)
    (run_dir / "output/trainer_state.json").unlink()
    os.mkfifo(run_dir / "output/trainer_state.json")
    return found


@pytest.fixture(scope="module")
def guard(stage: Stage, runs: dict[str, pathlib.Path]) -> Guard:
    return stage.watch_over()


@pytest.fixture(scope="module")
def played(stage: Stage, guard: Guard) -> Played:
    return stage.play("playbooks/collect.yml", "-e", "role=all")


def test_the_honest_hosts_adapter_is_there(stage: Stage, played: Played) -> None:
    assert (played.ended, played.code) == (True, 2), played.text
    [manifest] = (stage.output / "adapters/witness").glob("witness-*/manifest.json")
    assert json.loads(manifest.read_text())["verdict"] == "verified"
    assert (stage.output / "adapters/witness/latest").readlink() == pathlib.Path(manifest.parent.name)


@pytest.mark.parametrize("host", BAD)
def test_the_others_deliver_nothing_and_are_named(stage: Stage, played: Played, host: str) -> None:
    assert stage.did(host)
    assert list((stage.output / "adapters" / AGENTS[host]).glob("*/manifest.json")) == []
    assert played.lines(host)
    assert any(f"on {host}: " in line for line in played.lines(AGENTS[host])), played.text


def test_nothing_lands_elsewhere(guard: Guard, played: Played) -> None:
    assert guard.changes() == []


def test_what_was_fetched_is_small_and_known(stage: Stage, played: Played) -> None:
    found = [path for path in stage.output.rglob("*") if not path.is_dir()]
    assert found
    assert sum(path.lstat().st_blocks * 512 for path in found) < 100e6
    assert max(path.lstat().st_size for path in found) < 100e6
    assert [path for path in found if path.name in ("sitecustomize.py", ".bashrc", "authorized_keys", "hostname")] == []
    assert [path for path in found if path.is_symlink() and path.name != "latest"] == []


def test_nothing_reaches_the_terminal_but_words(played: Played) -> None:
    assert CONTROL.findall(played.text) == []
    assert "Traceback" not in played.text
    assert max(map(len, played.text.splitlines())) < 1000
