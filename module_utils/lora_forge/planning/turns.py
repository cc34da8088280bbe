"""Taking turns on the controller: several commands may do the same at once, and only one of them writes at a time."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Callable

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.text import duration

PATIENCE = 24 * 3600.0  # seconds: whoever has the turn may be fetching gigabytes over a slow line
_taken: set[pathlib.Path] = set()  # by this process


@contextlib.contextmanager
def turn(
    path: pathlib.Path, what: str, say: Callable[[str], None] = lambda _: None, patience: float = PATIENCE
) -> Iterator[None]:
    """Wait for the lock of a file or folder, and hold it. Who holds it already may take it again.

    Args:
        path: As :func:`rundir.locked` takes it; the folder around it is made.
        what: What is done meanwhile, as «fetches or delivers witness-1».
        say: Is told that somebody else has it.
        patience: Seconds to wait for somebody else; 0 tries once.

    Raises:
        UserError: Somebody else has held it for all that time.
        OSError: It cannot be locked.
    """
    place = path.absolute()
    if place in _taken:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(rundir.locked(path, 0))
        except BlockingIOError:
            say(f"  another command {what}: waiting for it, {duration(patience)} at most")
            try:
                held.enter_context(rundir.locked(path, patience))
            except BlockingIOError:
                raise UserError(
                    f"another command {what}, and has not ended within {duration(patience)}. «fuser {path}» tells its "
                    "process; once that has ended, the same command goes on"
                ) from None
        _taken.add(place)
        held.callback(_taken.discard, place)
        yield


@contextlib.contextmanager
def run_files(
    output: pathlib.Path, run_id: str, say: Callable[[str], None] = lambda _: None, patience: float = PATIENCE
) -> Iterator[None]:
    """Have the turn with all files of a run on the controller: those that are fetched, the adapter, its promotion.

    Args:
        output: The controller's output folder.
        run_id: The run.
        say: See :func:`turn`.
        patience: See :func:`turn`.

    Raises:
        UserError: Somebody else has had it for too long.
        OSError: It cannot be locked.
    """
    with turn(output / "runs" / f".{run_id}.files.lock", f"fetches or delivers {run_id}", say, patience):
        yield
