"""Dataclasses that pass from file to file and from host to host as JSON: one reader and one writer for all of them.

Python 3.9 or newer, as trainers have it.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import Any, TypeVar, Union

_GREATEST = 10**15  # a time, a price, a count of bytes that is greater is none
Record = TypeVar("Record", bound="JsonRecord")


class JsonRecord:
    """The base of these dataclasses. The types of their fields say what is read.

    Those may be other records, ``tuple[…, ...]`` of one type, which JSON has as a list, ``Optional`` and ``Union``, and
    what JSON has itself. What a dict holds is not looked at.
    """

    @classmethod
    def from_dict(cls: type[Record], data: Any) -> Record:
        """Read a record, whatever is in it.

        Another version may have written it, and somebody may have damaged it: unknown keys are passed over, and a value
        of a wrong type counts as not given, also in a list. So does a number that is not finite, or greater than any
        that is meant; where a text will do, it is one.

        Args:
            data: A JSON object; anything else reads as an empty one.

        Raises:
            TypeError: A field that has no default is not given.
        """
        kind: Any = cls
        given = data if isinstance(data, dict) else {}
        values = {name: _read(hint, given.get(name)) for name, hint in _hints(kind).items()}
        return kind(**{name: value for name, value in values.items() if value is not None})

    def as_dict(self) -> dict[str, Any]:
        """Write it as a JSON object, its keys in the order of the fields."""
        return {name: _plain(value) for name, value in vars(self).items()}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(hint: Any, value: Any) -> Any:
    """Read a value as a type says; None where it is of another one."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return value
    if origin in (Union, getattr(types, "UnionType", Union)):  # X | Y, from Python 3.10 on
        if isinstance(value, float) and str in parts and not abs(value) <= _GREATEST:
            return str(value)  # as losses that are not finite are logged
        return next((read for part in parts if (read := _read(part, value)) is not None), None)
    if origin in (tuple, list):
        items = [_read(parts[0], item) for item in value] if isinstance(value, (list, tuple)) else None
        return None if items is None else origin(item for item in items if item is not None)
    kind = origin or hint
    if issubclass(kind, JsonRecord):
        return kind.from_dict(value)
    if isinstance(value, bool) is not (kind is bool):  # which Python takes for a number
        return None
    if kind in (int, float) and isinstance(value, (int, kind)):
        return value if abs(value) <= _GREATEST else None  # not for NaN either
    return value if isinstance(value, kind) else None


def _plain(value: Any) -> Any:
    if isinstance(value, JsonRecord):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
