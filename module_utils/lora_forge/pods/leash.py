"""The leash of a rented pod, from outside: how it starts with the pod, is renewed and read. Python 3.9 or newer.

The program itself is the pod role's ``leash.py``.
"""

from __future__ import annotations

import base64
import gzip
import pathlib
import shutil
import time
from typing import Any, Callable

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError

_SILENT = 150.0  # seconds without a beat after which a leash counts as dead; it writes one every 30 to 60
_PROGRAMS = ("bash", "base64", "gzip", "python3")  # what starts it
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
    """Read what the leash says of itself, ``alive``, whether that is fresh, and ``beat_age``, how old it is in seconds.

    Where it never wrote there is ``alive`` alone, and ``missing``: which programs it lacks, as far as they are looked
    for here.

    Args:
        root: The trainer's folder.
        pod: The pod's id.
    """
    status = rundir.read_json(root / "leash" / f"{pod}.json")
    status.pop("clocks", None)  # what it notes for its next start
    beat = status.get("beat")
    if not isinstance(beat, (int, float)):
        return {**status, "alive": False, "missing": [name for name in _PROGRAMS if not shutil.which(name)]}
    age = round(time.time() - beat, 3)
    return {**status, "alive": abs(age) < _SILENT, "beat_age": age}


def await_status(
    root: pathlib.Path, pod: str, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    """Read what the leash says, once nothing speaks against it any more, or nothing that time could mend.

    Args:
        root: The trainer's folder.
        pod: The pod's id.
        seconds: The longest wait.
        sleep: Waits.
    """
    until = time.monotonic() + seconds
    while True:
        status = read_status(root, pod)
        mends = "image" not in find_fault(status) and (find_fault(status) or status.get("answer") == "")
        if not mends or status.get("missing") or time.monotonic() >= until:
            return status
        sleep(2.0)


def find_fault(word: dict[str, Any]) -> dict[str, str]:
    """Tell by its own word why a leash would not end its pod; empty where nothing speaks against it.

    Args:
        word: See :func:`read_status`.

    Returns:
        One sentence, under ``image`` where every pod of this image would be the same, else under ``machine``.
    """
    lacks, answer, status = (word.get(name) for name in ("lacks", "answer", "status"))
    if not word.get("alive"):
        age = word.get("beat_age")
        if isinstance(age, (int, float)):
            return {"machine": f"its leash has said nothing for {abs(age):.0f} s"}
        missing = ", ".join(map(str, word.get("missing") or []))
        if missing:
            return {"image": f"its leash did not start: the image lacks {missing}. Take an image that has them"}
        return {
            "machine": "its leash did not start. It needs bash, base64, gzip and a python3 from 3.8 on in the image"
        }
    if lacks:
        advice = "RunPod sets it in every pod; see whether pod_env, or the image, takes it away"
        return {"image": f"its leash cannot end it: {lacks}. {advice}"}
    if word.get("state") == "refused":
        return {"machine": f"its leash cannot end it: {word.get('word')}"}
    if "CERTIFICATE_VERIFY_FAILED" in str(answer):
        advice = "Install ca-certificates in the image, or certifi for its python3"
        return {"image": f"its leash cannot check RunPod's certificate ({answer}). {advice}"}
    if status == 401:
        return {"image": f"RunPod does not take the pod's own key ({answer}), so its leash cannot end it"}
    if answer and not status:
        return {"machine": f"its leash does not reach RunPod ({answer})"}
    return {}


def find_doubt(word: dict[str, Any]) -> str:
    """Tell what leaves open whether a leash could end its pod, though nothing speaks against it; empty for nothing."""
    answer, status = word.get("answer"), word.get("status")
    if not answer:
        return "its leash has not asked RunPod yet, or is an older one: whether it can end the pod is not proven"
    if not 200 <= (status if isinstance(status, int) else 0) < 300:
        return f"RunPod did not show the pod to its leash ({answer}): whether that can end it is not proven"
    return ""
