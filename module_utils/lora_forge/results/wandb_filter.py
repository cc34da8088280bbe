"""W&B's record of a run, copied with what a trainer may say in it, and nothing else.

A record tells W&B's client more than figures: which files to upload, by their paths on the machine that uploads, and
whose run it is. One that a trainer wrote is read here by the controller's client, with the controller's files and key.

Format: seven bytes (``:W&B``, 0xBEE1, a version), then LevelDB's log: blocks of 32 KiB, and in them pieces of records,
each with a checksum (here zlib's CRC-32), a length and a type. A record is a protobuf message ``Record``
(wandb/proto/wandb_internal.proto of the client, 0.31).
"""

from __future__ import annotations

import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Union

_MAGIC = b":W&B\xe1\xbe\x00"
_BLOCK, _HEAD = 32768, struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_LARGEST = 64 << 20  # bytes of a record; what is larger is left out
_MOST_FIELDS = 10_000  # of a message; a record of the client has some tens
_NUMBER = 1  # Record.num
# Of Record: history, summary, output, config, stats, metric, output_raw, exit, final, header, footer. Left out is what
# names files (files, artifact, tbrecord, use_artifact and its like), asks for something (request, alert), and what
# tells of the machine (environment, telemetry).
_PLAIN = frozenset({2, 3, 4, 5, 7, 12, 13, 18, 20, 21, 22})
_RUN = 17
_RUN_ID, _ENTITY, _PROJECT = 1, 2, 3
# Of RunRecord: config, summary, group, job type, name, notes, tags, first step, start, resumed, runtime, resume.
_RUN_KEPT = frozenset({4, 5, 6, 7, 8, 9, 10, 14, 17, 18, 20, 24})


class Place(NamedTuple):
    """Whose run a record is of at W&B; an empty text is the client's default."""

    run_id: str
    entity: str
    project: str


Value = Union[int, bytes]
Field = tuple[int, int, Value]  # number, wire type, value


def copy_record(source: pathlib.Path, target: pathlib.Path, place: Place | None) -> None:
    """Copy a record, without what is not for a trainer to say; one that was cut off as far as it goes.

    Args:
        source: A file ``run-<id>.wandb``.
        target: The new file.
        place: Whose run it is; None where the record may say it, as nobody else has written it.
    """
    with source.open("rb") as old, target.open("wb") as new:
        new.write(_MAGIC)
        for record in _records(old):
            kept = filtered(record, place)
            if kept:
                _append(new, kept)


def filtered(record: bytes, place: Place | None) -> bytes:
    """Return a record with what may stay of it; empty where it is of a kind that goes.

    Args:
        record: A message ``Record``.
        place: As of :func:`copy_record`.
    """
    try:
        fields = _fields(record)
        kinds = [field for field in fields if field[0] in _PLAIN or field[0] == _RUN]
        # More than one kind would be read as the last one, and merged where it stands twice.
        if len(kinds) != 1 or kinds[0][1] != 2:
            return b""
        number, wire, value = kinds[0]
        if number == _RUN:
            assert isinstance(value, bytes)
            own = _fields(value)
            if place is not None:
                own = [field for field in own if field[0] not in (_RUN_ID, _ENTITY, _PROJECT)]
                texts = ((_RUN_ID, place.run_id), (_ENTITY, place.entity), (_PROJECT, place.project))
                own += [(key, 2, text.encode()) for key, text in texts if text]
            kept = _RUN_KEPT | {_RUN_ID, _ENTITY, _PROJECT}
            value = b"".join(_written(field) for field in own if field[0] in kept)
        numbers = [field for field in fields if field[0] == _NUMBER and field[1] == 0]
        return b"".join(_written(field) for field in [*numbers[:1], (number, wire, value)])
    except (ValueError, IndexError):
        return b""


# --- LevelDB's log ---------------------------------------------------------------------------------------------------


def _records(file: BinaryIO) -> Iterator[bytes]:
    """Yield the records of a file, up to the first one that is damaged."""
    if file.read(len(_MAGIC)) != _MAGIC:
        return
    parts: list[bytes] = []
    at, size = len(_MAGIC), 0
    while True:
        rest = _BLOCK - at % _BLOCK
        if rest < _HEAD.size:
            file.read(rest)
            at += rest
            continue
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        checksum, length, kind = _HEAD.unpack(head)
        data = file.read(length)
        at += _HEAD.size + length
        if len(data) < length or length > rest - _HEAD.size or zlib.crc32(bytes([kind]) + data) != checksum:
            return
        if kind in (_FULL, _FIRST):
            parts, size = [], 0
        elif kind not in (_MIDDLE, _LAST):
            return
        size += length
        if size <= _LARGEST:
            parts.append(data)
        if kind in (_FULL, _LAST) and size <= _LARGEST:
            yield b"".join(parts)


def _append(file: BinaryIO, record: bytes) -> None:
    """Write a record behind the others."""
    begin = 0
    while True:
        rest = _BLOCK - file.tell() % _BLOCK
        if rest < _HEAD.size:
            file.write(bytes(rest))
            continue
        piece = record[begin : begin + rest - _HEAD.size]
        end = begin + len(piece)
        last = end == len(record)
        kind = (_FULL if last else _FIRST) if begin == 0 else (_LAST if last else _MIDDLE)
        file.write(_HEAD.pack(zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece)
        begin = end
        if last:
            return


# --- protobuf --------------------------------------------------------------------------------------------------------


def _fields(message: bytes) -> list[Field]:
    """Take a message apart.

    Raises:
        ValueError: It is none, or has more fields than any.
        IndexError: It is cut off.
    """
    fields: list[Field] = []
    at = 0
    while at < len(message):
        if len(fields) == _MOST_FIELDS:
            raise ValueError("too many fields")
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        value: Value
        if wire == 0:
            value, at = _varint(message, at)
        else:
            if wire == 2:
                length, at = _varint(message, at)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire}")
            value = message[at : at + length]
            if len(value) < length:
                raise IndexError
            at += length
        fields.append((number, wire, value))
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without end")


def _written(field: Field) -> bytes:
    number, wire, value = field
    tag = _number(number << 3 | wire)
    if isinstance(value, int):
        return tag + _number(value)
    return tag + (_number(len(value)) if wire == 2 else b"") + value


def _number(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)
