"""The leash of a rented pod, from outside: how it starts with the pod, is renewed and read. Python 3.9 or newer.

The program itself is the pod role's ``leash.py``.
"""

from __future__ import annotations

import base64
import gzip
import pathlib
import time
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError

_SILENT = 150.0  # seconds without a beat after which a leash counts as dead; it writes one every 30 to 60
PROGRAM = "/tmp/lora-forge-leash.py"  # on the pod's own disk: a volume that hangs must not keep it from starting


def wrap_start(program: str, start: str = "/start.sh") -> tuple[str, str]:
    """Return what makes a pod start its leash first and then what its image would have started.

    Args:
        program: The source of the pod role's ``leash.py``.
        start: The image's own start command; a shell line.

    Returns:
        The pod's ``args``, and the value of its environment's LORA_FORGE_LEASH.

    Raises:
        UserError: The start command has a single quote or a line break.
    """
    if "'" in start or "\n" in start:
        raise UserError(f"the start command is {start!r}; it must have neither single quotes nor line breaks")
    value = base64.b64encode(gzip.compress(program.encode(), mtime=0)).decode()
    # Unpacked anew at every start: whoever tidies /tmp up does not end the leash.
    unpack = f'printf %s "$LORA_FORGE_LEASH" | base64 -d | gzip -dc >{PROGRAM}'
    return f"bash -c 'while :; do {unpack}; python3 {PROGRAM}; sleep 5; done & exec {start}'", value


def renew(root: pathlib.Path, pod: str, deadline: float, check: bool = False) -> bool:
    """Give a pod another deadline; its leash takes it within a few seconds. True when it is not the one it has.

    Args:
        root: The trainer's folder.
        pod: The pod's id.
        deadline: Epoch seconds.
        check: Predict only.

    Raises:
        UserError: The deadline is past by this host's clock, or not in epoch seconds.
        OSError: The file cannot be written.
    """
    now = time.time()
    if not now < deadline < 4e9:  # the leash takes no others either: milliseconds would mean for ever
        raise UserError(
            f"the deadline of pod {pod} would be {deadline:.0f}, and by the pod's clock it is {now:.0f} now; "
            "give a later one, in seconds since the epoch, or release the pod"
        )
    path = root / "leash" / f"{pod}.renewed"
    if rundir.read_json(path).get("deadline") == deadline:
        return False
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        rundir.write_json(path, {"deadline": deadline})
    return True


def read_status(root: pathlib.Path, pod: str) -> dict[str, Any]:
    """Read what the leash says of itself, and ``alive``: whether that is fresh; where it never wrote, ``alive`` alone.

    Args:
        root: The trainer's folder.
        pod: The pod's id.
    """
    status = rundir.read_json(root / "leash" / f"{pod}.json")
    beat = status.get("beat")
    return {**status, "alive": isinstance(beat, (int, float)) and abs(time.time() - beat) < _SILENT}
