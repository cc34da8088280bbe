"""Promotions of several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from delivered import deliver
from lab import ROOT

PROMOTE = """
import sys, pathlib, ansible.module_utils as m; m.__path__.append(sys.argv[1])
from ansible.module_utils.lora_forge.adapters import promotion
promotion.promote(pathlib.Path(sys.argv[2]), sys.argv[3], promotion.Gate())
"""


def test_two_at_a_time(tmp_path) -> None:
    """Real processes, each of which delivers one run of the agent: each is held against the one before it."""
    names = [f"witness-{letter}" for letter in "bcdefg"]
    for name in names:
        deliver(tmp_path, "witness", name)
    home = tmp_path / "adapters/witness"
    command = [sys.executable, "-c", PROMOTE, str(ROOT / "module_utils"), str(home)]
    started = [subprocess.Popen([*command, name]) for name in names]
    assert [process.wait() for process in started] == [0] * len(names)
    lines = [json.loads(line) for line in (home / "history.jsonl").read_text().splitlines()]
    told = [(line["run_id"], line["from"]) for line in lines if line["moved"]]
    assert sorted(run_id for run_id, _ in told) == names
    assert told[0][1] is None
    assert [before for _, before in told[1:]] == [run_id for run_id, _ in told[:-1]]
    assert os.readlink(home / "latest") == told[-1][0]
