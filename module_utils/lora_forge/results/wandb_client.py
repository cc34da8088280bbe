"""W&B's client as the controller uses it: its processes, its errors in words, and what is told of a run."""

from __future__ import annotations

import base64
import contextlib
import datetime
import importlib.util
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import Any, Optional

from ansible.module_utils.lora_forge.errors import UserError

# Of the client's many variables, those that say how to reach W&B. All others (mode, entity, run id …) stay outside.
KEPT = ("WANDB_BASE_URL", "WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY", "WANDB_INSECURE_DISABLE_SSL")
_SHOWN = ("_step", "_timestamp", "_runtime")  # of the client's own keys
_SHORTEST = 8  # characters of anything that could be a key
_SAID = 200  # characters of what W&B, or its client, said

Entry = dict[str, Any]
Error = dict[str, str]


def entry(asked: str, **known: Any) -> Entry:
    """A run of which nothing is known but what is given."""
    unknown = dict.fromkeys(("id", "name", "path", "state", "heartbeat_at", "heartbeat_age", "step", "url", "error"))
    return {"asked": asked, **unknown, "summary": {}, "history": [], "system": {}, "tags": [], "config": {}, **known}


# --- errors ----------------------------------------------------------------------------------------------------------


def error_entry(kind: str, where: str, said: str = "", key: str = "") -> Error:
    """A kind of error in words: what was found, where, and what to do.

    Args:
        kind: no_key, bad_key, no_project, run_not_found, rate_limit, timeout, server_down or answer.
        where: W&B's address, or a file; for no_project and run_not_found what is missing too.
        said: What W&B, or its client, said.
        key: Taken out of it, should it be there.
    """
    said = " ".join(scrubbed(said, key).split()).rpartition("while retrying: ")[2]
    said = re.sub(r"^Failed to verify credentials with \S+: ", "", said)
    said = f" ({said[:_SAID]}…)" if len(said) > _SAID else f" ({said})" if said else ""
    new_key = "in W&B's user settings, and: export WANDB_API_KEY=…"
    words = {
        "no_key": f"no key for {where}: WANDB_API_KEY is not set. Make one {new_key}",
        "bad_key": f"{where} does not accept the key{said}. Make a new one {new_key}",
        "no_project": f"{where}: no such project, or the key may not see it. Look at entity and project; its first run "
        "makes a project",
        "run_not_found": f"{where}: no such run. It has not been uploaded yet, or was deleted",
        "rate_limit": f"{where} takes no more requests for now{said}. Wait a minute and run the same command again",
        "timeout": f"{where} gave no answer in time{said}. Run the same command again, or give it more time",
        "server_down": f"{where} cannot be reached, or is out of order{said}. Run the same command again in a while",
        "answer": f"{where} gave an answer that is of no use{said}. Its own words say why",
    }
    return {"kind": kind, "msg": f"W&B: {words[kind]}"}


def kind_of(said: str) -> str:
    """The kind of an error, by the client's words (it has no other way to tell)."""
    for kind, pattern in (
        ("bad_key", r"\b401\b|\b403\b|not logged in|API key must|API key invalid|permission denied"),
        ("rate_limit", r"\b429\b|rate limit"),
        ("no_project", r"Could not find project"),
        ("timeout", r"did not respond in time|deadline exceeded|i/o timeout|Client\.Timeout|timed out"),
        ("server_down", r"\b(HTTP|error) 5\d\d|dial tcp|connection re(fused|set)|no such host|Post \x22"),
    ):
        if re.search(pattern, said, re.IGNORECASE):
            return kind
    return "answer"


# --- the client's processes ------------------------------------------------------------------------------------------


def package() -> pathlib.Path:
    """Where the client is installed.

    Raises:
        UserError: It is not.
    """
    spec = importlib.util.find_spec("wandb")
    if not spec or not spec.origin:
        raise UserError(f"the package wandb is missing in the controller's environment ({sys.executable}); run: make")
    return pathlib.Path(spec.origin).parent


@contextlib.contextmanager
def temporary_home() -> Iterator[str]:
    """A folder for all that the client writes besides; it may still write while it is removed."""
    with tempfile.TemporaryDirectory(prefix="lora-forge-wandb-", ignore_cleanup_errors=True) as folder:
        yield folder


def environment(folder: str, base_url: str = "", key: str = "") -> dict[str, str]:
    """The client's environment: its home is a folder, and it keeps silent.

    Args:
        folder: The folder.
        base_url: W&B's address; empty: as the environment says.
        key: The key, for processes that need it.
    """
    found = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") or name in KEPT}
    found |= {"HOME": folder, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "NO_COLOR": "1"}
    found |= {f"WANDB_{name}_DIR": folder for name in ("CONFIG", "CACHE", "DATA")}
    found |= {"WANDB_DIR": folder, "TMPDIR": folder}  # it leaves folders behind
    found |= {"WANDB_BASE_URL": base_url} if base_url else {}
    return found | ({"WANDB_API_KEY": key} if key else {})


def run_command(command: list[str], env: dict[str, str], seconds: float) -> tuple[Optional[int], str, str]:
    """Run a command of the client: exit status (None: its time was up and it was killed), output, complaints."""
    process = subprocess.Popen(
        command, env=env, cwd=env["HOME"], start_new_session=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        said, complained = process.communicate(timeout=max(0.1, seconds))
        return process.returncode, said, complained
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started ends by itself when it sees that
        said, complained = process.communicate()
        return None, said, complained


# --- values ----------------------------------------------------------------------------------------------------------


def json_value(value: Any) -> Any:
    """A value as JSON has it: what is not finite becomes text, what is no value at all its words."""
    if isinstance(value, dict):
        return {str(key): json_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def shown_metrics(values: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the client's own, but with its step and times."""
    return {key: value for key, value in values.items() if not key.startswith("_") or key in _SHOWN}


def system_figures(values: dict[str, Any]) -> dict[str, Any]:
    """Figures of the machine; the server's have a word in front."""
    return {key.removeprefix("system."): json_value(value) for key, value in values.items() if not key.startswith("_")}


def parse_time(text: Optional[str]) -> Optional[float]:
    """A time as W&B writes it (UTC where it says nothing), in epoch seconds."""
    if not text:
        return None
    text = re.sub(r"(\.\d{6})\d+", r"\1", text.replace("Z", "+00:00"))  # nanoseconds are more than Python reads
    when = datetime.datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)).timestamp()


def iso(when: Optional[float]) -> Optional[str]:
    """Epoch seconds as text, in UTC."""
    at = None if when is None else datetime.datetime.fromtimestamp(when, datetime.timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else None


def server_of(url: str) -> str:
    """Whose server an address is of, be it the client's or that of a run's page; empty for none."""
    host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    return "wandb.ai" if host in ("api.wandb.ai", "www.wandb.ai") else host


def given_key(key: str) -> str:
    """The key as it was given, or else that of the environment."""
    return (key or os.environ.get("WANDB_API_KEY", "")).strip()


def scrubbed(value: Any, key: str) -> Any:
    """A value without the key, wherever it may have got to; what is shorter than any key is left alone."""
    if isinstance(value, dict):
        return {scrubbed(name, key): scrubbed(one, key) for name, one in value.items()}
    if isinstance(value, list):
        return [scrubbed(one, key) for one in value]
    if not isinstance(value, str) or len(key) < _SHORTEST:
        return value
    sent = base64.b64encode(f"api:{key}".encode()).decode()  # as it goes over the wire
    return value.replace(key, "<key>").replace(sent, "<key>")
