"""Random answers, right into what status, watch and collect make of them: an error in words at most, and no other file.

The answers are made of a right one, in which some values are others, or are something that nobody expects at all.
"""

from __future__ import annotations

import copy
import json
import pathlib
import re
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.lora_forge.controller import actions
from ansible.module_utils.lora_forge.errors import UserError
from ansible.plugins.action import ActionBase
from hostile import CONTROL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planned import planned_run
from wire import load

RUN = planned_run(run_id="mayor-0123456789ab", agent="mayor", name="mayor", trainer="evil", recipe={"base_model": "m"})
PROGRESS = {
    "step": 3, "planned": 9, "epoch": 0.3, "loss_first": 2.0, "loss": 1.5, "eval_first": 2.0, "eval_loss": 1.9,
    "tokens_per_second": 100.0, "adapter_step": 3, "seconds_per_step": 1.0, "began_at": 1e9, "last_event_at": 1e9,
    "wandb": {"mode": "offline", "run": "a/b/c", "url": "https://x"}, "ended": False, "measured": 3, "data": None,
    "end_reason": None, "eval_adapter": None,
}  # fmt: skip
SEEN = {
    "changed": False, "state": "stopped", "detail": "by hand", "status": {"state": "stopped", "starts": 1},
    "alive": False, "progress": PROGRESS, "eta_seconds": None, "token": "1:a", "silent_for": 1.0, "others": {},
    "over": [],
    "events": [{"event": "log", "time": 1.0, "step": 3, "planned": 9, "loss": 1.5, "epoch": 0.3}],
    "checkpoint": {"step": 2, "files": ["output/checkpoint-2/trainer_state.json", "output/checkpoint-2/complete.json"]},
    "facts": {"run_id": RUN.run_id, "agent": "mayor", "hosts": ["evil"], "rehearsal": True},
}  # fmt: skip
LISTED = {
    **{key: value for key, value in SEEN.items() if key not in ("events", "token", "others", "changed")},
    "run_id": RUN.run_id, "agent": "mayor", "gpu": None, "gpu_busy": None,
}  # fmt: skip
GPU = {"index": 0, "uuid": "GPU-1", "name": "A100", "memory_mib": 81920, "used_mib": 1, "use": 3}
TRAINER = {"changed": False, "runs": [LISTED], "gpus": [GPU]}
FILE = {"path": "train.log", "name": "train.log", "bytes": 3, "sha256": "0" * 64}
ADAPTER = {"changed": False, "problems": [], "modules": 7, "rank": 64, "parameters": 9, "untrained": 0,
           "versions": {"a": "1"}, "files": [FILE]}  # fmt: skip

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["../../x", "/etc/passwd", "~/x", "\x1b[2J", "{{ 1 }}", "running", "finished", "failed", "a" * 9999]
    ),
)
atoms = st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from([-1, 0, 10**400, 2**63]), st.floats(), texts)
values = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the ways to all values in a JSON value."""
    if way:
        yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*way, key))


@st.composite
def mutants(draw: st.DrawFn, right: dict[str, Any]) -> Any:
    """Return a right answer with some values that are others, or are missing; now and then something else."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    made = copy.deepcopy(right)
    for way in draw(st.lists(st.sampled_from(list(places(right))), min_size=1, max_size=3)):
        here: Any = made
        try:
            for key in way[:-1]:
                here = here[key]
            if draw(st.booleans()) or not isinstance(here, dict):
                here[way[-1]] = draw(values)
            else:
                del here[way[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # it lay in something that is another thing already
    return made


bounded = settings(
    derandomize=True, max_examples=80, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


class Controller:
    """Actions with prepared answers of the host, and what they would do elsewhere; nothing is told but noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: pathlib.Path):
        self.home, self.output = home, home / "output"
        self.answers: list[Any] = []
        self.told: list[str] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(ActionBase, "_execute_module", lambda action, *_, **__: self.answer())
        monkeypatch.setattr(actions.ForgeAction, "run_action", self.run_action)

    def answer(self) -> dict[str, Any]:
        if not self.answers:
            raise AnsibleConnectionFailure("the host is gone")
        found = self.answers.pop(0)
        # What is no object Ansible itself makes a failure of.
        return (
            dict(found) if isinstance(found, dict) else {"failed": True, "msg": "no JSON", "module_stdout": str(found)}
        )

    def run_action(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((name, args))
        return {"failed": True, "msg": "the test ends here"}

    def act(self, name: str, *answers: Any, **args: Any) -> dict[str, Any]:
        """Run an action; whatever it returns, and what it tells, is for people to read."""
        plugin = load(f"action_plugins/{name}")
        self.answers, self.told, self.asked = list(answers), [], []
        if hasattr(plugin, "tell"):
            plugin.tell = lambda text, **about: self.told.append(text)
        task = mock.Mock(args=args, check_mode=False, async_val=0, delegate_to=None)
        loaders = types.SimpleNamespace(action_loader=None)
        action = plugin.ActionModule(task, *[mock.Mock()] * 4, shared_loader_obj=loaders)
        found: dict[str, Any] = action.run(task_vars={"inventory_hostname": "evil"})
        return found

    def check(self) -> None:
        """Find no file but where files may be, and no path in what is asked that leads out of its folder."""
        assert {path.name for path in self.home.iterdir()} <= {"output", "pods"}
        assert {path.name for path in self.output.iterdir()} <= {"runs", "status.json", "adapters", "incoming"}
        below = self.output / "runs"
        assert not below.exists() or {path.name for path in below.iterdir()} <= {
            RUN.run_id, f"{RUN.run_id}.json", f".{RUN.run_id}.lock", f".{RUN.run_id}.files.lock"
        }  # fmt: skip
        for _, args in self.asked:
            assert not args.get("to") or pathlib.Path(args["to"]).is_relative_to(self.output)
            for path in args.get("files", []):
                words = path if isinstance(path, str) else path["path"]
                assert re.fullmatch(r"[\w.-]+(/[\w.-]+)*", words)
                assert ".." not in words.split("/")


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Controller:
    (tmp_path / "output").mkdir()
    return Controller(monkeypatch, tmp_path)


def shown(answer: dict[str, Any]) -> str:
    table = answer["show"]
    return json.dumps([table["rows"], table["lines"]], ensure_ascii=False)


GOOD = {"runs": [LISTED | {"run_id": "witness-0123456789ab", "agent": "witness"}], "gpus": []}


@bounded
@given(answer=mutants(TRAINER))
def test_status_of_whatever_a_host_answers(controller: Controller, answer: Any) -> None:
    status = load("library/training_status")
    snapshot = controller.act("trainer_info", answer, root="/r", stall_timeout=9)
    asked = {
        "output": str(controller.output),
        "pods": "",
        "agents": None,
        "checkout": pathlib.Path(__file__).resolve().parents[2],
        "wandb": False,
        "busy": [],
        "outside": [],
        "display": "table",
    }
    made = status.answer({**asked, "snapshots": {"evil": snapshot, "good": GOOD}}, False)
    assert [row["trainer"] for row in made["runs"] if row["run_id"] == "witness-0123456789ab"][:1] == ["good"]
    json.loads((controller.output / "status.json").read_text(), parse_constant=pytest.fail)
    assert len(shown(made)) < 100_000
    controller.check()


@bounded
@given(first=mutants(SEEN), second=mutants(SEEN))
def test_watching_whatever_a_host_answers(controller: Controller, first: Any, second: Any) -> None:
    notify = {"output": str(controller.output), "url": "", "form": "json", "timeout": 1, "pods": "", "events": []}
    given_args = {
        "run": RUN.as_dict(), "root": "/r", "output": str(controller.output), "stall_timeout": 9, "pull": True,
        "unreachable_timeout": -1, "stop_timeout": 1, "transfer": {}, "quiet": True, "notify": notify, "budget": {},
    }  # fmt: skip
    try:
        found = controller.act("watch", first, second, **given_args)
    except UserError:
        found = {"failed": True, "msg": "it says why"}
    assert found.get("failed") or found.get("state") == "finished"
    assert CONTROL.findall(str(found.get("msg", ""))) == []
    controller.check()


@bounded
@given(answer=mutants(ADAPTER))
def test_collecting_whatever_a_host_answers(controller: Controller, answer: Any) -> None:
    notify = {"output": str(controller.output), "url": "", "form": "json", "timeout": 1, "pods": "", "events": []}
    try:
        found = controller.act(
            "collect_adapter", answer, run=RUN.as_dict(), root="/r", output=str(controller.output), lock="trainer-cpu",
            observed=SEEN, transfer={}, gpu={}, notify=notify,
        )  # fmt: skip
    except UserError:
        found = {"failed": True, "msg": "it says why"}
    assert found["failed"]
    assert CONTROL.findall(str(found["msg"])) == []
    controller.check()
