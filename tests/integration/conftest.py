"""Tests that last, without Axolotl."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_axolotl() -> Iterator[None]:
    """Have no plan ask Axolotl: it takes ten seconds of a core, where a training has left an environment of the locks.

    tests/e2e asks it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_FORGE_AXOLOTL", "/bin/false")  # a Python that answers nothing
        yield
