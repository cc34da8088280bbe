"""A stage for each module of tests: its commands are slow, so that many tests look at what came of one."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Provide a controller with a home and an output folder, to which trainers are added."""
    from hostile import Stage

    return Stage(tmp_path_factory.mktemp("stage"))
