"""Posting to a webhook. Its address is a secret: whoever has it may post. It appears in no message."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
from typing import Any

from ansible.module_utils.urls import open_url

_ATTEMPTS = 4
_DELAY = 2.0  # seconds between them
_SPARE = 5.0  # seconds beyond the timeout for an answer that comes a byte at a time


def post(url: str, body: dict[str, Any], timeout: float) -> str:
    """Post JSON, and try again where nobody heard it; what may have been heard is not repeated.

    Args:
        url: Where to.
        body: What to send.
        timeout: Seconds that one attempt may take.

    Returns:
        What went wrong, without the address; empty where it was taken.
    """
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_DELAY)
        problem, again = _attempt(url, body, timeout)
        if not again:
            break
    return problem


def longest(timeout: float) -> float:
    """Return the most seconds that :func:`post` takes.

    Args:
        timeout: Seconds that one attempt may take.
    """
    return _ATTEMPTS * (timeout + _SPARE) + (_ATTEMPTS - 1) * _DELAY


def _attempt(url: str, body: dict[str, Any], timeout: float) -> tuple[str, bool]:
    """Post once; return what went wrong, and whether another attempt is worth it."""
    answers: list[tuple[str, bool]] = []
    # A thread, as a socket's timeout holds for each byte; one that goes on for ever ends with this process.
    worker = threading.Thread(target=lambda: answers.append(_send(url, body, timeout)), daemon=True)
    worker.start()
    worker.join(timeout + _SPARE)
    return answers[0] if answers else (f"did not answer within {timeout:g} s", False)


def _send(url: str, body: dict[str, Any], timeout: float) -> tuple[str, bool]:
    headers = {"Content-Type": "application/json"}
    try:
        answer = open_url(
            url, data=json.dumps(body), method="POST", headers=headers, timeout=timeout, follow_redirects="none"
        )
        status = answer.getcode()
        answer.close()
    except urllib.error.HTTPError as error:
        status = error.code
    except (TimeoutError, urllib.error.URLError) as error:
        if isinstance(error, TimeoutError) or isinstance(error.reason, TimeoutError):
            return f"did not answer within {timeout:g} s", False
        return "cannot be reached", True
    except Exception:  # whatever else an address, a proxy or a server leads to; its words may hold the address
        return "cannot be reached", False
    if 200 <= status < 300:
        return "", False
    return f"answered with status {status}", status == 429 or status >= 500
