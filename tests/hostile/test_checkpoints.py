"""Checkpoints of a hostile trainer, fetched and brought to the next one: nothing but a checkpoint's files arrives."""

from __future__ import annotations

import os
import pathlib
import re

import pytest
import rundir
from hostile import CONTROL, Guard, Played, Stage
from lab import eventually

BASHRC, PRIVATE = b"# the user's own\n", b'{"conversations": []}\n'  # files of the controller's
# Names that a hostile complete.json lists, as they lie from the checkpoint on, by host.
BEYOND: dict[str, dict[str, bytes]] = {
    "climbs": {
        "../../sitecustomize.py": b"print('the next trainer is mine')\n",
        "../../supervisor.py": b"print('and its supervisor')\n",
    },
    "beside": {"sitecustomize.py": b"print('beside the weights')\n", "wandb/run.py": b"print('deep')\n"},
    # What is on the controller would go to the next trainer.
    "takes": {"../../../../../home/.bashrc": BASHRC, "../../../../datasets/private.jsonl": PRIVATE},
}
AGENTS = {
    "climbs": "mayor", "beside": "deacon", "takes": "polecat", "words": "refinery", "sound": "crew", "good": "witness"
}  # fmt: skip
GIVEN_UP = ["climbs", "beside", "takes", "sound"]
WHOLE = re.compile(
    r"output/checkpoint-\d+/(complete\.json|adapter_config\.json|adapter_model\.safetensors|optimizer\.(pt|bin)"
    r"|scheduler\.pt|rng_state(_\d+)?\.pth|scaler\.pt|trainer_state\.json|training_args\.bin|tokenizer[\w.]*\.json"
    r"|special_tokens_map\.json|chat_template\.jinja|README\.md|tokens_state\.json)"
)
MADE_THERE = {
    "run.json", "status.json", "env", "train.log", "supervisor.log", "supervisor.out", "training-environment.txt",
    "training-command.txt", "launch.lock", "supervisor.lock", "stop", "faulthandler.log",
}  # fmt: skip
OURS = {
    "axolotl.yml",
    "supervisor.py",
    "slurm_job.py",
    "lora_forge_axolotl.py",
    "answer_cases.py",
    "expected_adapter.py",
    "gang.py",
    "rundir.py",
    "metrics.jsonl",
}


def stopped(stage: Stage, host: str, agent: str, beyond: dict[str, bytes]) -> pathlib.Path:
    """Leave a stopped run on a host, whose newest checkpoint is whole and lists some more files; they are there."""
    run_dir = stage.finished(host, agent)
    status = rundir.read_json(run_dir / "status.json")
    rundir.write_json(run_dir / "status.json", status | {"state": "stopped", "exit_code": 143})
    weights = (run_dir / "output/adapter_model.safetensors").read_bytes()
    checkpoint = stage.checkpoint(run_dir, 4, **{"adapter_model.safetensors": weights, "optimizer.pt": b"0" * 99})
    noted = rundir.read_json(checkpoint / rundir.COMPLETE)
    for name, data in beyond.items():
        place = pathlib.Path(os.path.normpath(checkpoint / name))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        noted["files"][name] = len(data)
    rundir.write_json(checkpoint / rundir.COMPLETE, noted)
    return run_dir


@pytest.fixture(scope="module")
def hosts(stage: Stage) -> None:
    """Make hosts with poisoned checkpoints, one with a sound one, one that is honest, and another that takes over."""
    for host, agent in AGENTS.items():
        stage.host(host, agent)
        if host != "good":
            stopped(stage, host, agent, BEYOND.get(host, {}))
    stage.finished("good", "witness")
    (stage.output / "datasets").mkdir(parents=True)
    (stage.output / "datasets/private.jsonl").write_bytes(PRIVATE)
    stage.host("next")
    for host in GIVEN_UP:
        stage.model("next", AGENTS[host])
    # It names what it has; it is complete.json, once it is here, that names more.
    names = ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "complete.json")
    few = [f"output/checkpoint-4/{name}" for name in names]
    stage.face("takes", "module:training_run_info", "add", more={"checkpoint": {"step": 4, "files": few}})
    wild = [str(stage.home / ".bashrc"), "../../../home/.bashrc", "output/checkpoint-4", "", "-e", "\n/etc/hostname"]
    more = {"checkpoint": {"step": 4, "files": ["output/checkpoint-4/trainer_state.json", *wild]}}
    stage.face("words", "module:training_run_info", "add", more=more)


