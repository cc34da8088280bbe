"""A checkpoint of one trainer is loaded by the next: what is taken of it, and what never is."""

from __future__ import annotations

import json
import pathlib
import shutil
import types
from typing import Any

import numpy as np
import pytest
import rundir
from ansible.module_utils.lora_forge.controller import checkpoints, transfer
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import Estimate
from ansible.module_utils.lora_forge.planning import launch
from ansible.module_utils.lora_forge.trainer import saved
from planned import planned_run
from safetensors.numpy import save_file

RUN = planned_run()
USUAL = (
    "README.md adapter_config.json adapter_model.safetensors chat_template.jinja optimizer.pt rng_state.pth "
    "scheduler.pt tokenizer.json tokenizer_config.json tokens_state.json trainer_state.json training_args.bin".split()
)
TAKEN = [name for name in USUAL if name not in ("README.md", "chat_template.jinja", "training_args.bin")]
TAKEN = [name for name in TAKEN if not name.startswith("tokenizer")]


def write(run_dir: pathlib.Path, step: int = 4, names: list[str] = USUAL, **config: Any) -> pathlib.Path:
    """Write a run directory with a checkpoint in it."""
    folder = run_dir / f"output/checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    save_file({"lora_B": np.ones((2, 2), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, **config}))
    rundir.append_event(run_dir / "metrics.jsonl", "log", step=step, planned=8, loss=1.0)
    rundir.mark_complete(folder, step)
    return folder


