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
_LONGEST = 200  # characters of what W&B, or its client, said that are passed on

Entry = dict[str, Any]
Error = dict[str, str]


def entry(asked: str, **known: Any) -> Entry:
    """Make the entry of a run of which nothing is known but what is given."""
    unknown = dict.fromkeys(("id", "name", "path", "state", "heartbeat_at", "heartbeat_age", "step", "url", "error"))
    return {"asked": asked, **unknown, "summary": {}, "history": [], "system": {}, "tags": [], "config": {}, **known}


# --- errors ----------------------------------------------------------------------------------------------------------


def error_entry(kind: str, where: str, complaint: str = "", key: str = "") -> Error:
    """Put a kind of error into words: what was found, where, and what to do.

    Args:
        kind: no_key, bad_key, no_project, run_not_found, rate_limit, timeout, server_down or answer.
        where: W&B's address, or a file; for no_project and run_not_found what is missing too.
        complaint: What W&B, or its client, said.
        key: Taken out of it, should it be there.
    """
    complaint = " ".join(scrubbed(complaint, key).split()).rpartition("while retrying: ")[2]
    complaint = re.sub(r"^Failed to verify credentials with \S+: ", "", complaint)
    quoted = f"{complaint[:_LONGEST]}…" if len(complaint) > _LONGEST else complaint
    quote = f" ({quoted})" if quoted else ""
    new_key = "in W&B's user settings, and: export WANDB_API_KEY=…"
    sentences = {
        "no_key": f"no key for {where}: WANDB_API_KEY is not set. Make one {new_key}",
        "bad_key": f"{where} does not accept the key{quote}. Make a new one {new_key}",
        "no_project": f"{where}: no such project, or the key may not see it. Look at entity and project; its first run "
        "makes a project",
        "run_not_found": f"{where}: no such run. It has not been uploaded yet, or was deleted",
        "rate_limit": f"{where} takes no more requests for now{quote}. Wait a minute and run the same command again",
        "timeout": f"{where} gave no answer in time{quote}. Run the same command again, or give it more time",
        "server_down": f"{where} cannot be reached, or is out of order{quote}. Run the same command again in a while",
        "answer": f"{where} gave an unusable answer{quote}. Its message says why",
    }
    return {"kind": kind, "msg": f"W&B: {sentences[kind]}"}


def kind_of(complaint: str) -> str:
    """Tell the kind of an error, by the client's words (it has no other way to tell)."""
    for kind, pattern in (
        ("bad_key", r"\b401\b|\b403\b|not logged in|API key must|API key invalid|permission denied"),
        ("rate_limit", r"\b429\b|rate limit"),
        ("no_project", r"Could not find project"),
        ("timeout", r"did not respond in time|deadline exceeded|i/o timeout|Client\.Timeout|timed out"),
        ("server_down", r"\b(HTTP|error) 5\d\d|dial tcp|connection re(fused|set)|no such host|Post \x22"),
    ):
        if re.search(pattern, complaint, re.IGNORECASE):
            return kind
    return "answer"


# --- the client's processes ------------------------------------------------------------------------------------------


def package() -> pathlib.Path:
    """Find where the client is installed.

    Raises:
        UserError: It is not.
    """
    spec = importlib.util.find_spec("wandb")
    if not spec or not spec.origin:
        raise UserError(f"the package wandb is missing in the controller's environment ({sys.executable}); run: make")
    return pathlib.Path(spec.origin).parent


@contextlib.contextmanager
def temporary_home() -> Iterator[str]:
    """Make a folder for all that the client writes besides; it may still write while it is removed."""
    with tempfile.TemporaryDirectory(prefix="lora-forge-wandb-", ignore_cleanup_errors=True) as folder:
        yield folder


def environment(folder: str, base_url: str = "", key: str = "") -> dict[str, str]:
    """Make the client's environment: its home is a folder, and it keeps silent.

    Args:
        folder: The folder.
        base_url: W&B's address; empty: as the environment says.
        key: The key, for processes that need it.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") or name in KEPT}
    variables |= {"HOME": folder, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "NO_COLOR": "1"}
    variables |= {f"WANDB_{name}_DIR": folder for name in ("CONFIG", "CACHE", "DATA")}
    variables |= {"WANDB_DIR": folder, "TMPDIR": folder}  # it leaves folders behind
    variables |= {"WANDB_BASE_URL": base_url} if base_url else {}
    return variables | ({"WANDB_API_KEY": key} if key else {})


def run_command(command: list[str], env: dict[str, str], seconds: float) -> tuple[Optional[int], str, str]:
    """Run a command of the client: exit status (None: its time was up and it was killed), output, complaints."""
    process = subprocess.Popen(
        command, env=env, cwd=env["HOME"], start_new_session=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, complaints = process.communicate(timeout=max(0.1, seconds))
        return process.returncode, output, complaints
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started ends by itself when it sees that
        output, complaints = process.communicate()
        return None, output, complaints


# --- values ----------------------------------------------------------------------------------------------------------


def json_value(value: Any) -> Any:
    """Turn a value into what JSON has: what is not finite becomes text, what is no value at all its words."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def shown_metrics(values: dict[str, Any]) -> dict[str, Any]:
    """Pick the metrics without the client's own, but with its step and times."""
    return {key: value for key, value in values.items() if not key.startswith("_") or key in _SHOWN}


def system_figures(values: dict[str, Any]) -> dict[str, Any]:
    """Name figures of the machine as the client does; the server's have a word in front."""
    return {key.removeprefix("system."): json_value(value) for key, value in values.items() if not key.startswith("_")}


def parse_time(text: Optional[str]) -> Optional[float]:
    """Read a time as W&B writes it (UTC where it says nothing), in epoch seconds."""
    if not text:
        return None
    text = re.sub(r"(\.\d{6})\d+", r"\1", text.replace("Z", "+00:00"))  # nanoseconds are more than Python reads
    when = datetime.datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)).timestamp()


def iso(when: Optional[float]) -> Optional[str]:
    """Write epoch seconds as text, in UTC."""
    at = None if when is None else datetime.datetime.fromtimestamp(when, datetime.timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else None


def server_of(url: str) -> str:
    """Tell whose server an address is of, be it the client's or that of a run's page; empty for none."""
    host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    return "wandb.ai" if host in ("api.wandb.ai", "www.wandb.ai") else host


def given_key(key: str) -> str:
    """Return the key as it was given, or else that of the environment."""
    return (key or os.environ.get("WANDB_API_KEY", "")).strip()


def scrubbed(value: Any, key: str) -> Any:
    """Return a value without the key, wherever it may have got to; what is shorter than any key is left alone."""
    if isinstance(value, dict):
        return {scrubbed(name, key): scrubbed(item, key) for name, item in value.items()}
    if isinstance(value, list):
        return [scrubbed(item, key) for item in value]
    if not isinstance(value, str) or len(key) < _SHORTEST:
        return value
    sent = base64.b64encode(f"api:{key}".encode()).decode()  # as it goes over the wire
    return value.replace(key, "<key>").replace(sent, "<key>")
