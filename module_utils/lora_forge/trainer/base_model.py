"""The base model on its trainer: a folder that is there, or a fetch from the hub into its cache.

The fetch itself is roles/trainer/files/fetch_model.py, a process of its own; this is how it is begun, and
how far it is. Runs on trainers: Python 3.9 or newer, neither network nor huggingface_hub.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import time
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # the weights that transformers loads
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_START_TIMEOUT = 20.0  # seconds for a fetch to write its first status
_MARK_STEPS = 20  # progress counts as news in steps of 1/20: five percent


def _is_local(model: str) -> bool:
    """Tell whether a base model is a folder on the trainer and not a model of the hub."""
    return model.startswith("/")


def state_dir(model: str, revision: str, home: pathlib.Path) -> pathlib.Path:
    """Return where the fetch of a model keeps its status.

    Args:
        model: Its name on the hub.
        revision: Branch, tag or commit; empty for main.
        home: HF_HOME.
    """
    return home / "lora-forge" / f"{model}--{revision or 'main'}".replace("/", "--")


def model_state(model: str, revision: str, home: pathlib.Path) -> dict[str, Any]:
    """Tell what is true of a base model at this moment.

    Args:
        model: A model of the hub, or a folder on the trainer (begins with /, ~ or a dot).
        revision: Branch, tag or commit; empty for main. A folder has none.
        home: HF_HOME.

    Returns:
        state (absent, fetching, present, failed), described (the folder, from when its configuration and tokenizer
        are there), folder (the same, when all is), bytes, total_bytes, bytes_per_second (None where nobody knows),
        error, and a mark that changes when there is news. A fetch whose process died is absent: the next one goes on
        where it was. One of another machine, such as another login node, goes on as long as it says so.

    Raises:
        UserError: A folder that is no base model.
    """
    if _is_local(model):
        folder = pathlib.Path(model).resolve()
        size = local_size(folder)
        here = {"folder": str(folder), "described": str(folder)}
        return _marked({"state": "present", **here, "bytes": size, "total_bytes": size})
    folder = state_dir(model, revision, home)
    status = rundir.read_json(folder / "status.json")
    known: dict[str, Any] = {name: status[name] for name in ("bytes", "total_bytes") if name in status}
    if (pathlib.Path(status.get("described") or "/nowhere") / "config.json").is_file():
        known["described"] = status["described"]  # whatever became of the fetch after that
    state = status.get("state")
    if state == "present":
        defect = rundir.defect(folder, anywhere=True)
        if defect is None:
            return _marked({**known, "state": state, "folder": status["folder"], "described": status["folder"]})
        return _marked({"state": "absent", "error": f"{defect}; it has to be fetched again"})
    if rundir.is_fetching(folder, status):
        return _marked({**known, "state": state, "bytes_per_second": status.get("bytes_per_second")})
    if state == "failed":
        return _marked({**known, "state": state, "error": status.get("error", "")})
    return _marked({**known, "state": "absent"})


def _marked(known: dict[str, Any]) -> dict[str, Any]:
    sizes = {"bytes": 0, "total_bytes": 0, "bytes_per_second": None}
    state = {"described": "", "folder": "", **sizes, "error": "", **known}
    step = state["bytes"] * _MARK_STEPS // state["total_bytes"] if state["total_bytes"] else "-"
    return {**state, "mark": f"{state['state']}:{step}{':described' if state['described'] else ''}"}


def local_size(folder: pathlib.Path) -> int:
    """Return the bytes of a folder's weights.

    Raises:
        UserError: It is not there, or lacks what a base model needs.
    """
    if not folder.is_dir():
        raise UserError(f"the base model {folder} is no folder on this trainer. Put it there, or name one of the hub.")
    lacking = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in _TOKENIZERS) and not any(folder.glob("*.tiktoken")):
        lacking.append("a tokenizer (tokenizer.json, tokenizer.model or the like)")
    weights = [SINGLE]
    if (folder / INDEX).is_file():
        shards = rundir.read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{folder / INDEX} is no index of weights. Copy it again.")
        weights = sorted(set(shards.values()))
        lacking += [name for name in weights if not (folder / name).is_file()]
    elif not (folder / SINGLE).is_file():
        lacking.append(f"its weights ({SINGLE}, or {INDEX} with its shards)")
    if lacking:
        raise UserError(
            f"the folder {folder} is no whole base model: it lacks {', '.join(lacking)}. Copy what is missing, or name "
            "a model of the hub."
        )
    return sum((folder / name).stat().st_size for name in weights)


def start_fetch(
    model: str, revision: str, home: pathlib.Path, python: str, program: str, token: str = "", check: bool = False
) -> bool:
    """Start to fetch a model, detached, unless it is there or on its way. What failed before is tried again.

    Args:
        model: A model of the hub, or a folder on the trainer.
        revision: Branch, tag or commit; empty for main.
        home: HF_HOME.
        python: A Python that has huggingface_hub.
        program: fetch_model.py, with rundir.py beside it.
        token: For gated and private models; goes into the environment of the program and nowhere else.
        check: Predict only.

    Returns:
        Whether a fetch was started.

    Raises:
        UserError: The program did not come up, or a folder is no base model.
    """
    if model_state(model, revision, home)["state"] in ("present", "fetching"):
        return False
    if check:
        return True
    folder = state_dir(model, revision, home)
    folder.mkdir(parents=True, exist_ok=True)
    with rundir.locked(folder / "begin.lock"):  # two controllers in the same second: the other one follows
        if model_state(model, revision, home)["state"] in ("present", "fetching"):
            return False
        rundir.write_json(folder / "request.json", {"model": model, "revision": revision, "cache": str(home)})
        _start(folder, python, program, token)
    return True


def _start(folder: pathlib.Path, python: str, program: str, token: str) -> None:
    """Start the program, and wait for its first status."""
    before = rundir.read_json(folder / "status.json").get("process")
    # Ansible's own PYTHONPATH is not for another Python.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if token:
        env["HF_TOKEN"] = token
    log_path = folder / "fetch.log"
    with log_path.open("ab") as log:
        earlier = log.tell()
        process = subprocess.Popen(
            [python, program, str(folder)],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives this connection
        )
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        ended = process.poll() is not None  # asked first: it may come to its end between the two
        if rundir.read_json(folder / "status.json").get("process") != before:
            return
        if ended:
            break
        time.sleep(0.05)
    text = log_path.read_bytes()[earlier:].decode("utf-8", "replace").strip()[-1000:]
    raise UserError(f"the fetch of the base model did not come up ({log_path}): {text or 'it says nothing'}")


def wait_for_progress(model: str, revision: str, home: pathlib.Path, since: str, seconds: float) -> dict[str, Any]:
    """Wait until there is news, or the time is up.

    Args:
        model: A model of the hub, or a folder on the trainer.
        revision: Branch, tag or commit; empty for main.
        home: HF_HOME.
        since: The mark of the last answer.
        seconds: The longest wait.

    Returns:
        What :func:`model_state` does. Only a fetch that goes on is waited for: nothing else changes by itself.
    """
    deadline = time.monotonic() + seconds
    while True:
        state = model_state(model, revision, home)
        if state["state"] != "fetching" or state["mark"] != since or time.monotonic() >= deadline:
            return state
        time.sleep(0.5)
