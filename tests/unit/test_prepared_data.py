"""Tokenised data that was cut off is never taken for whole."""

from __future__ import annotations

import pathlib

import pytest
import rundir
import supervisor


@pytest.mark.parametrize(("marked", "kept"), [(True, True), (False, False)])
def test_half_prepared_data_is_dropped(tmp_path: pathlib.Path, marked: bool, kept: bool) -> None:
    run_dir, prepared = tmp_path / "run", tmp_path / "prepared"
    run_dir.mkdir()
    (prepared / "hash").mkdir(parents=True)
    (prepared / "hash/data.arrow").write_text("cut")
    (prepared / "datasets_prep.lock").touch()  # of a training that was killed, where the file is the lock
    if marked:
        rundir.write_json(prepared / rundir.COMPLETE, {})
    rundir.write_json(run_dir / "run.json", {"run_id": "x", "prepared": str(prepared)})
    supervisor.Supervisor(run_dir).drop_half_prepared()
    assert (prepared / "hash/data.arrow").exists() is kept
    assert not (prepared / "datasets_prep.lock").exists()
