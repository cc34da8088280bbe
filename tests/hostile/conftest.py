"""A stage for each module of tests: its commands are slow, so that many tests look at what came of one."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what waits longest first, so that none of it begins last and runs alone."""
    first = ("test_silence.py", "test_variables.py")
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Provide a controller with a home and an output folder, to which trainers are added."""
    from hostile import Stage

    return Stage(tmp_path_factory.mktemp("stage"))
