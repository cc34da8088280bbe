"""Holding recipes against Axolotl and their base models: how roles/run/files/preflight.py is asked, and about what.

Runs on trainers, and on a controller for its plan: Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.text import printable
from ansible.module_utils.lora_forge.trainer import base_model, run_state, runs

LARGEST = 4 << 20  # bytes of an answer; one about a run has a few thousand
_PASSED = ("PATH", "HOME", "LANG", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "USER")  # of our environment
_QUIET = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",  # what this machine has is not what the run is for, or is in use
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # what is compiled once saves a training on this machine seconds too
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
}
_TEXTS = ("problems", "refused", "warnings")
_COUNTS = ("tensors", "parameters")


def is_settled(run_dir: pathlib.Path) -> bool:
    """Tell whether nothing is to be asked about a run: it lives, is finished, or was held against its base before.

    What the answer depends on decides what a run is called, so that it does not change.

    Args:
        run_dir: The run directory; there may be none.
    """
    if rundir.read_json(run_dir / rundir.EXPECTED):
        return True
    return runs.observe(run_dir).state in (*run_state.LIVING, "finished")


def questions(asked: Sequence[dict[str, Any]], home: pathlib.Path) -> list[dict[str, Any]]:
    """Write the questions about a trainer's runs as the program takes them, without those that are settled.

    Args:
        asked: Of each run run_id, run_dir, model, revision, recipe, capabilities and needs.
        home: HF_HOME.
    """
    open_ones = [run for run in asked if not is_settled(pathlib.Path(run["run_dir"]))]
    return [
        {
            "run_id": run["run_id"],
            "recipe": run["recipe"],
            "capabilities": run["capabilities"],
            "model": base_model.model_state(run["model"], run["revision"], home)["described"],
            "needs": dict(run["needs"]),
            "write": f"{run['run_dir']}/{rundir.EXPECTED}",
        }
        for run in open_ones
    ]


def ask(
    python: str, program: str, asked: Sequence[dict[str, Any]], timeout: float, paths: Sequence[pathlib.Path] = ()
) -> dict[str, Any]:
    """Run the program, once for all questions.

    Args:
        python: The Python of the trainers' environment.
        program: preflight.py.
        asked: See the program.
        timeout: Seconds that it may take.
        paths: Folders that it imports from, too.

    Returns:
        Its answer, of the form that the program describes.

    Raises:
        UserError: It gave none; in words that do not say of what.
    """
    # No token and no key goes into what imports all of Axolotl, and the plugins of a recipe that somebody brought.
    kept = {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith("LC_")}
    env = {**kept, **_QUIET, **({"PYTHONPATH": os.pathsep.join(map(str, paths))} if paths else {})}
    command = [python, program, str(os.getpid()), str(math.ceil(timeout))]
    # Files, as pipes would be waited for as long as anything holds them.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(json.dumps(list(asked)).encode())
        given.seek(0)
        try:
            process = subprocess.Popen(command, env=env, stdin=given, stdout=out, stderr=err, start_new_session=True)
        except OSError as error:
            raise UserError(f"{python} could not be started ({error.strerror})") from None
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise UserError(f"{python} gave no answer within {timeout:g} s") from None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        answer = _read(_end(out), len(asked))
        if answer is None:
            last = (_end(err).strip().splitlines() or ["it said nothing"])[-1]
            said = " ".join(printable(last).split())[:300]
            raise UserError(f"{python} ended with {status} and without an answer: {said}")
        return answer


def _end(file: Any) -> str:
    """Return the end of what was written into a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - LARGEST))
    return str(file.read().decode("utf-8", "replace"))


def _read(printed: str, count: int) -> Any:
    """Read the program's answer; None where it is none."""
    try:
        answer = json.loads(printed.strip().splitlines()[-1])
        answers = answer["answers"]
        whole = len(answers) == count and isinstance(answer["axolotl"], str) and _are_texts(answer["left_out"])
        for one in answers:
            whole = whole and all(_are_texts(one[name]) for name in _TEXTS) and isinstance(one["unknown"], str)
            whole = whole and all(type(one[name]) is int for name in _COUNTS)
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        return None
    return answer if whole else None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
