"""The log of a real run, followed to its end."""

from __future__ import annotations

import pytest
from ansible.module_utils.lora_forge.trainer import logs


@pytest.mark.parametrize("log", ["train", "supervisor"])
def test_a_real_run_is_followed_to_its_end(lab, log):
    run = lab.make(steps=12, delay=0.05, say="hello")
    lab.supervise(run)
    text, offset, state = "", 0, ""
    while state not in logs.OVER:
        found = logs.read_log(run, log, offset=offset, seconds=30)
        text, offset, state = text + found["text"], found["offset"], found["state"]
        if state == "absent":  # its supervisor has not come up yet
            state = ""
    assert state == "finished"
    assert text == (run / f"{log}.log").read_text()
    assert ("hello" if log == "train" else " finished\n") in text
