"""A trainer's record of a W&B run that tells the controller's client what to upload, and whose run it is."""

from __future__ import annotations

import importlib
import pathlib
import struct
import zlib
from typing import Any
from unittest import mock

import pytest
from hostile import CONTROL, Guard, Played, Stage
from wandb_server import KEY, WandbServer

SECRET = "the key of the user's own machine"


def write_record(path: pathlib.Path, secret: pathlib.Path) -> None:
    """Write a record as the client would, of a run that ended well, and more than that."""
    with mock.patch.dict("os.environ", WANDB_ERROR_REPORTING="false"):
        pb: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    begin, point, files, artifact, again, end = (pb.Record(num=number) for number in range(1, 7))
    begin.run.run_id, begin.run.entity, begin.run.project = "promoted", "strangers", "their-project"
    begin.run.display_name = "\x1b[2Jowned"
    point.history.item.add(key="loss", value_json="1.5")
    point.history.item.add(key="_step", value_json="0")
    for name in (str(secret), "../../../../../../home/.ssh/id_ed25519"):
        files.files.files.add(path=name, policy=0)
    artifact.artifact.type, artifact.artifact.name, artifact.artifact.finalize = "dataset", "gift", True
    artifact.artifact.manifest.version, artifact.artifact.manifest.storage_policy = 1, "wandb-storage-policy-v1"
    artifact.artifact.manifest.contents.add(path="x", digest="x", local_path=str(secret), size=len(SECRET))
    again.run.CopyFrom(begin.run)
    end.exit.exit_code, end.exit.runtime = 0, 5
    path.parent.mkdir(parents=True)
    log = b":W&B\xe1\xbe\x00"  # LevelDB's log, of which this is less than one block
    for record in (begin, point, files, artifact, again, end):
        data = record.SerializeToString()
        log += struct.pack("<IHB", zlib.crc32(b"\1" + data), len(data), 1) + data
    path.write_bytes(log)


class Listening(WandbServer):
    """The server, which keeps all that it is sent."""

    heard = b""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        self.heard += path.encode() + b"\n" + body + b"\n"
        return super().answer(method, path, body)


@pytest.fixture(scope="module")
def run_dir(stage: Stage) -> pathlib.Path:
    stage.host("evil", "mayor")
    secret = stage.home / ".ssh/id_ed25519"
    secret.write_text(SECRET)
    made = stage.finished("evil", "mayor")
    write_record(made / "wandb/offline-run-20260101_000000-promoted/run-promoted.wandb", secret)
    return made


@pytest.fixture(scope="module")
def guard(stage: Stage, run_dir: pathlib.Path) -> Guard:
    return stage.watch_over()


@pytest.fixture(scope="module")
def collected(stage: Stage, guard: Guard) -> tuple[Played, Listening]:
    with Listening() as server:
        played = stage.play("playbooks/collect.yml", "-e", "role=mayor", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    return played, server


def test_the_adapter_and_its_figures_arrive(
    stage: Stage, run_dir: pathlib.Path, collected: tuple[Played, Listening]
) -> None:
    played, server = collected
    assert (played.ended, played.code) == (True, 0), played.text
    assert list(server.runs) == [run_dir.name]
    assert (stage.output / "adapters/mayor" / run_dir.name / "manifest.json").exists()


def test_no_file_of_the_controllers_is_uploaded(collected: tuple[Played, Listening]) -> None:
    _, server = collected
    assert server.heard
    assert SECRET.encode() not in server.heard
    assert b"id_ed25519" not in server.heard


def test_nothing_goes_to_a_place_that_only_the_trainer_named(collected: tuple[Played, Listening]) -> None:
    played, server = collected
    assert b"strangers" not in server.heard
    assert b"their-project" not in server.heard
    assert CONTROL.findall(played.text) == []
    assert KEY not in played.text


def test_nothing_lands_elsewhere(guard: Guard, collected: tuple[Played, Listening]) -> None:
    assert guard.changes() == []