class Trainer:
    """An action in whose place a trainer's folder is copied: what it asks for, and whatever else the trainer sends."""

    host = "pod-1"

    def __init__(self, run_dir: pathlib.Path):
        self.run_dir = run_dir
        self.sends: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []

    def run_action(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(args)
        for path in [file["path"] for file in args["files"]]:
            if (self.run_dir / path).is_file():
                place = pathlib.Path(args["to"], path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes((self.run_dir / path).read_bytes())
        for path, text in self.sends.items():
            place = pathlib.Path(args["to"], path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return {"changed": True}


@pytest.fixture
def site(tmp_path, capsys):
    """Provide a trainer with a run, and a folder here that is for what comes of it."""
    trainer, kept = Trainer(tmp_path / "trainer/runs/w-1"), tmp_path / "output/runs/w-1"

    def fetch(checkpoint: Any = None) -> tuple[bool, str]:
        capsys.readouterr()
        named = saved.newest_checkpoint(trainer.run_dir) if checkpoint is None else checkpoint
        found = checkpoints.fetch_checkpoint(trainer, RUN, named, str(trainer.run_dir), kept, {})
        told = capsys.readouterr()
        return found, told.out + told.err

    return types.SimpleNamespace(trainer=trainer, kept=kept, fetch=fetch, home=tmp_path)


def below(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_only_what_a_training_resumes_from_comes_with_a_list_of_our_own(site):
    write(site.trainer.run_dir)
    assert site.fetch() == (True, "  witness  checkpoint 4 is on the controller\n")
    expected = [f"output/checkpoint-4/{name}" for name in sorted([*TAKEN, "complete.json"])]
    assert below(site.kept) == ["metrics.jsonl", *expected]
    listed = rundir.read_json(site.kept / "output/checkpoint-4/complete.json")["files"]
    assert sorted(listed) == TAKEN
    assert saved.newest_checkpoint(site.kept)["step"] == 4
    [asked] = site.trainer.asked
    assert {file["path"].rpartition("/")[2] for file in asked["files"]} == {*TAKEN, "complete.json", "metrics.jsonl"}
    write(site.trainer.run_dir, 8)
    assert site.fetch()[0]
    assert [path.name for path in (site.kept / "output").iterdir()] == ["checkpoint-8"]


@pytest.mark.parametrize(
    "path",
    [
        "output/checkpoint-4/../../sitecustomize.py", "output/checkpoint-4/../../../../datasets/mayor_train.jsonl",
        "../../sitecustomize.py", "/home/user/.bashrc", "sitecustomize.py", "output/checkpoint-5/optimizer.pt",
        "output/checkpoint-4/a\nb", None, 7, ["output/checkpoint-4/x"],
    ],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_checkpoint_has_nothing_fetched(site, path):
    write(site.trainer.run_dir)
    named = saved.newest_checkpoint(site.trainer.run_dir)
    named["files"].append(path)
    found, told = site.fetch(named)
    assert not found
    assert "! checkpoint 4 was not fetched" in told
    assert "nothing of it is taken" in told
    assert site.trainer.asked == []
    assert below(site.home / "output") == []


@pytest.mark.parametrize("step", [0, -4, True, "4", "../4", None, 10**12])
def test_a_step_that_is_none_has_nothing_fetched(site, step):
    write(site.trainer.run_dir)
    found, told = site.fetch({"step": step, "files": ["output/checkpoint-4/optimizer.pt"]})
    assert (found, site.trainer.asked) == (False, [])
    assert "names no checkpoint" in told


def test_the_trainers_own_list_of_a_checkpoint_can_name_nothing_else(site):
    folder = write(site.trainer.run_dir)
    (site.trainer.run_dir / "sitecustomize.py").write_text("evil")
    noted = rundir.read_json(folder / "complete.json")
    noted["files"] |= {"../../sitecustomize.py": 4, "sitecustomize.py": 4}
    rundir.write_json(folder / "complete.json", noted)
    # What the trainer answers is not what our own module would on a list like this.
    assert rundir.defect(folder) == "its complete.json names '../../sitecustomize.py', which is not in it"
    files = [f"output/checkpoint-4/{name}" for name in [*USUAL, "sitecustomize.py", "complete.json"]]
    assert site.fetch({"step": 4, "files": files})[0]
    assert not [name for name in below(site.kept) if "custom" in name]
    assert "custom" not in (site.kept / "output/checkpoint-4/complete.json").read_text()


@pytest.mark.parametrize(
    "name", ["pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/.metadata", "global_step4/mp_rank_00.pt", "latest"]
)
def test_a_checkpoint_in_parts_stays_on_its_trainer(site, name):
    write(site.trainer.run_dir)
    named = saved.newest_checkpoint(site.trainer.run_dir)
    named["files"].append(f"output/checkpoint-4/{name}")
    found, told = site.fetch(named)
    assert (found, site.trainer.asked) == (False, [])
    assert "it is in parts, as FSDP and DeepSpeed write it" in told


def test_what_could_not_be_resumed_from_is_not_fetched(site):
    found, told = site.fetch({"step": 4, "files": ["output/checkpoint-4/optimizer.pt"]})
    assert not found
    assert "it has no adapter_model.safetensors and no trainer_state.json" in told


@pytest.mark.parametrize(
    ("sends", "words"),
    [
        ({"output/checkpoint-4/sitecustomize.py": "evil"}, "sitecustomize.py' came with it"),
        ({"evil.py": "evil"}, "'evil.py' came with it"),
        ({"output/checkpoint-4/optimizer.pt": "longer than listed"}, "optimizer.pt is not as its trainer's list"),
        ({"output/checkpoint-4/complete.json": "{}"}, "is not as its trainer's list"),
        ({"output/checkpoint-4/complete.json": "[" * 200_000}, "is not as its trainer's list"),
    ],
)
def test_what_arrives_otherwise_is_not_kept(site, sends, words):
    write(site.trainer.run_dir)
    site.trainer.sends = sends
    found, told = site.fetch()
    assert not found
    assert words in told
    assert saved.newest_checkpoint(site.kept)["step"] == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"megatron_config": {}, "megatron_core": "evil"}, "has a megatron_config"),
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "evil.module"}}, "evil.module imported"),
    ],
)
def test_a_configuration_that_imports_something_is_not_kept(site, config, words):
    write(site.trainer.run_dir, **config)
    found, told = site.fetch()
    assert not found
    assert words in told


