"""Collecting an adapter from a trainer that answers what it likes."""

from __future__ import annotations

import pathlib
from typing import Any
from unittest import mock

import pytest
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.controller.actions import ForgeAction
from planned import planned_run
from wire import load

FACTS = {"problems": [], "modules": 1, "rank": 4, "parameters": 1, "untrained": 0, "versions": {}}
FILES = [{"path": path, "name": path, "bytes": 3, "sha256": "a" * 64} for path in store.FILES]


@pytest.fixture
def collect(monkeypatch, tmp_path):
    """Provide a collection with a trainer's list of files; lists the actions that it ran."""
    ran: list[tuple[str, dict[str, Any]]] = []
    plugin = load("action_plugins/collect_adapter")
    monkeypatch.setattr(plugin, "tell", lambda *words, **about: None)
    monkeypatch.setattr(plugin, "notify", lambda *about, **more: None)

    def run_action(action: Any, name: str, args: dict[str, Any]) -> dict[str, Any]:
        ran.append((name, args))
        return {"failed": True, "msg": "so far"}

    monkeypatch.setattr(ForgeAction, "run_action", run_action)

    def make(files: Any) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
        notify = {"output": str(tmp_path), "url": "", "form": "json", "timeout": 1, "events": [], "pods": ""}
        run = planned_run(recipe={"base_model": "Qwen/Tiny"}).as_dict()
        args = {"run": run, "observed": {"progress": {}}, "output": str(tmp_path), "lock": "trainer-cpu",
                "root": "/r", "gpu": {}, "transfer": {}, "notify": notify}  # fmt: skip
        task = mock.Mock(args=args, check_mode=False, async_val=0)
        connection = mock.Mock(transport="ssh", get_option=lambda name: "ssh", _build_command=lambda *words: [b"ssh"])
        action = plugin.ActionModule(task, connection, *[mock.Mock()] * 4)
        monkeypatch.setattr(plugin.ActionModule, "_execute_module", lambda *about, **more: FACTS | {"files": files})
        return action.run(task_vars={"inventory_hostname": "pod-1"}), ran

    return make


@pytest.mark.parametrize("waits", ["", "cases 3 of 5. By hand: …"])
def test_a_webhook_is_told_that_an_adapter_waits_for_somebody(monkeypatch, tmp_path, waits):
    plugin, told = load("action_plugins/collect_adapter"), []
    monkeypatch.setattr(plugin, "notify", lambda event, run, detail, *rest, **when: told.append((event, detail, when)))
    args = {"output": str(tmp_path), "observed": {"progress": {}}, "notify": {}}
    action = plugin.ActionModule(mock.Mock(), mock.Mock(), *[mock.Mock()] * 4)
    run = planned_run()
    action.conclude(run, args, {"promoted": False, "message": "latest stays", "waits": waits})
    assert told[0] == ("finished", "latest stays", {"since": run.planned_at})
    assert told[1:] == ([("decision", waits, {"since": 0.0})] if waits else [])


def test_what_an_adapter_consists_of_is_asked_for_with_its_sizes(collect, tmp_path):
    damaged = tmp_path / f"incoming/{planned_run().run_id}" / next(iter(store.FILES))
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(bytes(3))  # as a power cut left it
    found, ran = collect(FILES)
    [(name, asked)] = ran
    assert not damaged.exists()
    assert (name, asked["to"]) == ("transfer", str(tmp_path / f"incoming/{planned_run().run_id}"))
    assert asked["files"] == [{"path": path, "bytes": 3} for path in store.FILES]
    assert (found["failed"], found["step"]) == (True, "fetch")


@pytest.mark.parametrize("path", ["/home/user/.bashrc", "../../../.bashrc", "output/x.py", 7])
@pytest.mark.parametrize("key", ["path", "name"])
def test_a_path_of_its_own_choice_has_nothing_fetched(collect, tmp_path, path, key):
    found, ran = collect([*FILES, {**FILES[0], "path": "evil", key: path}])
    assert ran == [], "something was fetched"
    assert found["failed"]
    assert "the trainer lists" in found["msg"] or f"does not fit: files.{len(FILES)}" in found["msg"]
    assert not pathlib.Path(tmp_path, "incoming").exists()
