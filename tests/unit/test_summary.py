"""The last lines of a training: what is there, what is not, and why."""

from __future__ import annotations

from ansible.module_utils.lora_forge import summary

RUN = {"run_id": "crew-1", "agent": "crew", "name": "crew lora_r 8", "trainer": "gpu-2"}


def test_why_a_run_is_not_there():
    def said(failures):
        return summary.not_ready(RUN, failures)

    assert said({"crew-1": "out of memory\nlook there"}) == [
        "crew lora_r 8 is not ready: crew-1 on gpu-2: out of memory"
    ]
    assert said({"gpu-2": "no GPU"}) == ["crew lora_r 8 is not ready: crew-1 on gpu-2: no GPU"]
    assert said({"mayor-1": "x"}) == ["crew lora_r 8 is not ready: crew-1 on gpu-2: gpu-2 was lost on the way"]


def test_several_runs_are_counted_where_some_are_lacking():
    runs = [RUN, {**RUN, "run_id": "crew-2"}, {**RUN, "run_id": "crew-3"}]
    assert summary.tally(runs, []) == []
    assert summary.tally(runs[:1], ["crew-1"]) == []
    assert summary.tally(runs, ["crew-2"])[-1].startswith(
        "2 of 3 are verified. The same command goes on with the others"
    )


def test_rates_in_few_digits():
    figures = (950, 1500, 21_000, 999_499, 999_500, 3_240_000, 12_000_000)
    assert [summary.short(one) for one in figures] == ["950", "1.5 k", "21 k", "999 k", "1.0 M", "3.2 M", "12 M"]