def test_weights_that_are_none_are_not_kept(site):
    folder = write(site.trainer.run_dir)
    (folder / "adapter_model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    rundir.mark_complete(folder, 4)
    found, told = site.fetch()
    assert not found
    assert "adapter_model.safetensors cannot be read" in told


def test_what_a_run_logged_elsewhere_comes_as_events_and_nothing_else(site):
    write(site.trainer.run_dir)
    odd = [
        "[" * 100_000, "7", '{"event": 7}', '{"event": "log", "step": "1"}', '{"event": "begin", "step": -1}',
        '{"event": "log", "step": 1, "planned": [2]}', "\0",
    ]  # fmt: skip
    with (site.trainer.run_dir / "metrics.jsonl").open("a") as file:
        file.write("\n".join(odd) + "\n")
    assert site.fetch()[0]
    [event] = [json.loads(line) for line in (site.kept / "metrics.jsonl").read_text().splitlines()]
    assert (event["event"], event["step"]) == ("log", 4)


def test_what_an_earlier_version_kept_is_tidied_before_it_goes_on(site):
    folder = write(site.kept)
    (folder / "sitecustomize.py").write_text("evil")
    (folder / "deep").mkdir()
    (folder / "deep/x").write_text("evil")
    rundir.mark_complete(folder, 4)
    (folder / "link").symlink_to("/etc")
    step, carried = checkpoints.carried_files(site.kept)
    assert step == 4
    assert sorted(carried) == sorted(
        [*(f"output/checkpoint-4/{n}" for n in [*TAKEN, "complete.json"]), "metrics.jsonl"]
    )
    assert rundir.defect(folder) is None
    assert sorted(rundir.read_json(folder / "complete.json")["files"]) == TAKEN
    files = launch.input_files(RUN, pathlib.Path("/checkout"), "text", site.kept, carried, {})
    placed = [file["path"] for file in files if "checkpoint-4" in file["path"]]
    assert len(placed) == len(TAKEN) + 1


def test_a_copy_that_was_damaged_here_is_fetched_anew(site):
    write(site.trainer.run_dir)
    assert site.fetch()[0]
    kept = site.kept / "output/checkpoint-4/optimizer.pt"
    kept.write_bytes(bytes(kept.stat().st_size))  # as a disk may leave it: NULs, and the right size
    assert site.fetch()[0]
    assert len(site.trainer.asked) == 2
    assert kept.read_text() == "{}"
    assert site.fetch()[0]
    assert len(site.trainer.asked) == 2, "what is whole is not fetched again"


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors"])
def test_a_damaged_copy_of_a_higher_step_keeps_no_lower_one_out(site, name):
    high = write(site.trainer.run_dir, 8)
    assert site.fetch()[0]
    damaged = site.kept / f"output/checkpoint-8/{name}"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    shutil.rmtree(high)  # the trainer has set it aside
    write(site.trainer.run_dir, 4)
    before = below(site.kept)
    assert checkpoints.carried_files(site.kept, check=True) == (0, [])
    assert below(site.kept) == before
    assert site.fetch()[0]
    assert checkpoints.carried_files(site.kept)[0] == 4
    assert [path.name for path in (site.kept / "output").iterdir()] == ["checkpoint-4"]


def test_of_two_copies_the_newest_whole_one_goes_on(site):
    write(site.kept, 4)
    folder = write(site.kept, 8)
    (folder / "adapter_model.safetensors").write_bytes(bytes(32))
    rundir.mark_complete(folder, 8)  # as an earlier version noted it
    assert checkpoints.carried_files(site.kept)[0] == 4


def test_nothing_goes_on_of_what_is_behind_a_link(site):
    real = write(site.home / "elsewhere")
    (site.kept / "output").mkdir(parents=True)
    (site.kept / "output/checkpoint-4").symlink_to(real)
    assert checkpoints.carried_files(site.kept) == (0, [])
    assert checkpoints.carried_files(site.home / "nothing") == (0, [])


@pytest.mark.parametrize(
    "name", ["sitecustomize.py", "../x", "output/checkpoint-4/training_args.bin", "output/checkpoint-4/../../x"]
)
def test_only_parts_of_a_checkpoint_are_laid_out_for_a_trainer(tmp_path, name):
    with pytest.raises(UserError, match="is no part of a checkpoint that is taken to another trainer"):
        launch.input_files(RUN, tmp_path, "text", tmp_path, [name], {})


@pytest.mark.parametrize("path", ["../x", "/x", "runs/../../x", "a//b", "a\nb"])
def test_what_is_laid_out_stays_in_its_folder(tmp_path, path):
    tree = tmp_path / "tree"
    tree.mkdir()
    with pytest.raises(UserError, match="it is sent to no trainer"):
        transfer.build_tree(tree, [{"path": path, "content": "x"}])
    assert [entry.name for entry in tmp_path.iterdir()] == ["tree"]


def test_what_is_laid_out_is_not_written_through_a_link(tmp_path):
    for name in ("tree", "victim", "to"):
        (tmp_path / name).mkdir()
    (tmp_path / "tree/runs").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="lies behind a link"):
        transfer.build_tree(tmp_path / "tree", [{"path": "runs/x", "content": "x"}])
    (tmp_path / "tree/runs").unlink()
    transfer.build_tree(tmp_path / "tree", [{"path": "runs/x", "content": "x"}])
    (tmp_path / "to/runs").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="lies behind a link"):
        transfer.copy(tmp_path / "tree", tmp_path / "to")
    assert list((tmp_path / "victim").iterdir()) == []


def test_how_much_a_checkpoint_may_have_follows_from_the_plan():
    wanted = {"a": 100 << 30, "b": 1 << 30}
    assert checkpoints.most_bytes(planned_run(rehearsal=True), wanted) == 2 << 30
    assert checkpoints.most_bytes(planned_run(estimate=Estimate(memory_gib=24.0)), wanted) == 25 << 30
    assert checkpoints.most_bytes(planned_run(), wanted) == 101 << 30
