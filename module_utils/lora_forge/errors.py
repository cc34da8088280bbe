"""The one error type for everything a user can put right."""

from __future__ import annotations

import contextlib
import errno
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
    return f"{error.strerror or error}{where}.{advice if error.errno == errno.ENOSPC else ''}"


@contextlib.contextmanager
def report_errors(module: Any) -> Iterator[None]:
    """Turn user errors and failing files into a module failure instead of a traceback.

    Args:
        module: The AnsibleModule whose ``fail_json`` reports.
    """
    try:
        yield
    except (UserError, OSError) as error:
        module.fail_json(msg=error_message(error))
