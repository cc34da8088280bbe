"""Reading and writing dataclasses as JSON: what is read of damaged data, and that what is written is read again."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Optional

import pytest
from ansible.module_utils.lora_forge.json_record import JsonRecord


@dataclasses.dataclass(frozen=True)
class Wheel(JsonRecord):
    size: int = 28


@dataclasses.dataclass(frozen=True)
class Bicycle(JsonRecord):
    name: str
    gears: int = 3
    weight: float = 12.5
    sold: bool = False
    bell: Any = "brass"
    lamp: Optional[str] = None
    price: float | str | None = None
    wheels: tuple[Wheel, ...] = ()
    front: Wheel = dataclasses.field(default_factory=Wheel)
    parts: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_what_is_written_is_read_again():
    whole = Bicycle("Anna", 7, 10, True, None, "LED", "on request", (Wheel(26), Wheel()), Wheel(26), {"chain": [1]})
    text = json.dumps(whole.as_dict())
    assert text == (
        '{"name": "Anna", "gears": 7, "weight": 10, "sold": true, "bell": null, "lamp": "LED", "price": "on request", '
        '"wheels": [{"size": 26}, {"size": 28}], "front": {"size": 26}, "parts": {"chain": [1]}}'
    )
    assert Bicycle.from_dict(json.loads(text)) == dataclasses.replace(whole, bell="brass")  # null counts as not given
    assert Bicycle.from_dict(whole.as_dict() | {"of a later version": 1}).gears == 7


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("gears", True, 3), ("gears", 7.0, 3), ("gears", "7", 3), ("sold", 1, False), ("sold", True, True),
        ("weight", 9, 9), ("weight", False, 12.5), ("weight", math.nan, 12.5), ("weight", -math.inf, 12.5),
        ("weight", 10**400, 12.5), ("bell", [7], [7]), ("lamp", 7, None), ("price", 7, 7), ("price", math.nan, "nan"),
        ("price", -math.inf, "-inf"),
        ("price", [7], None), ("wheels", [7, {"size": 20}], (Wheel(), Wheel(20))), ("wheels", {"size": 20}, ()),
        ("front", [20], Wheel()), ("front", {"size": "20", "of a later version": 1}, Wheel()), ("parts", [], {}),
    ],
)  # fmt: skip
def test_what_is_of_another_type_counts_as_not_given(key, value, read):
    assert getattr(Bicycle.from_dict({"name": "Anna", key: value}), key) == read


@pytest.mark.parametrize("data", [{}, [], None, "Anna", {"name": 7}])
def test_what_is_needed_must_be_there(data):
    with pytest.raises(TypeError, match="name"):
        Bicycle.from_dict(data)
