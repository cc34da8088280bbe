"""What people read of pods."""

from __future__ import annotations

import time

import pytest
from ansible.module_utils.lora_forge.pods import messages
from ansible.module_utils.lora_forge.pods.claims import Claim

CLAIM = Claim("n", host="pod-1", pod_id="p1", gpu="NVIDIA L40S", usd_per_hour=2.0, asked_at=0.0, deadline=7200.0)


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setattr(time, "localtime", time.gmtime)


def test_a_pod_that_answers_says_what_it_costs_and_until_when():
    assert messages.ready_message(CLAIM, 1800.0) == (
        "pod-1: NVIDIA L40S answers; 1.00 USD so far, 2.00 USD/h until its leash ends it, at 1970-01-01 02:00"
    )


@pytest.mark.parametrize(
    ("released", "check", "words"),
    [
        (False, False, "nothing is rented"),
        (False, True, "nothing is rented"),
        (True, True, "would be released"),
        (True, False, "released; it cost 1.50 USD"),
    ],
)
def test_what_became_of_a_pod_that_shall_be_gone(released, check, words):
    assert messages.release_message("pod-1", released, check, 1.499, "by hand") == f"pod-1: {words} (by hand)"


@pytest.mark.parametrize(("now", "left"), [(3600.0, "1:00 h"), (9000.0, "0:00 h")])
def test_a_pod_that_is_there_says_how_long_it_may_live(now, left):
    assert messages.found_quote(CLAIM, now).endswith(f"its leash ends it in {left}")


def test_the_pods_of_an_account_are_a_table_with_their_sum():
    own = {
        "name": "n", "id": "p1", "host": "pod-1", "gpu": "NVIDIA L40S", "status": "RUNNING", "usd_per_hour": 0.855,
        "age_h": 1.25, "usd": 1.066, "mine": True, "claimed": ["a-1", "b-1"],
    }  # fmt: skip
    idle = {**own, "id": "p2", "claimed": []}
    foreign = {**own, "id": "p3", "host": "", "name": "my-pod", "mine": False, "claimed": []}
    table = messages.account_table([own, idle, foreign])
    assert table["columns"] == ["pod", "id", "whose", "gpu", "state", "age", "USD/h", "USD", "for"]
    figures = ["NVIDIA L40S", "RUNNING", "1.2 h", "0.85", "1.07"]
    assert table["rows"] == [
        ["pod-1", "p1", "this checkout", *figures, "a-1 b-1"],
        ["pod-1", "p2", "this checkout", *figures, "nothing"],
        ["my-pod", "p3", "another", *figures, "–"],
    ]
    assert table["lines"] == ["  3 pods, 2.56 USD/h together"]
    assert messages.account_table([])["lines"] == ["  no pod is rented"]
