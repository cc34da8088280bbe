"""What a limit means, by Ansible's own reading of patterns."""

from __future__ import annotations

import pytest
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.lora_forge.controller import limits
from ansible.parsing.dataloader import DataLoader


@pytest.fixture
def inventory():
    made = InventoryManager(DataLoader(), sources=["gpu-1,gpu-10,"])
    for name in ("my gpu", "~gpu"):
        made.add_host(name)
    made.reconcile_inventory()
    return made


@pytest.mark.parametrize("outside", [[], ["gpu-1"], ["gpu-1", "my gpu", "~gpu"]])
def test_what_is_played_within_a_limit(inventory, outside) -> None:
    inventory.subset(limits.subset(outside, ["localhost"]))
    inventory.add_host("new")
    inventory.reconcile_inventory()
    expected = [name for name in ("gpu-1", "gpu-10", "my gpu", "~gpu", "new") if name not in outside]
    assert sorted(host.name for host in inventory.get_hosts("all")) == sorted(expected)
    assert [host.name for host in inventory.get_hosts("localhost")] == ["localhost"]
    inventory.subset(limits.subset(outside, []))
    assert inventory.get_hosts("localhost") == []


def test_a_limit_holds_a_trainer_or_localhost() -> None:
    assert limits.problem("a", ["a", "b"], ["b"], names_localhost=False) == ""
    assert limits.problem("localhost", ["a"], ["a"], names_localhost=True) == ""
    nothing = "--limit web names no trainer of the inventory, so that nothing would be done"
    assert limits.problem("web", ["a", "b"], ["a", "b"], names_localhost=False) == f"{nothing}. Trainers: a, b"
    assert limits.problem("web", [], [], names_localhost=False) == f"{nothing}. It has none; -i … names another one"


@pytest.mark.parametrize(
    ("limit", "picked", "left_out"),
    [
        ("gpu-1,my gpu,~gpu", [], []),
        ("gpu-1,gpu-9", ["«gpu-9»; did you mean «gpu-1»? It is passed over"], []),
        ("all:&gpu-1:&rack", ["«rack». It is passed over"], []),
        ("gpu-*,web-*", ["«web-*». It is passed over"], []),
        ("gpu-*[0]:localhost:empty:!empty", [], []),
        ("gpu-1,all[7:8]", ["«all[7:8]». It is passed over"], []),
        ("all:!*.old:!~old-.*", [], []),  # a pattern may well match nothing at present
        ("all:!gpu-2:!rack", [], ["«gpu-2», and the inventory has no such host or group; did you mean", "«rack», and"]),
    ],
)
def test_what_a_limit_names_and_the_inventory_lacks(inventory, limit, picked, left_out) -> None:
    inventory.add_group("empty")
    inventory.subset(limit)
    names = [*inventory.hosts, *inventory.groups]
    warnings, errors = limits.unknown_names(
        inventory._subset, names, lambda name: bool(inventory.get_hosts(name, ignore_limits=True))
    )
    assert [sentence.removeprefix("--limit: the inventory has no host or group ") for sentence in warnings] == picked
    assert len(errors) == len(left_out)
    for sentence, words in zip(errors, left_out):
        assert sentence.startswith(f"--limit leaves out {words}")
        assert sentence.endswith("Correct it, or take it out of the limit")
