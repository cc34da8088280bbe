"""The one error type for everything a user can put right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class ForgeError(Exception):
    """Something a user can put right: says what was found, where, and what to do."""


@contextlib.contextmanager
def reported(module: Any) -> Iterator[None]:
    """Turn user errors and failing files into a module failure instead of a traceback.

    Args:
        module: The AnsibleModule whose ``fail_json`` reports.
    """
    try:
        yield
    except ForgeError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        advice = " Free some space there and run the same command again; nothing that was complete is lost."
        module.fail_json(msg=f"{error.strerror or error}{where}.{advice if error.errno == 28 else ''}")