@pytest.fixture(scope="module")
def guard(stage: Stage, hosts: None) -> Guard:
    return stage.watch_over()


@pytest.fixture(scope="module")
def watched(stage: Stage, guard: Guard) -> Played:
    return stage.play("playbooks/watch.yml", "-e", "role=all", "-e", "run_pull_checkpoints=true")


@pytest.fixture(scope="module")
def moved(stage: Stage, watched: Played) -> Played:
    """Give those hosts up: what was fetched of their runs goes on elsewhere."""
    for name in GIVEN_UP:
        stage.hosts[name]["agents"] = []
    agents = [AGENTS[name] for name in GIVEN_UP]
    stage.hosts["next"]["agents"] = agents
    gone = ",".join(GIVEN_UP)
    played = stage.play("playbooks/launch.yml", "-e", f"role={','.join(agents)}", "-e", f"move={gone}")
    runs = list((stage.root("next") / "runs").glob("*"))
    # The stand-in dies at once, so that a supervisor tries without the checkpoint, too, and puts it back.
    eventually(lambda: all(rundir.read_status(run)[0].get("state") in rundir.FINAL_STATES for run in runs))
    return played


def files_below(folder: pathlib.Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]


def test_what_is_fetched_lies_in_its_checkpoint(stage: Stage, guard: Guard, watched: Played) -> None:
    assert watched.ended, watched.text
    assert stage.did("words") == {"module:training_run_info"}
    for run_dir in (path for path in (stage.output / "runs").iterdir() if path.is_dir()):
        strange = [name for name in files_below(run_dir) if name != "metrics.jsonl" and not WHOLE.fullmatch(name)]
        assert strange == [], run_dir.name
    assert guard.changes() == []


def test_a_sound_checkpoint_is_fetched_and_goes_on_elsewhere(stage: Stage, watched: Played, moved: Played) -> None:
    """Where nothing was fetched at all, the other tests here would say nothing."""
    [kept] = (stage.output / "runs").glob("crew-*/output/checkpoint-4/complete.json")
    assert kept.parent.joinpath("trainer_state.json").exists()
    [there] = (stage.root("next") / "runs").glob("crew-*/output/checkpoint-4/adapter_model.safetensors")
    assert there.stat().st_size > 1000


@pytest.mark.parametrize("host", GIVEN_UP)
def test_the_next_trainer_gets_nothing_but_the_run(stage: Stage, moved: Played, host: str) -> None:
    assert moved.ended, moved.text
    root = stage.root("next")
    runs = list((root / "runs").glob(f"{AGENTS[host]}-*"))
    for run_dir in runs:
        names = [name for name in files_below(run_dir) if not WHOLE.fullmatch(name) and "__pycache__" not in name]
        assert {name.removeprefix("programs/") for name in names} <= OURS | MADE_THERE
        for name in names:
            assert "print('" not in (run_dir / name).read_text()
    assert len(runs) == 1, moved.text


def test_nothing_else_is_anywhere(stage: Stage, guard: Guard, moved: Played) -> None:
    assert sorted(path.name for path in stage.root("next").iterdir()) == [
        "datasets", "env", "gpu_check.py", "models", "requirements", "runs", "tiny_model.py"
    ]  # fmt: skip
    own = [path for folder in ("hosts/next", "tmp") for path in (stage.folder / folder).rglob("*")]
    assert [path for path in own if path.name in (".bashrc", "private.jsonl")] == []
    assert guard.changes() == []


def test_it_is_said_in_words(watched: Played, moved: Played) -> None:
    for played in (watched, moved):
        assert CONTROL.findall(played.text) == []
        assert "Traceback" not in played.text
    for host in ("climbs", "beside", "takes", "words"):
        assert any(AGENTS[host] in line for line in watched.lines(f"{host}: ")), watched.text


def test_the_honest_host_is_watched_to_its_end(watched: Played) -> None:
    assert any("step 12/12" in line for line in watched.lines("witness"))
