"""The last lines of a training: what is there, what is not, and why."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import pytest
from ansible.module_utils.lora_forge.adapters import promotion
from ansible.module_utils.lora_forge.results import summary
from ansible.module_utils.lora_forge.text import short

ROOT = pathlib.Path(__file__).resolve().parents[2]

RUN = {"run_id": "crew-1", "agent": "crew", "name": "crew lora_r 8", "trainer": "gpu-2"}


def test_why_a_run_is_not_there():
    def said(failures):
        return summary.not_ready_lines(RUN, failures)

    assert said({"crew-1": "out of memory\nlook there"}) == [
        "crew lora_r 8 is not ready: crew-1 on gpu-2: out of memory"
    ]
    assert said({"gpu-2": "no GPU"}) == ["crew lora_r 8 is not ready: crew-1 on gpu-2: no GPU"]
    assert said({"mayor-1": "x"}) == ["crew lora_r 8 is not ready: crew-1 on gpu-2: gpu-2 was lost on the way; "
                                  "the same command goes on, -e move=gpu-2 goes elsewhere"]  # fmt: skip


def test_several_runs_are_counted_where_some_are_lacking():
    runs = [RUN, {**RUN, "run_id": "crew-2"}, {**RUN, "run_id": "crew-3"}]
    assert summary.tally_lines(runs, []) == []
    assert summary.tally_lines(runs[:1], ["crew-1"]) == []
    assert summary.tally_lines(runs, ["crew-2"])[-1].startswith(
        "2 of 3 are verified. The same command goes on with the others"
    )


def test_rates_in_few_digits():
    figures = (950, 1500, 21_000, 999_499, 999_500, 3_240_000, 12_000_000)
    assert [short(one) for one in figures] == ["950", "1.5 k", "21 k", "999 k", "1.0 M", "3.2 M", "12 M"]


GANG = {**RUN, "trainer": "gpu-1", "hosts": ["gpu-1", "gpu-2"]}


def test_of_a_gang_the_host_that_failed_is_named():
    failures = {"crew-1": "crew-1 is stopped: on request", "gpu-2": "no GPU"}
    assert summary.failure_reason(GANG, failures) == "gpu-2: no GPU"
    assert summary.failure_reason(GANG, {"gpu-2": "gpu-2: no answer"}) == "gpu-2: no answer"
    assert summary.failure_reason(GANG, {"gpu-1": "no GPU"}) == "no GPU"


def test_what_nobody_waits_for_trains_where_it_was_launched_and_not_elsewhere():
    assert summary.is_under_way(GANG, {"gpu-1": ["crew-1"], "gpu-2": ["crew-1"]}, {})
    assert not summary.is_under_way(GANG, {"gpu-1": ["crew-1"], "gpu-2": []}, {})
    assert not summary.is_under_way(GANG, {"gpu-1": ["crew-1"], "gpu-2": ["crew-1"]}, {"gpu-2": "no GPU"})
    assert summary.is_under_way(RUN, {"gpu-2": ["crew-1"]}, {})
    assert not summary.is_under_way(RUN, {}, {})


def summed(adapters, runs, check, **given):
    spec = importlib.util.spec_from_file_location("lora_adapter_summary", ROOT / "library/lora_adapter_summary.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = {name: one.get("default") for name, one in module.ARGUMENTS.items()}
    return module.answer({**options, "adapters": str(adapters), "runs": runs, **given}, check)


def answer(adapters, state, check=False, **given):
    found = summed(adapters, [{**RUN, "state": state}], check, **given)
    return found["lacking"], found["lines"][-1]


def test_a_damaged_adapter_is_not_ready_because_its_manifest_is_there(tmp_path):
    folder = tmp_path / "adapters/crew/crew-1"
    folder.mkdir(parents=True)
    manifest = {
        "run_id": "crew-1", "loss": {"first": 2.0, "last": 1.0, "eval_first": None, "eval_last": None},
        "steps": {"reached": 1, "planned": 1}, "duration_s": 1, "cost": {"usd": 0}, "starts": 1, "rehearsal": False,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    home = tmp_path / "adapters"
    assert answer(home, "ready")[0] == []
    assert answer(home, "to train", delivered=["crew-1"])[0] == []
    lacking, said = answer(home, "to train", failures={"crew-1": "no connection"})
    assert (lacking, said) == (["crew-1"], "crew lora_r 8 is not ready: crew-1 on gpu-2: no connection")
    assert answer(home, "to train")[0] == ["crew-1"]
    assert "would be trained" in answer(home, "to train", check=True)[1]


def test_the_best_of_a_sweep_is_known_when_all_of_it_is_there(tmp_path):
    runs = [{**RUN, "run_id": f"crew-{rank}", "variant": {"lora_r": rank}, "state": "ready"} for rank in (8, 16)]
    data = [{"use": "train", "sha256": "t"}, {"use": "val", "sha256": "v"}]
    recipe = {"base_model": "m", "sequence_len": 64}

    def deliver(run_id, loss):
        folder = tmp_path / "adapters/crew" / run_id
        folder.mkdir(parents=True)
        found = promotion.evaluation(recipe, data, loss)
        manifest = {"verdict": "verified", "loss": {"eval_last": loss}, "evaluation": found, "recipe": recipe}
        (folder / "manifest.json").write_text(json.dumps(manifest | {"datasets": data, "run_id": run_id}))

    deliver("crew-8", 0.9)
    assert summed(tmp_path / "adapters", runs, False)["best"] == []
    deliver("crew-16", 0.95)
    assert summed(tmp_path / "adapters", runs, False)["best"] == [{"agent": "crew", "run_id": "crew-8"}]
    runs[0]["state"] = "to train"  # damaged
    assert summed(tmp_path / "adapters", runs, False)["best"] == []


@pytest.mark.parametrize(("adapter", "told"), [(6, True), (8, False), (None, False)])
def test_an_adapter_that_is_not_of_the_last_step_is_told(tmp_path, adapter, told):
    steps = {"reached": 8, "planned": 8} | ({} if adapter is None else {"adapter": adapter})
    loss = {"first": 2.0, "last": 1.0, "eval_first": 2.0, "eval_last": 1.5, "eval_adapter": 1.25}
    found = {"run_id": "crew-1", "steps": steps, "loss": loss, "duration_s": None, "cost": {"usd": 0}, "starts": 1}
    found |= {"rehearsal": False}
    lines = summary.ready_lines({**RUN, "state": "to train"}, found, tmp_path, True, "")
    assert ("  the adapter is that of step 6, the best evaluated one: eval 1.25" in lines) is told


def test_a_run_that_was_never_launched_does_not_train(tmp_path):
    assert answer(tmp_path, "to train", detached=True, launched={"gpu-2": ["crew-1"]}) == (
        [], "crew lora_r 8 trains on gpu-2; the same command without detach watches it",
    )  # fmt: skip
    lacking, said = answer(tmp_path, "to train", detached=True)
    assert lacking == ["crew-1"]
    assert "gpu-2 was lost on the way" in said
