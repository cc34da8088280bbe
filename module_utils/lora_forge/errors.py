"""The one error type for everything a user can put right."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import traceback
from collections.abc import Iterator
from typing import Any


class UserError(Exception):
    """Something a user can put right: says what was found, where, and what to do."""


def error_message(error: UserError | OSError) -> str:
    """Return what a user is told of an error."""
    if isinstance(error, UserError):
        return str(error)
    where = f" ({error.filename})" if error.filename else ""
    advice = " Free some space there and run the same command again; nothing that was complete is lost."
    return f"{error.strerror or error}{where}.{advice if error.errno in (errno.ENOSPC, errno.EDQUOT) else ''}"


def told_of(error: Exception) -> str:
    """Return what a user is told of any error: one that is nobody's but ours says so, and where.

    Args:
        error: An error that was raised.
    """
    if isinstance(error, (UserError, OSError)):
        return error_message(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({pathlib.Path(place.filename).name}, line {place.lineno}). This is a fault "
        "of lora-forge, and nothing of yours; please report it"
    )


@contextlib.contextmanager
def report_errors(module: Any) -> Iterator[None]:
    """Turn user errors and failing files into a module failure instead of a traceback; any other error is told as ours.

    Ansible would send of that its text alone, which may be a bare word.

    Args:
        module: The AnsibleModule whose ``fail_json`` reports.
    """
    try:
        yield
    except Exception as error:
        module.fail_json(msg=told_of(error))
