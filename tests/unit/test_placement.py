"""Where a run was placed, and how it ended, as the controller notes it."""

from __future__ import annotations

import importlib.util
import json

import pytest
import rundir
from ansible.module_utils.testing import patch_module_args
from lab import ROOT

RUN = "witness-0"


@pytest.fixture
def note(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("run_placement", ROOT / "library/run_placement.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def play(state, **more):
        given = {"output": str(tmp_path), "run_id": RUN, "trainer": "gpu-1", "state": state, **more}
        with patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        kept = rundir.read_json(tmp_path / f"runs/{RUN}.json")
        return json.loads(capsys.readouterr().out)["changed"], kept.get("state"), kept.get("detail")

    return play


def test_notes_what_is_new_and_nothing_twice(note):
    assert note("launched") == (True, "launched", "")
    assert note("launched") == (False, "launched", "")
    assert note("finished", _ansible_check_mode=True) == (True, "launched", "")
    assert note("finished") == (True, "finished", "")


def test_a_file_of_an_earlier_version_is_no_news(note, tmp_path):
    (tmp_path / "runs").mkdir()
    rundir.write_json(
        tmp_path / f"runs/{RUN}.json", {"run_id": RUN, "trainer": "gpu-1", "state": "failed", "final": True}
    )
    assert note("failed")[0] is False


def test_an_adapter_that_is_no_good_stays_so_until_the_run_is_launched_again(note):
    note("finished")
    assert note("failed", detail="tensor q is all zero") == (True, "failed", "tensor q is all zero")
    assert note("finished") == (False, "failed", "tensor q is all zero")  # somebody looks at its trainer again
    assert note("failed", detail="tensor q is all zero")[0] is False
    assert note("launched") == (True, "launched", "")
    assert note("finished") == (True, "finished", "")
