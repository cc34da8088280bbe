"""A command that dies at any of its writes: ``latest`` is whole at every moment, and the next command goes on."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys
import warnings
from typing import Any, Callable
from unittest import mock

import expecting
import numpy as np
import pytest
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.data import conversation, staging
from ansible.module_utils.lora_forge.planned_run import PlannedDataset, PlannedRun
from ansible.module_utils.lora_forge.planning.run_record import read_record, update_record
from ansible.module_utils.lora_forge.trainer.run_state import Progress
from delivered import GATE
from hook import serving
from planned import planned_run
from safetensors.numpy import save_file

# What changes a file, by its name in C. Reading calls are left out: a death there leaves nothing new.
from seen import Seen
from wire import load

WRITES = frozenset(
    "open mkdir rmdir unlink remove rename replace symlink link write writelines flush fsync sendfile truncate "
    "ftruncate utime chmod".split()
)
MODULES = (None, "posix", "_io")
RUN = planned_run(
    run_id="witness-2", recipe={"lora_r": 4, "lora_target_modules": ["q_proj"], "base_model": "/m/tiny"}, planned_at=1.0
)
LATEST = "latest"


def die_at(number: int) -> None:
    """Have this process end like by SIGKILL before it makes its so-and-so-many-th writing call."""
    left = number

    def look(frame: Any, event: str, function: Any) -> None:
        nonlocal left
        if event != "c_call" or function.__name__ not in WRITES or getattr(function, "__module__", "") not in MODULES:
            return
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)


def fork(call: Callable[[], Any], number: int = 0) -> int:
    """Make a call in a process of its own, which dies at a write where one is given; return its pid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pytest-xdist's threads: nothing here asks for one
        pid = os.fork()
    if not pid:
        code = 1
        try:
            if number:
                die_at(number)
            call()
            code = 0
        finally:
            os._exit(code)
    return pid


def dies(call: Callable[[], Any], number: int) -> bool:
    """Make a call in a process of its own that dies at a write; tell whether it came that far."""
    ended = os.waitstatus_to_exitcode(os.waitpid(fork(call, number), 0)[1])
    assert ended in (0, -signal.SIGKILL)
    return ended != 0


