"""What is trained on: the canonical files of a run, written on the controller before they go to a trainer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.data import conversation, jsonl
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedDataset

STAGED = "staged"  # below the output folder: canonical files, by their content
_UNUSED = 7 * 24 * 3600  # seconds after which one of them goes


@contextlib.contextmanager
def staged(
    datasets: Sequence[PlannedDataset], checkout: pathlib.Path, output: pathlib.Path, now: Optional[float] = None
) -> Iterator[dict[str, pathlib.Path]]:
    """Have the canonical files of a run at hand, by their SHA-256.

    They lie in ``output/staged/`` by their content: the hosts of a command, each in a process of its own, need the same
    file, and a file of gigabytes is not written once for each. What no command has used for a week goes.

    Args:
        datasets: The planned files. A relative path is meant from the checkout.
        checkout: The project's folder.
        output: The controller's output folder.
        now: Epoch seconds; by default the present.

    Raises:
        UserError: A file is not any more what was planned.
    """
    folder, moment = output / STAGED, time.time() if now is None else now
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with rundir.locked(folder):
        places = {dataset.sha256: _stage(dataset, checkout, folder, moment) for dataset in datasets}
        for path in folder.iterdir():
            if path not in places.values() and path.stat().st_mtime < moment - _UNUSED:
                path.unlink()
    yield places


def _stage(dataset: PlannedDataset, checkout: pathlib.Path, folder: pathlib.Path, now: float) -> pathlib.Path:
    """Write the canonical form of a file, unless it is there; return where it is."""
    place = folder / f"{dataset.sha256}.jsonl"
    if place.is_file() and store.sha256_file(place) == dataset.sha256:
        os.utime(place, (now, now))
        return place
    source, part, digest = checkout / dataset.path, folder / f"{dataset.sha256}.part", hashlib.sha256()
    keys = conversation.Keys.from_options(dataset.reading)
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    try:
        with part.open("wb") as target, jsonl.opened(source) as file:
            for _, line in jsonl.lines(source, file):
                if line.strip():
                    written = conversation.read(line, keys).line
                    digest.update(written)
                    target.write(written)
    except conversation.Flaw:
        pass  # what was planned had none
    if digest.hexdigest() != dataset.sha256:
        part.unlink()
        raise UserError(
            f"{source} was changed after the run was planned. Nothing was started; run the same command again, and the "
            "new content is planned as a run of its own"
        )
    part.replace(place)
    os.utime(place, (now, now))
    return place