class Delivery:
    """A finished run of the witness, delivered from what was fetched of it, and summed up."""

    def __init__(self, folder: pathlib.Path):
        self.made = folder / "made"
        (self.made / "output").mkdir(parents=True)
        names = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"]
        tensors = {name: np.full((4, 4), 0.5, np.float32) for name in names}
        save_file(tensors, self.made / "output" / store.WEIGHTS)
        expecting.leave(self.made, tensors, "/m/tiny")
        config = {"r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "/m/tiny"}
        (self.made / "output/adapter_config.json").write_text(json.dumps(config))
        for name, needed in store.FILES.items():
            if needed and not (self.made / name).exists():
                (self.made / name).write_text("{}\n")
        facts = store.verify(self.made / "output", RUN.recipe, self.made / "expected.json")
        self.proof = facts | {"files": store.checked_files(store.list_files(self.made)), "versions": {}}
        self.deliver, self.sum_up = load("library/lora_adapter"), load("library/lora_adapter_summary")
        self.deliver.git_facts = lambda checkout: {}

    def fetch(self, output: pathlib.Path) -> None:
        """Have the run's files as a fetch leaves them, and a checkpoint of it; nothing where it is ready."""
        if store.integrity_error(output / "adapters/witness/witness-2"):
            shutil.copytree(self.made, output / "incoming/witness-2", dirs_exist_ok=True)
            (output / "runs/witness-2/output/checkpoint-1").mkdir(parents=True, exist_ok=True)

    def module(self, output: pathlib.Path, run: PlannedRun = RUN, **changes: Any) -> dict[str, Any]:
        """Deliver and promote."""
        progress = Progress(step=2, planned=2, loss=1.0, eval_loss=1.0, eval_adapter=1.0).as_dict()
        given = {
            "source": str(output / "incoming" / RUN.run_id), "adapters": str(output / "adapters"), "checkout": "/",
            "run": run.as_dict(), "delivered": self.proof, "base_model": "/m/tiny", "host": {}, "budget": {},
            "observed": {"state": "finished", "detail": "", "status": {"exit_code": 0}, "progress": progress},
            "lock_sha256": "", **GATE, "promote_unknown": "move", "promote": True,
            "discard": [str(output / "incoming" / RUN.run_id), str(output / "runs" / RUN.run_id)],
        }  # fmt: skip
        return self.deliver.answer(given | changes, False)

    def summary(self, output: pathlib.Path) -> dict[str, Any]:
        """Sum up, as a command does that finds the run ready."""
        run = planned_run(**{**vars(RUN), "state": "ready"})
        given = {"output": str(output), "checkout": "/", "runs": [run.as_dict()],
                 "detached": False, "promote_best": False, **GATE, "promote_unknown": "move"}  # fmt: skip
        return self.sum_up.answer(given, False)

    def command(self, output: pathlib.Path) -> None:
        """Do what a command does: what is ready is not delivered again."""
        if store.integrity_error(output / "adapters/witness/witness-2"):
            self.module(output)
        self.summary(output)


@pytest.fixture(scope="module")
def delivery(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    return Delivery(tmp_path_factory.mktemp("delivery"))


def before(delivery: Delivery, output: pathlib.Path, what: str) -> None:
    """Leave what a command finds: nothing, an older adapter, or the same one, which somebody has damaged."""
    delivery.fetch(output)
    if what == "older":
        delivery.module(output, planned_run(**{**vars(RUN), "run_id": "witness-1"}))
    elif what == "damaged":
        delivery.module(output)
        (output / "adapters/witness/witness-2/train.log").write_text("cut off")


def held(output: pathlib.Path) -> str:
    """Return what ``latest`` points to, which is whole; empty without it."""
    latest = output / "adapters/witness/latest"
    if not os.path.lexists(latest):
        return ""
    assert latest.is_dir(), f"it dangles: {os.readlink(latest)}"
    assert store.integrity_error(latest.resolve(), hashes=True) is None
    return os.readlink(latest)


class Collection(Delivery):
    """The same by the action, from a run directory on this machine: proven, delivered, noted, and told of."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        self.plugin, self.late = load("action_plugins/collect_adapter"), load("action_plugins/tell_late")
        self.url = ""
        (folder / "runs").mkdir()
        (folder / "runs/witness-2").symlink_to(self.made)
        self.root = folder

    def module(self, output: pathlib.Path, run: PlannedRun = RUN, **changes: Any) -> dict[str, Any]:
        """Collect it."""
        progress = Progress(step=2, planned=2, loss=1.0, eval_loss=1.0, eval_adapter=1.0).as_dict()
        observed = {"state": "finished", "detail": "", "status": {"exit_code": 0}, "progress": progress}
        args = {"run": run.as_dict(), "observed": observed, "output": str(output), "lock": "trainer-cpu",
                "root": str(self.root), "gpu": {}, "transfer": {}, "notify": self.notify(output)}  # fmt: skip
        task = mock.Mock(args=args, check_mode=False, async_val=0)
        action = self.plugin.ActionModule(task, mock.Mock(transport="local"), *[mock.Mock()] * 4)
        defaults = {name: spec.get("default") for name, spec in self.deliver.ARGUMENTS.items()}
        action.run_module = lambda *about, **more: self.proof
        action.run_action = lambda name, given: self.deliver.answer({**defaults, **given, **changes}, False)
        return action.run(task_vars={"inventory_hostname": "here"})

    def notify(self, output: pathlib.Path) -> dict[str, Any]:
        """Return who is told of what."""
        events = ["finished", "decision"]
        return {"output": str(output), "url": self.url, "form": "json", "timeout": 60, "events": events, "pods": ""}

    def summary(self, output: pathlib.Path) -> dict[str, Any]:
        """Sum up, and tell what nobody told."""
        made = super().summary(output)
        for untold in made["untold"]:
            task = mock.Mock(args=untold | {"notify": self.notify(output)}, check_mode=False, async_val=0)
            self.late.ActionModule(task, *[mock.Mock()] * 5).run(task_vars={"inventory_hostname": "localhost"})
        return made


def test_an_adapter_that_somebody_has_to_promote_comes_with_the_command(
    delivery: Delivery, tmp_path: pathlib.Path
) -> None:
    delivery.fetch(tmp_path)
    made = delivery.module(tmp_path, promote_by="human")
    assert (made["promoted"], held(tmp_path)) == (False, "")
    command = "ansible-playbook playbooks/promote.yml -e role=witness -e run_id=witness-2"
    assert made["waits"].startswith("it was asked no cases. latest points to nothing: adapter_promote is human")
    assert made["waits"].endswith(command)
    assert made["message"].endswith(command)
    other = tmp_path / "other"
    delivery.fetch(other)
    assert delivery.module(other)["waits"] == ""


# Each fourth of the calls; all of them take minutes.
calls = pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])


@calls
def test_a_collection_that_dies_is_ended_by_the_next_command(tmp_path: pathlib.Path, every: int, seen: Seen) -> None:
    (tmp_path / "trainer").mkdir()
    collection = Collection(tmp_path / "trainer")
    with serving() as hook:
        for number in range(1, 1000, every):
            output, collection.url = tmp_path / str(number), f"{hook.url}/at-{number}"
            update_record(output, "witness-2", lambda record, now: record.ended("finished", "here", now))  # as watching
            died = dies(lambda output=output: collection.command(output), number)
            collection.command(output)
            assert held(output) == "witness-2", number
            if not died:
                record = read_record(output, "witness-2")
                assert (record.delivered_at > 1, record.is_settled("finished")) == (True, True)
                break
    assert number > 20
    assert [told["event"] for told in hook.told] == ["finished"] * len(hook.told)
    ids: dict[int, list[str]] = {}
    for path, told in zip(hook.paths, hook.told):
        ids.setdefault(int(path.rpartition("-")[2]), []).append(told["id"])
    assert sorted(ids) == list(range(1, number + 1, every)), "one was never told"
    assert all(len(set(of_one)) == 1 for of_one in ids.values()), "one was told twice, and nobody could know"
    assert len({of_one[0] for of_one in ids.values()}) == len(ids)
    twice = sum(len(of_one) > 1 for of_one in ids.values())
    assert twice < 25, "only one that dies when it has told may leave that to be told again"
    if every == 1:
        seen(
            "a command is killed at each writing call of a collection",
            "controller",
            f"{number} calls: the next command delivered, noted, promoted and told it each time; what may have been "
            "told already came with the same id",
        )


def entries(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@calls
@pytest.mark.parametrize("what", ["nothing", "older", "damaged"])
def test_a_delivery_that_dies_is_ended_by_the_next_command(
    delivery: Delivery, tmp_path: pathlib.Path, what: str, every: int, seen: Seen
) -> None:
    before(delivery, tmp_path / "0", what)
    home = "adapters/witness"
    for number in range(1, 1000, every):
        output = tmp_path / str(number)
        shutil.copytree(tmp_path / "0", output, symlinks=True)
        delivery.fetch(output)
        died = dies(lambda output=output: delivery.command(output), number)
        log = output / home / "witness-2/train.log"
        if not (log.exists() and log.read_text() == "cut off"):  # what somebody damaged
            assert held(output) in ("", "witness-1", "witness-2"), number
        delivery.fetch(output)
        delivery.command(output)
        assert held(output) == "witness-2", number
        assert entries(output / home) == ["history.jsonl", LATEST, *["witness-1"] * (what == "older"), "witness-2"]
        assert (entries(output / "incoming"), entries(output / "runs/witness-2")) == ([], []), number
        lines = [line["run_id"] for line in promotion.history(output / home) if line["moved"]]
        assert lines[-1] == "witness-2"
        if not died:
            break
    assert number > 20
    there = {"nothing": "no adapter", "older": "an older adapter", "damaged": "the same adapter, damaged"}[what]
    if every == 1:
        seen(
            f"a command is killed at each writing call of a delivery, where {there} was before",
            "controller",
            f"{number} calls: `latest` old, absent or whole at each; the next command ended it",
        )


def test_of_two_at_once_one_delivers(delivery: Delivery, tmp_path: pathlib.Path) -> None:
    """Both find the same adapter, whole, whoever was first, round after round."""
    for number in range(5):
        output = tmp_path / str(number)
        delivery.fetch(output)
        both = [fork(lambda output=output: delivery.module(output)) for _ in range(2)]
        assert [os.waitpid(pid, 0)[1] for pid in both] == [0, 0]
        assert held(output) == "witness-2"
        lines = promotion.history(output / "adapters/witness")
        assert [(line["run_id"], line["moved"]) for line in lines] == [("witness-2", True)]


def test_a_record_that_dies_is_the_old_one_or_the_new_one(tmp_path: pathlib.Path, seen: Seen) -> None:
    for number in range(1, 100):
        output = tmp_path / str(number)
        update_record(output, "witness-2", lambda record, now: record.launched("gpu", 0, now))
        died = dies(
            lambda output=output: update_record(
                output, "witness-2", lambda record, now: record.ended("finished", "gpu", now)
            ),
            number,
        )
        assert read_record(output, "witness-2").state in (("launched", "finished") if died else ("finished",))
        update_record(output, "witness-2", lambda record, now: record.ended("stopped", "gpu", now))
        assert read_record(output, "witness-2").state == "stopped"
        if not died:
            break
    assert number > 3
    seen(
        "a command is killed at each writing call of a run's record", "controller", "the old one or the new one, whole"
    )


def test_staging_that_dies_is_done_again(tmp_path: pathlib.Path, seen: Seen) -> None:
    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    (tmp_path / "train.jsonl").write_text(line + "\n")
    written = conversation.read(line.encode(), conversation.Keys.from_options({})).line
    sha256 = hashlib.sha256(written).hexdigest()
    planned = PlannedDataset.from_dict(
        {"path": "train.jsonl", "use": "train", "sha256": sha256, "examples": 1, "entry": {}, "reading": {}}
    )

    def stage(output: pathlib.Path) -> None:
        with staging.staged([planned], tmp_path, output) as places:
            assert places[sha256].read_bytes() == written

    for number in range(1, 100):
        output = tmp_path / str(number)
        died = dies(lambda output=output: stage(output), number)
        stage(output)
        assert entries(output / "staged") == [f"{sha256}.jsonl"]
        if not died:
            break
    assert number > 3
    seen("a command is killed at each writing call of staging", "controller", "the next command stages the data anew")
