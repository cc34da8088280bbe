"""What may be ordered, for how long, when a training has become too dear, and what pods have cost."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import claims as claims_of
from ansible.module_utils.lora_forge.pods import costs
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims
from wire import Rig, gpu

L40S, A40, A100, L4 = (
    gpu("L40S", 0.86, 0.79), gpu("A40", 0.44), gpu("A100", 1.64, 1.19, memory=80), gpu("L4", 0.43, memory=24),
)  # fmt: skip
ALL = [L40S, A40, A100, L4]
BOTH = {"SECURE": ALL, "COMMUNITY": ALL}
SECURE = {"SECURE": ALL}


def order(offers: list[costs.Offer]) -> list[tuple[str, str, float]]:
    return [(offer.gpu.removeprefix("NVIDIA "), offer.cloud[0], offer.usd_per_hour) for offer in offers]


# --- offers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NVIDIA L40S", "nvidia l40s", "L40S", "l40s"])
def test_a_gpu_is_known_by_its_id_and_by_its_name(name):
    assert costs.gpu_id(name, ALL) == "NVIDIA L40S"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("L40SS", "; did you mean «NVIDIA L40S»? There are:"),
        ("NVIDIA A10", "; did you mean «NVIDIA A10"),
        ("xyz", ". There are: NVIDIA A100, NVIDIA A40, NVIDIA L4, NVIDIA L40S"),
    ],
)
def test_an_unknown_gpu_is_an_error_that_names_the_nearest(name, words):
    with pytest.raises(UserError) as caught:
        costs.find_offers(SECURE, [name], 1, 9)
    assert str(caught.value).startswith(f"pod_gpus: RunPod has no GPU «{name}»{words}")
    assert "There are: NVIDIA A100, NVIDIA A40" in str(caught.value)


@pytest.mark.parametrize(
    ("catalogues", "gpus", "options", "expected"),
    [
        (SECURE, ["A100", "L40S"], {}, [("A100", "S", 1.64), ("L40S", "S", 0.86)]),
        (BOTH, ["A100", "L40S"], {},
         [("A100", "C", 1.19), ("A100", "S", 1.64), ("L40S", "C", 0.79), ("L40S", "S", 0.86)]),
        (BOTH, ["L40S"], {"cap": 0.8}, [("L40S", "C", 0.79)]),
        (BOTH, ["L40S"], {"cap": 0.86}, [("L40S", "C", 0.79), ("L40S", "S", 0.86)]),
        (BOTH, ["A40"], {}, [("A40", "S", 0.44)]),  # 0 in the other cloud: not offered there
        (SECURE, ["A100"], {"count": 2}, [("A100", "S", 3.28)]),
        (BOTH, ["L40S"], {"count": 5, "cap": 9}, [("L40S", "S", 4.3)]),  # at most 4 in the other cloud
        (SECURE, ["L4", "A100"], {"memory": 24.5}, [("A100", "S", 1.64)]),
        (SECURE, ["L4"], {"memory": 24}, [("L4", "S", 0.43)]),
        (SECURE, ["L4"], {"memory": 30, "floor": 24}, [("L4", "S", 0.43)]),  # an estimate refuses nothing
    ],
)  # fmt: skip
def test_what_may_be_ordered_in_the_order_of_preference_and_the_cheaper_cloud_first(
    catalogues, gpus, options, expected
):
    given = {"count": 1, "cap": 5.0, "memory": 0.0, **options}
    floor = given.get("floor", 0.0)
    offers = costs.find_offers(catalogues, gpus, given["count"], given["cap"], given["memory"], floor_gib=floor)
    assert order(offers) == expected


def test_what_is_out_of_stock_comes_last_and_is_asked_for_all_the_same():
    none, unsaid = L40S | {"availability": "NONE"}, {k: v for k, v in A40.items() if k != "availability"}
    offers = costs.find_offers({"SECURE": [none, unsaid, A100]}, ["L40S", "A40", "A100"], 1, 5)
    assert [(offer.gpu, offer.stock) for offer in offers] == [
        ("NVIDIA A100", "HIGH"), ("NVIDIA L40S", "NONE"), ("NVIDIA A40", "NONE"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "centers", "stock"),
    [
        ({"EU-RO-1": "LOW", "US-TX-3": "HIGH"}, ["EU-RO-1"], "LOW"),
        ({"EU-RO-1": "LOW", "US-TX-3": "HIGH"}, ["EU-RO-1", "US-TX-3"], "HIGH"),
        ({"US-TX-3": "HIGH"}, ["EU-RO-1"], "NONE"),
        ({}, ["EU-RO-1"], "NONE"),
        ({"EU-RO-1": "LOW"}, [], "MEDIUM"),
        ({"EU-RO-1": "PLENTY"}, ["EU-RO-1"], "PLENTY"),
        ({"EU-RO-1": "PLENTY", "US-TX-3": "NONE"}, ["EU-RO-1", "US-TX-3"], "PLENTY"),
        ({"EU-RO-1": "PLENTY", "US-TX-3": "LOW"}, ["EU-RO-1", "US-TX-3"], "LOW"),
        ({"EU-RO-1": None}, ["EU-RO-1"], "NONE"),
    ],
)
def test_the_stock_is_that_of_the_data_centers_which_will_do(levels, centers, stock):
    places = (
        {"dataCenters": [{"id": center, "availability": level} for center, level in levels.items()]} if levels else {}
    )
    entry = {k: v for k, v in L40S.items() if k != "dataCenters"} | {"availability": "MEDIUM"} | places
    assert costs.find_offers({"SECURE": [entry]}, ["L40S"], 1, 5, 0, centers)[0].stock == stock


@pytest.mark.parametrize(
    ("gpus", "options", "why"),
    [
        (["A100", "L40S"], {"cap": 0.5}, "0.50: NVIDIA A100 (SECURE): 1.64 USD/h; NVIDIA L40S (SECURE): 0.86 USD/h. "
                                         "The cheapest of them is NVIDIA L40S at 0.86 USD/h."),
        (["L4"], {"floor": 30}, "5.00: NVIDIA L4: 24 GB, but the weights alone take 30 GiB. "
                                "The cheapest of them is NVIDIA L4 at 0.43 USD/h."),
        (["L4"], {"count": 9}, "5.00: NVIDIA L4 (SECURE): at most 8 in a pod. "
                               "The cheapest of them is NVIDIA L4 at 3.87 USD/h."),
        (["B200", "GB200"], {}, "5.00: none is offered in SECURE."),
    ],
)  # fmt: skip
def test_when_none_will_do_it_says_why_for_each_and_names_the_cheapest(gpus, options, why):
    given = {"count": 1, "cap": 5.0, "floor": 0.0, **options}
    catalogue = {"SECURE": [*ALL, gpu("B200"), gpu("GB200", 9.0) | {"secure": False}]}
    with pytest.raises(UserError) as caught:
        costs.find_offers(catalogue, gpus, given["count"], given["cap"], floor_gib=given["floor"])
    assert str(caught.value) == f"no GPU of pod_gpus will do within pod_max_usd_per_hour {why}"


def test_a_name_that_the_catalogue_does_not_have_is_passed_over_with_a_warning():
    (offer,) = costs.find_offers(SECURE, ["L40SS", "L4"], 1, 9)
    assert (offer.gpu, offer.warning) == (
        "NVIDIA L4", "pod_gpus: RunPod has no GPU «L40SS»; did you mean «NVIDIA L40S»?",
    )  # fmt: skip
    (small,) = costs.find_offers(SECURE, ["L4", "xyz"], 1, 9, 30)
    assert small.warning == "24 GB may be too little: 30 GiB is the estimate; pod_gpus: RunPod has no GPU «xyz»"
    assert costs.find_offers(SECURE, ["xyz", "L4", "A100"], 1, 9, 30)[0].gpu == "NVIDIA A100"
    with pytest.raises(UserError, match="RunPod has no GPU «xyz»"):
        costs.find_offers(SECURE, ["xyz", "L40SS"], 1, 9)


def test_an_empty_catalogue_is_told():
    with pytest.raises(UserError, match=r"^RunPod's catalogue names no GPU at all"):
        costs.find_offers({"SECURE": []}, ["L4"], 1, 9)


def test_a_cap_is_met_to_the_cent():
    assert order(costs.find_offers({"SECURE": [gpu("A40", 1.1)]}, ["A40"], 3, 3.3)) == [("A40", "S", 3.3)]


def test_too_little_memory_is_said_once():
    with pytest.raises(UserError) as caught:
        costs.find_offers(BOTH, ["L40S"], 1, 5, floor_gib=60)
    assert str(caught.value).count("L40S: 48 GB") == 1


def test_a_gpu_that_may_be_too_small_is_named_with_a_warning():
    (offer,) = costs.find_offers(SECURE, ["L4"], 1, 5, 30)
    assert offer.warning == "24 GB may be too little: 30 GiB is the estimate"
    assert [offer.warning for offer in costs.find_offers(SECURE, ["L4", "A100"], 1, 5, 30)] == [""]


def test_a_gpu_that_may_be_too_small_is_named_with_the_class_that_fits():
    classes = {"gpu-16gb": 10.3, "gpu-24gb": 11.9, "gpu-48gb": 27.3}
    (offer,) = costs.find_offers(SECURE, ["L4"], 1, 5, 30, classes=classes)
    assert offer.warning == (
        "24 GB may be too little: 30 GiB is the estimate; with trainer_machine: gpu-24gb it is 11.9 GiB"
    )
    (offer,) = costs.find_offers(SECURE, ["L4"], 1, 5, 30, classes={"gpu-48gb": 27.3})
    assert offer.warning == "24 GB may be too little: 30 GiB is the estimate"


# --- estimates -----------------------------------------------------------------------------------------------------


def run(**changes: Any) -> dict[str, Any]:
    recipe = {"base_model": "Qwen/Qwen2.5-7B-Instruct", "micro_batch_size": 2, "gradient_accumulation_steps": 4,
              "sequence_len": 4096, "gradient_checkpointing": True, **changes}  # fmt: skip
    batch = recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"]
    return {"rehearsal": False, "recipe": recipe, "estimate": {"work": 400 * batch * recipe["sequence_len"]}}


def pure(hours: float | None) -> float:
    assert hours is not None
    return hours - costs.OVERHEAD


def test_hours_follow_from_steps_tokens_and_weights():
    # 7.62 B weights, of which the embedding (0.545 B) is looked up and not multiplied
    flops = 400 * 8 * 4096 * 6 * (7.6156e9 - 152064 * 3584)
    assert pure(costs.training_hours(run(), "NVIDIA L40S")) == pytest.approx(flops / (362e12 * 0.25) / 3600, rel=2e-3)


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"gradient_checkpointing": False}, 4 / 6), ({"sequence_len": 2048}, 0.5), ({"micro_batch_size": 4}, 2),
        ({"base_model": "/models/qwen2.5-7b"}, 1), ({"base_model": "Qwen/Qwen2.5-7B-Instruct/"}, 1),
    ],
)  # fmt: skip
def test_hours_go_by_the_recipe(changes, times):
    assert pure(costs.training_hours(run(**changes), "NVIDIA A40")) == pytest.approx(
        times * pure(costs.training_hours(run(), "NVIDIA A40")), rel=1e-3
    )


@pytest.mark.parametrize(
    ("gpu_id", "tflops"),
    [
        ("NVIDIA B200", 2250), ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A40", 150),
        ("NVIDIA RTX A6000", 155), ("NVIDIA RTX 6000 Ada Generation", 364), ("NVIDIA L40S", 362), ("NVIDIA L40", 181),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 504), ("NVIDIA L4", 60), ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A5000", 111),
    ],
)  # fmt: skip
def test_hours_go_by_the_gpu(gpu_id, tflops):
    assert pure(costs.training_hours(run(), gpu_id)) == pytest.approx(
        pure(costs.training_hours(run(), "NVIDIA L40S")) * 362 / tflops, rel=2e-2
    )


ANSWERS = {"count": 120, "steps": 4096, "prompts": 48_000}


def test_answers_to_cases_are_part_of_the_hours():
    alone, asked = run(), run(adapter="qlora", load_in_4bit=True)
    asked["estimate"] |= {"answers": ANSWERS}
    seconds = costs.answering_seconds(asked, "NVIDIA L40S")
    assert 300 < seconds < 1800
    more = pure(costs.training_hours(asked, "NVIDIA L40S")) - pure(costs.training_hours(alone, "NVIDIA L40S"))
    assert more == pytest.approx(seconds / 3600, abs=2e-3)
    assert costs.answering_seconds({**asked, "gpus": 2}, "NVIDIA L40S") == seconds + 300
    assert costs.answering_seconds({**asked, "hosts": ["a", "b"]}, "NVIDIA L40S") == seconds + 300
    assert costs.answering_seconds(alone, "NVIDIA L40S") == costs.answering_seconds(asked, "AMD Instinct") == 0
    assert costs.answering_seconds({**asked, "rehearsal": True}, "NVIDIA L40S") == 0
    # An evaluation trains nothing, and loads the model first.
    evaluation = {**asked, "evaluates": "witness-1", "estimate": {"work": 0, "answers": ANSWERS}}
    hours = pure(costs.training_hours(evaluation, "NVIDIA L40S"))
    assert hours == pytest.approx((seconds + 300) / 3600, abs=1e-3)


def test_gpus_share_a_run_and_lanes_a_pod():
    alone = costs.training_hours(run(), "NVIDIA L40S")
    assert pure(costs.training_hours({**run(), "gpus": 4}, "NVIDIA L40S")) == pytest.approx(pure(alone) / 4, rel=1e-2)
    three = [{**run(), "lane": lane} for lane in (0, 0, 1)]
    assert costs.pod_hours(three, "NVIDIA L40S") == pytest.approx(2 * alone)
    assert costs.pod_hours([*three, run(base_model="Acme/Other-7B")], "NVIDIA L40S") is None
    assert costs.pod_hours([], "NVIDIA L40S") is None


def test_a_gpu_is_not_taken_for_one_whose_name_begins_alike():
    assert costs.training_hours(run(), "NVIDIA RTX A4000") != costs.training_hours(run(), "NVIDIA A40")


def test_what_is_not_known_is_not_estimated_and_a_rehearsal_is_short():
    assert costs.training_hours(run(base_model="Acme/Other-7B"), "NVIDIA L40S") is None
    assert costs.training_hours(run(), "AMD Instinct MI300X OAM") is None
    assert costs.training_hours({"rehearsal": True}, "anything") == costs.REHEARSAL


@pytest.mark.parametrize(
    ("estimate", "max_hours", "max_usd", "spent", "hours"),
    [
        (None, 24, 0, 0, 24), (2, 24, 0, 0, 5), (12, 24, 0, 0, 24), (11.5, 24, 0, 0, 24), (2, 24, 4.2, 0, 4),
        (2, 24, 4.2, 1.05, 3), (None, 24, 4, 4, 0), (None, 24, 4, 9, 0), (2, 24, 0, 99, 5), (0, 24, 0, 0, 1),
    ],
)  # fmt: skip
def test_a_leash_is_the_least_of_the_caps_and_of_twice_the_estimate_and_an_hour(
    estimate, max_hours, max_usd, spent, hours
):
    allowed = costs.allowed_hours(
        estimate, 1.0, max_hours, max_usd, spent
    )  # the dollars hold for 1.05 times the price too
    assert allowed == pytest.approx(hours)


# --- while it trains -----------------------------------------------------------------------------------------------

BUDGET = {"usd_per_hour": 2.0, "spent": 1.0, "since": 0.0, "max_usd": 7.0, "max_hours": 4.0, "deadline": 7200,
          "pod": "a1", "pods": ["a0", "a1"]}  # fmt: skip
H = 3600.0


def budget_of(**changes: Any) -> costs.Budget:
    return costs.Budget(**{**BUDGET, **changes})


@pytest.mark.parametrize(
    ("changes", "now", "eta", "words"),
    [
        ({}, 1 * H, None, ""), ({}, 1 * H, 2 * H, ""),
        ({}, 1 * H, 2 * H + 60, "at the measured pace it would come to 7.03 USD, and pod_max_usd is 7.00"),
        ({}, 3 * H, None, ""), ({}, 3 * H + 60, None, "it has come to 7.03 USD, and pod_max_usd is 7.00"),
        ({}, 3 * H + 60, 0.0, "it has come to 7.03 USD, and pod_max_usd is 7.00"),
        ({"max_usd": 0}, 1 * H, 3 * H, ""),
        ({"max_usd": 0}, 1 * H, 3 * H + 60, "at the measured pace it would come to 4.02 h, and pod_max_hours is 4.00"),
        ({"max_usd": 0}, 4 * H + 60, None, "it has come to 4.02 h, and pod_max_hours is 4.00"),
        ({"spent": 7.0}, 60, None, "it has come to 7.03 USD, and pod_max_usd is 7.00"),
        ({"since": 1 * H}, 4 * H, None, ""),
        *(({}, 100 * H, eta, "it has come to 201.00 USD, and pod_max_usd is 7.00")
          for eta in (-1e9, float("nan"), float("inf"), float("-inf"), "soon", True, [], 1e300, None)),
        ({"max_usd": 0}, 100 * H, -1e9, "it has come to 100.00 h, and pod_max_hours is 4.00"),
        ({}, -9 * H, -1e9, ""), ({}, -9 * H, 3 * H + 60, "at the measured pace it would come to 7.03 USD, and "
                                                         "pod_max_usd is 7.00"),  # a clock that was set back
        ({"max_usd": 0}, 0, 1e300, "at the measured pace it would come to 8760.00 h, and pod_max_hours is 4.00"),
    ],
)  # fmt: skip
def test_a_training_that_would_cost_too_much_is_told_in_words_and_one_that_just_fits_goes_on(changes, now, eta, words):
    assert costs.budget_breach(budget_of(**changes), now, eta) == words


@pytest.mark.parametrize(
    ("changes", "now", "eta", "deadline"),
    [
        ({}, 0, None, None),
        ({}, 0, 0.5 * H, None),  # fits as it is, with half an hour to spare
        ({}, 0, 1.5 * H, None), ({}, 0, 1.5 * H + 1, 3 * H),  # 4 h and a bit are wanted, 3 h are left of the dollars
        ({"max_usd": 0}, 0, 1.6 * H, 4 * H),  # 4.2 h are wanted
        ({"max_usd": 0, "max_hours": 24}, 0, 1.6 * H, 4.2 * H),
        ({"max_usd": 0, "max_hours": 24}, 1 * H, 0.6 * H, 3.2 * H),
        ({"spent": 3.0}, 0, 1.9 * H, None),  # 2 h, that is the deadline it has
        ({"spent": 3.0, "deadline": 2 * H - 60}, 0, 1.9 * H, None),
        ({"spent": 3.0, "deadline": 7139}, 0, 1.9 * H, 2 * H),
        ({"spent": 3.0, "deadline": 3600}, 0, 3 * H, None),  # it could not end within the caps: that helps nobody
        ({}, 0, -1.0, None), ({}, 0, float("nan"), None), ({}, 0, float("inf"), None),
        ({"usd_per_hour": 0.0}, 0, 1.6 * H, None), ({"usd_per_hour": 0.0, "max_usd": 0}, 0, 1.6 * H, 4 * H),
        ({"spent": 9.0}, 0, 3 * H, None),
    ],
)  # fmt: skip
def test_a_leash_is_renewed_where_the_pace_asks_for_it_and_only_within_the_caps(changes, now, eta, deadline):
    assert costs.renewed_deadline(budget_of(**changes), now, eta) == deadline


def test_a_pace_takes_steps_that_were_not_claimed_before_by_its_own_clock():
    pace = costs.Pace()
    assert pace.seconds_left(0) is None
    for answer in ((None, 100), (5, None), ("5", 100), (5.0, 100), (-5, 100), (5, 0), (5, 10**400), (float("nan"), 9)):
        pace.see(0, *answer)
    assert pace == costs.Pace()
    pace.see(1000, 10, 100)
    assert pace.seconds_left(2000) is None  # nothing was seen to be done
    pace.see(2000, 20, 110)
    assert pace.seconds_left(2000) == 80 * 100  # the steps to be do not grow
    pace.see(3000, 15, 100)
    assert pace.seconds_left(3000) == 80 * 200
    pace.renewed(3000)
    pace.see(4000, 20, 100)
    assert pace.seconds_left(4000) is None
    pace.see(5000, 21, 100)
    assert pace.seconds_left(5000) == 79 * 2000
    pace.see(6000, 500, 100)
    assert pace.seconds_left(6000) == 0
    pace.renewed(6000)
    pace.see(7000, 900, 100)
    assert pace.seconds_left(7000) is None  # all that was to be done is done
    pace = costs.Pace()
    pace.see(1000, 1, 100), pace.see(1001, 2, 100)
    assert pace.seconds_left(-6000) == 0  # a clock that was set back


def test_of_two_paces_the_shorter_rest_prolongs_a_leash():
    budget = budget_of(max_usd=0, max_hours=100.0)
    assert costs.renewed_deadline(budget, 0, 40 * H, 2 * H) == costs.renewed_deadline(budget, 0, 2 * H, 40 * H) == 5 * H
    assert costs.renewed_deadline(budget, 0, 40 * H, -1e9) is None
    assert costs.renewed_deadline(budget, 0, 40 * H, float("nan")) == 81 * H
    assert costs.renewed_deadline(budget, 0, 101 * H, 2 * H) is None  # as it goes, it does not end within the caps


def test_a_budget_goes_through_ansible_as_it_is():
    caps = {"max_usd_per_day": 3.0, "max_usd_per_month": 30.0}
    budget = budget_of(claim="/c/n.json", root="/r", **caps)
    assert budget.as_dict() == {**BUDGET, "claim": "/c/n.json", "root": "/r", "answering": 0.0, **caps}
    assert costs.Budget.from_dict({**budget.as_dict(), "of a later version": 1}) == budget


def test_what_a_run_cost_is_its_share_of_the_pods():
    assert costs.usd_spent(None).as_dict() == {"usd": 0.0, "usd_per_hour": 0.0, "source": "own hardware"}
    cost = {"usd_per_hour": 2.0, "source": "RunPod's price × time", "pods": ["a0", "a1"]}
    assert costs.usd_spent(budget_of(), 0.50001).as_dict() == {"usd": 0.5, **cost}


@pytest.mark.parametrize(("hours", "words"), [(0, "0:00 h"), (2.4, "2:24 h"), (0.999, "1:00 h"), (30.25, "30:15 h")])
def test_hours_as_people_read_them(hours, words):
    assert costs.hours_text(hours) == words


# --- what pods cost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "usd"),
    [
        ({}, 3.0), ({"released_at": 3600}, 2.0), ({"pod_id": None}, 0.0),
        ({"asked_at": 9000}, 0.0), ({"billed_usd": 0.25, "asked_at": -190000, "released_at": -100000}, 0.25),
        ({"billed_usd": 0.25, "released_at": 3600}, 2.0),  # a bill of the same day may lack its last hours
        ({"billed_usd": 2.5, "released_at": 3600}, 2.5),
    ],
)  # fmt: skip
def test_a_pod_costs_what_is_billed_else_its_price_for_the_time_since_its_order(tmp_path, changes, usd):
    known = {"pod_id": "a", "asked_at": 0, "usd_per_hour": 2.0, **changes}
    assert claims_of.claim_cost(Claims(tmp_path).open_claim("h", [], 0, **known), 5400) == usd


def test_what_runs_have_cost_is_the_sum_over_their_pods(tmp_path):
    claims = Claims(tmp_path)
    for runs, rate, known in ((["a"], 1, {"released_at": 3600}), (["a", "b"], 2, {}), (["c"], 4, {"billed_usd": 9})):
        last = claims.open_claim("h", runs, rate, pod_id="x", asked_at=0, usd_per_hour=rate, **known)
    assert [claims.spent_on(runs, 7200) for runs in (["a"], ["b"], ["a", "b"], ["c"], ["d"], [])] == [5, 4, 5, 9, 0, 0]
    assert claims.spent_on(["c"], 7200, without=last.name) == 0


def test_of_what_shared_pods_have_cost_nothing_is_counted_twice(tmp_path):
    claims = Claims(tmp_path / "pods")
    for pod, runs, usd in (("p1", ["a-1", "b-1"], 1), ("p2", ["b-1", "c-1"], 2), ("p3", ["d-1", "e-1"], 4),
                           (None, ["f-1"], 9)):  # fmt: skip
        claims.open_claim("h", runs, 0, pod_id=pod, asked_at=0, usd_per_hour=usd)

    def left():
        return {
            "+".join(sorted(runs)): usd for runs, usd in claims_of.undelivered_costs(claims.list_all(), tmp_path, H)
        }

    def deliver(run_id, **cost):
        folder = tmp_path / run_id[0] / run_id
        folder.mkdir(parents=True)
        rundir.write_json(folder / "manifest.json", {"run_id": run_id, "cost": cost})

    assert left() == {"a-1+b-1+c-1": 3.0, "d-1+e-1": 4.0, "f-1": 0.0}
    shares = {"a-1": 1.0, "b-1": 1.0, "c-1": 1.0, "d-1": 2.0, "e-1": 2.0, "f-1": 0.0}
    assert claims_of.cost_by_run(claims.list_all(), tmp_path, H) == shares
    deliver("b-1", usd=2.5, pods=["p1", "p2"])
    deliver("d-1", usd=5.0, pods=["p3"])  # as it was billed: more than by the clock
    deliver("g-1", usd="1", pods=["p1"])  # damaged
    assert left() == {"a-1+b-1+c-1": 0.5, "d-1+e-1": 0.0, "f-1": 0.0}
    assert claims_of.cost_by_run(claims.list_all(), tmp_path, H) == {"a-1": 0.25, "c-1": 0.25, "e-1": 0.0, "f-1": 0.0}


def test_manifests_are_corrected_once_all_their_pods_are_billed(tmp_path):
    claims = Claims(tmp_path / "pods")
    for pod, billed in (("p1", 1.0), ("p2", 3.0), ("p3", None)):
        known = {"pod_id": pod, "asked_at": 0, "usd_per_hour": 2.0, "released_at": 3600, "billed_usd": billed}
        claims.open_claim("h", ["r"], 0, output=str(tmp_path), **known)
    costs = {
        "a-1": {"usd": 2.0, "pods": ["p1"]}, "b-1": {"usd": 3.0, "pods": ["p1", "p2"]},
        "c-1": {"usd": 9.0, "pods": ["p2", "p3"]}, "d-1": {"usd": 0.0},
    }  # fmt: skip
    paths = {run_id: tmp_path / f"adapters/{run_id[0]}/{run_id}/manifest.json" for run_id in costs}
    for run_id, path in paths.items():
        path.parent.mkdir(parents=True)
        rundir.write_json(path, {"run_id": run_id, "cost": {**costs[run_id], "source": "RunPod's price × time"}})
    for _ in range(2):  # the second time changes nothing
        claims_of.apply_billing(claims.list_all())
        corrected = {run_id: rundir.read_json(path)["cost"] for run_id, path in paths.items()}
        assert {run_id: cost["usd"] for run_id, cost in corrected.items()} == {
            "a-1": 1.0,
            "b-1": 3.0,
            "c-1": 9.0,
            "d-1": 0.0,
        }
        assert [cost["source"] == "RunPod's bill" for cost in corrected.values()] == [True, True, False, False]


def test_every_pod_of_the_account_is_told_and_whose_it_is(tmp_path):
    rig = Rig(tmp_path)
    mine = rig.ready().claim
    rig.clock.time = mine.asked_at + 3590
    orphan = rig.cloud.add(f"lora-forge-{rig.claims.owner}-pod-9-0c1d2e")
    others = [rig.cloud.add("lora-forge-deadbeef-pod-1-0c1d2e"), rig.cloud.add("my-pod", status="EXITED")]
    rows = claims_of.list_account_pods(
        rig.manager.api.list_pods(), rig.claims.list_all(), rig.claims.owner, rig.clock.now()
    )
    table = [[row[key] for key in ("name", "host", "mine", "claimed", "usd_per_hour", "usd", "status")] for row in rows]
    assert table == [
        [mine.name, "pod-1", True, ["witness-1"], 0.86, 0.8576, "RUNNING"],
        [orphan["name"], "pod-9", True, [], 0.86, 0.0, "PROVISIONING"],
        [others[0]["name"], "pod-1", False, [], 0.86, 0.0, "PROVISIONING"],
        ["my-pod", "", False, [], 0.0, 0.0, "EXITED"],
    ]
    assert (rows[0]["deadline"], rows[1]["deadline"]) == (mine.deadline, None)
    assert "-e pod=pod-1" in rows[0]["retention_notice"]
    assert rows[1]["retention_notice"] == "It costs 0.86 USD/h."


@pytest.mark.parametrize(
    ("placed", "delivered", "age", "live"),
    [
        ("", False, 60, True),  # ordered, and not launched yet
        ("", False, 3700, False),  # never launched: its controller is gone
        ("launched", False, 90000, True),
        ("finished", False, 90000, True),  # and not collected: the only copy is there
        ("finished", True, 60, False),
        ("", True, 60, False),
        ("stopped", False, 60, False),
        ("failed", False, 60, False),
        ("stoppedbefore", False, 60, True),
        ("stoppedbefore", False, 3700, False),
    ],
)
def test_a_pod_is_for_something_until_its_runs_are_delivered_or_given_up(tmp_path, placed, delivered, age, live):
    # Stopped before the pod was asked for: it is about to go on there.
    placed, noted_at = (placed[:-6], 0.5) if placed.endswith("before") else (placed, 30.0)
    claim = Claims(tmp_path / "pods").open_claim("h", ["a-1"], 1.0, asked_at=1.0, output=str(tmp_path))
    (tmp_path / "runs").mkdir()
    if placed:
        rundir.write_json(tmp_path / "runs/a-1.json", {"run_id": "a-1", "state": placed, "noted_at": noted_at})
    if delivered:
        (tmp_path / "adapters/a/a-1").mkdir(parents=True)
        rundir.write_json(tmp_path / "adapters/a/a-1/manifest.json", {})
    assert claims_of.active_runs(claim, age) == (["a-1"] if live else [])
    assert claims_of.active_runs(dataclasses.replace(claim, released_at=1.0), age) == []


# --- claims, closer ------------------------------------------------------------------------------------------------


def test_a_new_claim_says_everything_and_lies_on_disk_for_its_owner_alone(tmp_path):
    claims = Claims(tmp_path / "pods", "cafe01")
    made = claims.open_claim("pod-1", ["a-1", "b-1"], 12.5, gpu="NVIDIA L40S", attempt=2)
    name = made.name
    assert claims_of.parse_name(name) == ("cafe01", "pod-1")
    assert made.as_dict() == {
        "schema_version": rundir.SCHEMA_VERSION,
        "name": name,
        "owner": "cafe01",
        "host": "pod-1",
        "runs": ["a-1", "b-1"],
        "output": "",
        "made_at": 12.5,
        "began_at": 12.5,
        "wanted_at": 12.5,
        "waiting_since": None,
        "attempt": 2,
        "state": "claimed",
        "pod_id": None,
        "gpu": "NVIDIA L40S",
        "cloud": None,
        "usd_per_hour": 0.0,
        "offered": 0.0,
        "priced": False,
        "seen": False,
        "asked_at": None,
        "asked_uptime": None,
        "boot": "",
        "unclear": False,
        "lost_at": None,
        "lost_orders": 0,
        "watched_for": "",
        "watched_s": 0.0,
        "looks": 0,
        "pause_s": 0.0,
        "allowance_s": None,
        "deadline": None,
        "boot_since": None,
        "ready_at": None,
        "machine": None,
        "word": "",
        "bad": False,
        "released_at": None,
        "usd": 0.0,
        "billed_usd": None,
        "extra_usd": 0.0,
        "taken_over": False,
    }
    path = tmp_path / "pods/claims" / f"{name}.json"
    assert claims.path_of(name) == path
    assert rundir.read_json(path) == made.as_dict()
    assert (path.parent.stat().st_mode & 0o777) == 0o700
    assert claims.update(made, state="ordered").as_dict() == rundir.read_json(path)
    assert rundir.read_json(path)["state"] == "ordered"


def test_a_claim_of_an_earlier_version_is_read_with_what_it_lacks(tmp_path):
    claims = Claims(tmp_path, "cafe01")
    name = "lora-forge-cafe01-pod-1-0c1d2e"
    (tmp_path / "claims").mkdir()
    rundir.write_json(claims.path_of(name), {"name": name, "owner": "cafe01", "host": "pod-1", "made_at": 5.0,
                                             "pod_id": "p1", "asked_at": 6.0, "word": "so far"})  # fmt: skip
    [claim] = claims.list_all()
    assert (claim.runs, claim.output, claim.attempt, claim.released_at, claim.word) == ([], "", 1, None, "so far")
    assert claims.find_open("pod-1") == claim
    assert claim == Claim.from_dict(claim.as_dict())


def test_a_renewal_changes_the_deadline_of_that_very_claim_and_nothing_else(tmp_path):
    claims = Claims(tmp_path, "cafe01")
    claim, other = (claims.open_claim("pod-1", ["a-1"], now, deadline=7.0) for now in (1, 2))
    rundir.write_json(claims.path_of(claim.name), {**claim.as_dict(), "of a later version": 1})
    assert claims.renew(claim.name, 9.5)
    assert rundir.read_json(claims.path_of(claim.name)) == {**claim.as_dict(), "deadline": 9.5, "of a later version": 1}
    assert rundir.read_json(claims.path_of(other.name)) == other.as_dict()


def test_a_claim_that_is_closed_or_gone_is_not_renewed(tmp_path):
    claims = Claims(tmp_path / "pods", "cafe01")
    assert not claims.renew("lora-forge-cafe01-pod-1-0c1d2e", 9.5)
    assert not (tmp_path / "pods").exists()
    closed = claims.open_claim("pod-1", ["a-1"], 1, deadline=7.0, released_at=8.0)
    opened = claims.open_claim("pod-1", ["a-1"], 9)  # in its place
    assert not claims.renew(closed.name, 9.5)
    assert claims.list_all() == [closed, opened]


@pytest.mark.parametrize("closes", [False, True])
def test_a_renewal_waits_for_who_has_the_lock_and_goes_by_what_that_one_wrote(tmp_path, closes):
    claims = Claims(tmp_path, "cafe01")
    claim = claims.open_claim("pod-1", ["a-1"], 1, deadline=7.0)
    renewed: list[bool] = []
    watching = threading.Thread(target=lambda: renewed.append(claims.renew(claim.name, 9.5)))
    with claims.locked("pod-1"):
        watching.start()
        watching.join(0.1)
        assert watching.is_alive()
        assert claims.list_all() == [claim]
        claims.update(claim, usd_per_hour=2.0, released_at=8.0 if closes else None)
    watching.join()
    assert renewed == [not closes]
    assert claims.list_all() == [dataclasses.replace(claim, deadline=7.0 if closes else 9.5)]


def test_a_bill_does_not_take_back_what_was_written_meanwhile(tmp_path):
    claims = Claims(tmp_path, "cafe01")
    claim = claims.open_claim("pod-1", [], 1, pod_id="p1", asked_at=0.0, released_at=8.0)

    def bill(pod_id: str) -> float:
        claims.update(dataclasses.replace(claim), usd=0.5)  # by another process, while RunPod is asked
        return 0.25

    assert claims_of.fetch_bills(claims, bill, 9.0, check=True)
    assert claims.list_all()[0].billed_usd is None
    assert claims_of.fetch_bills(claims, bill, 9.0, check=False)
    assert (claims.list_all()[0].usd, claims.list_all()[0].billed_usd) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("closed", "asked"),
    [
        ({"released_at": None}, False),
        ({"released_at": 8.0, "pod_id": None}, False),
        ({"released_at": 8.0}, True),
        ({"released_at": 8.0, "billed_usd": 0.1}, True),  # its last hours may be missing
        ({"released_at": 8.0 - claims_of.FINAL_BILL, "billed_usd": 0.1}, False),
        ({"released_at": 8.0 - claims_of.FINAL_BILL}, True),
    ],
)
def test_a_bill_is_asked_for_until_it_is_whole(tmp_path, closed, asked):
    claims, pods = Claims(tmp_path, "cafe01"), []
    claims.open_claim("pod-1", [], 1, **{"pod_id": "p1", "asked_at": 0.0, **closed})
    assert not claims_of.fetch_bills(claims, pods.append, 8.0, check=False)
    assert pods == (["p1"] if asked else [])


def test_claims_of_one_host_have_names_of_their_own(tmp_path):
    claims = Claims(tmp_path, "cafe01")
    assert len({claims.open_claim("pod-1", [], 0).name for _ in range(5)}) == 5


def test_claims_are_told_from_the_oldest_on_and_what_is_none_is_passed_over(tmp_path):
    claims = Claims(tmp_path, "cafe01")
    assert claims.list_all() == []
    for host, now in (("b", 2), ("a", 3), ("c", 1)):
        claims.open_claim(host, [], now)
    (tmp_path / "claims/odd.json").write_text("{}")
    (tmp_path / "claims/cut.json").write_text("{")
    assert [claim.host for claim in claims.list_all()] == ["c", "b", "a"]


def test_the_open_claim_of_a_host_is_the_newest_of_this_owner_that_is_not_released(tmp_path):
    claims = Claims(tmp_path, "cafe01")
    assert claims.find_open("a") is None
    claims.open_claim("a", ["old"], 1)
    claims.open_claim("a", ["new"], 2)
    claims.open_claim("a", ["released"], 3, released_at=4.0)
    claims.open_claim("b", ["of another host"], 5)
    Claims(tmp_path, "deadbeef").open_claim("a", ["of another owner"], 6)
    assert claims.find_open("a").runs == ["new"]
    assert claims.find_open("c") is None


@pytest.mark.parametrize("owner", ["a b", "a-b", "é", "a\n", "../x"])
def test_an_owners_id_that_would_not_be_found_again(tmp_path, owner):
    with pytest.raises(UserError) as caught:
        Claims(tmp_path, owner)
    assert str(caught.value) == f"owner is «{owner}»; an owner's id holds letters and digits only"
    assert Claims(tmp_path, "aZ09").owner == "aZ09"


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("lora-forge-aB9-pod-1-0c1d2e", ("aB9", "pod-1")),
        ("lora-forge-a-x-0c1d2e-0c1d2f", ("a", "x-0c1d2e")),
        ("lora-forge-a-pod-1-0c1d2", None),
        ("lora-forge-a-pod-1-0C1D2E", None),
        ("lora-forge-a-pod-1-0c1d2ef", None),
        ("lora-forge-a--0c1d2e", None),
        ("lora-forge--pod-0c1d2e", None),
        ("my-lora-forge-a-pod-1-0c1d2e", None),
        ("lora-forge-a-pod-1-0c1d2e-x", None),
    ],
)
def test_whose_a_pod_is_stands_in_its_name(name, parsed):
    assert claims_of.parse_name(name) == parsed


def pod_claim(**changes: Any) -> Claim:
    return Claim(**{"name": "n", "pod_id": "a", "asked_at": 0.0, "usd_per_hour": 2.0, **changes})


@pytest.mark.parametrize(
    ("changes", "now", "usd"),
    [
        ({"billed_usd": 0.5, "released_at": 3600.0}, 3600.0 + 86400, 2.0),
        ({"billed_usd": 0.5, "released_at": 3600.0}, 3600.0 + 86401, 0.5),
        ({"billed_usd": 0.0, "released_at": 3600.0}, 3600.0 + 86401, 0.0),
        ({"billed_usd": 0.5}, 200 * H, 400.0),  # not released: it goes on costing
        ({"billed_usd": "0.5", "released_at": 3600.0}, 3600.0 + 86401, 0.5),
        ({"asked_at": 1800.0, "released_at": 3600.0}, 9e9, 1.0),
        ({"usd_per_hour": "0.5"}, 3600.0, 0.5),
        ({"pod_id": ""}, 3600.0, 0.0),
    ],
)
def test_what_a_pod_costs_by_the_clock_and_by_the_bill(changes, now, usd):
    assert claims_of.claim_cost(pod_claim(**changes), now) == usd


def test_a_pod_that_is_kept_says_what_it_costs_until_when_and_both_ways_on(monkeypatch):
    monkeypatch.setattr(claims_of.time, "localtime", claims_of.time.gmtime)
    claim = pod_claim(host="pod-1", deadline=1_764_000_000.0)
    assert claims_of.retention_notice(claim) == (
        "It costs 2.00 USD/h until its leash ends it at 2025-11-24 16:00. Either go on with the same command, or give "
        "it up: ansible-playbook -i <inventory> playbooks/release.yml -e pod=pod-1"
    )


def test_the_runs_that_a_pod_is_kept_for(tmp_path):
    claims = Claims(tmp_path / "pods", "cafe01")
    claim = claims.open_claim("h", ["d-1", "c-1", "b-1", "a-1", "e-1"], 1000.0, output=str(tmp_path))
    (tmp_path / "runs").mkdir()
    placed = {
        "a-1": {"state": "launched", "noted_at": 2000.0},
        "b-1": {"state": "finished", "noted_at": 2000.0},
        "c-1": {"state": "failed", "noted_at": 1000.0},  # when it was asked for: that is of this pod
        "d-1": {"state": "failed", "noted_at": 999.0},  # before: it is about to be launched
        "e-1": {"state": "stopped"},
    }
    for run_id, noted in placed.items():
        rundir.write_json(tmp_path / f"runs/{run_id}.json", noted)
    assert claims_of.active_runs(claim, 1000.0 + claims_of.LAUNCH - 1) == ["a-1", "b-1", "d-1", "e-1"]
    assert claims_of.active_runs(claim, 1000.0 + claims_of.LAUNCH) == ["a-1", "b-1"]
    (tmp_path / "adapters/b/b-1").mkdir(parents=True)
    rundir.write_json(tmp_path / "adapters/b/b-1/manifest.json", {})
    assert claims_of.active_runs(claim, 9e9) == ["a-1"]
    unknown = claims.open_claim(
        "h", ["a-1", "b-1"], 1000.0
    )  # of an earlier version: nobody knows where its output lies
    assert claims_of.active_runs(unknown, 1001.0) == ["a-1", "b-1"]
    assert claims_of.active_runs(unknown, 9e9) == []


def test_what_is_left_of_shared_costs_is_rounded_and_split(tmp_path):
    claims = Claims(tmp_path / "pods", "cafe01")
    claims.open_claim("h", ["a-1", "b-1", "c-1"], 0, pod_id="p1", asked_at=0, usd_per_hour=1.0)
    assert claims_of.cost_by_run(claims.list_all(), tmp_path, H) == {"a-1": 0.3333, "b-1": 0.3333, "c-1": 0.3333}
    assert claims_of.cost_by_run([], tmp_path, H) == {}
    folder = tmp_path / "a/a-1"
    folder.mkdir(parents=True)
    rundir.write_json(folder / "manifest.json", {"run_id": "a-1"})  # it says nothing of its cost
    assert claims_of.undelivered_costs(claims.list_all(), tmp_path, H) == [({"a-1", "b-1", "c-1"}, 1.0)]
    rundir.write_json(folder / "manifest.json", {"run_id": "a-1", "cost": {"usd": 0.25, "pods": None}})
    assert claims_of.undelivered_costs(claims.list_all(), tmp_path, H) == [({"a-1", "b-1", "c-1"}, 1.0)]
    rundir.write_json(folder / "manifest.json", {"run_id": "a-1", "cost": {"usd": 0.25, "pods": ["p1", "p9"]}})
    assert claims_of.undelivered_costs(claims.list_all(), tmp_path, H) == [({"a-1", "b-1", "c-1"}, 0.75)]


def test_a_corrected_manifest_keeps_everything_else(tmp_path):
    claims = Claims(tmp_path / "pods", "cafe01")
    for pod, rate, billed in (("p1", 2.0, 3.0), ("p2", 1.0, 0.6), ("p0", 0.0, 1.0)):
        claims.open_claim("h", ["a-1"], 0, output=str(tmp_path), pod_id=pod, asked_at=0, usd_per_hour=rate,
                    released_at=3600, billed_usd=billed)  # fmt: skip
    claims.open_claim("h", ["a-1"], 0)  # never ordered
    path = tmp_path / "adapters/a/a-1/manifest.json"
    path.parent.mkdir(parents=True)
    cost = {"usd": 1.0, "usd_per_hour": 2.0, "pods": ["p1", "p2"], "source": "RunPod's price × time"}
    rundir.write_json(path, {"run_id": "a-1", "agent": "a", "cost": cost})
    right = {
        "run_id": "a-1",
        "agent": "a",
        "cost": {**cost, "usd": 1.2, "usd_by_clock": 1.0, "source": "RunPod's bill"},
    }
    claims_of.apply_billing(claims.list_all())
    assert rundir.read_json(path) == right
    written = path.stat().st_mtime_ns
    claims_of.apply_billing(claims.list_all())
    assert path.stat().st_mtime_ns == written
    free = {"run_id": "a-1", "cost": {"usd": 0.0, "pods": ["p0"]}}
    rundir.write_json(path, free)  # by the clock it cost nothing: there is nothing to scale
    claims_of.apply_billing(claims.list_all())
    assert rundir.read_json(path) == free
    strange = {"run_id": "a-1", "cost": {"usd": 1.0, "pods": ["p1", "of another checkout"]}}
    rundir.write_json(path, strange)
    claims_of.apply_billing(claims.list_all())
    assert rundir.read_json(path) == strange


def test_a_later_bill_is_laid_over_what_the_clock_said(tmp_path):
    claims = Claims(tmp_path / "pods", "cafe01")
    claim = claims.open_claim("h", ["a-1"], 0, output=str(tmp_path), pod_id="p1", asked_at=0, usd_per_hour=2.0,
                        released_at=3600, billed_usd=3.0)  # fmt: skip
    path = tmp_path / "adapters/a/a-1/manifest.json"
    path.parent.mkdir(parents=True)
    rundir.write_json(path, {"cost": {"usd": 1.0, "pods": ["p1"]}})
    claims_of.apply_billing(claims.list_all())
    claims.update(claim, billed_usd=4.00004)
    claims_of.apply_billing(claims.list_all())
    assert rundir.read_json(path)["cost"] == {
        "usd": 2.0, "usd_by_clock": 1.0, "pods": ["p1"], "source": "RunPod's bill",
    }  # fmt: skip


def test_every_row_of_what_burns():
    claim = pod_claim(name="lora-forge-cafe01-pod-1-0c1d2e", host="pod-1", asked_at=1000.0, deadline=1_764_000_000.0,
                      runs=[], output="", wanted_at=0)  # fmt: skip
    unleashed = dataclasses.replace(claim, name="lora-forge-cafe01-pod-2-0c1d2e", host="pod-2", deadline=None)
    pods = [
        {"name": "b", "id": "2", "status": "RUNNING", "createdAt": "1970-01-01T01:00:00Z", "cost": "0.5", "gpu": None},
        {"name": "a", "id": "1", "status": "EXITED", "createdAt": "1970-01-01T00:30:00+00:00", "gpu": {"id": "L4"},
         "cost": 2, "deadline": 99.0},
        {"name": claim.name, "id": "3", "status": "RUNNING", "cost": 1.23456},
        {"name": unleashed.name, "id": "4", "status": "RUNNING", "createdAt": "no time"},
        {"name": "c", "id": "5", "status": "RUNNING", "cost": None, "createdAt": None},
    ]  # fmt: skip
    rows = claims_of.list_account_pods(pods, [claim, unleashed], "cafe01", 4600.0)
    plain = {"host": "", "mine": False, "claimed": [], "deadline": None, "gpu": "CPU", "status": "RUNNING"}
    assert rows == [
        {**plain, "name": claim.name, "id": "3", "host": "pod-1", "usd_per_hour": 1.23456, "age_h": 1.0,
         "usd": 1.2346, "mine": True, "deadline": claim.deadline,
         "retention_notice": claims_of.retention_notice(claim)},
        {**plain, "name": "c", "id": "5", "usd_per_hour": 0.0, "age_h": 0.0, "usd": 0.0,
         "retention_notice": "RunPod names no price for it."},
        {**plain, "name": "a", "id": "1", "status": "EXITED", "gpu": "L4", "usd_per_hour": 2.0, "age_h": 0.778,
         "usd": 1.5556, "deadline": 99.0, "retention_notice": "It costs 2.00 USD/h."},
        {**plain, "name": "b", "id": "2", "usd_per_hour": 0.5, "age_h": 0.278, "usd": 0.1389,
         "retention_notice": "It costs 0.50 USD/h."},
        {**plain, "name": unleashed.name, "id": "4", "host": "pod-2", "usd_per_hour": 2.0, "age_h": 1.0, "usd": 2.0,
         "mine": True, "retention_notice": "It costs 2.00 USD/h."},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1970-01-01T01:00:00Z", 3600.0), ("1970-01-01T01:00:00.5+01:00", 0.5), (None, None), ("soon", None), ("", None)],
)
def test_a_time_of_runpods(text, seconds):
    assert claims_of.parse_time(text) == seconds


# --- money, closer -------------------------------------------------------------------------------------------------


def test_the_nearest_gpu_is_named_as_runpod_writes_it():
    with pytest.raises(UserError) as caught:
        costs.gpu_id("nvidia l40x", [*ALL, A40])
    assert str(caught.value) == (
        "pod_gpus: RunPod has no GPU «nvidia l40x»; did you mean «NVIDIA L40S»? There are: NVIDIA A100, NVIDIA A40, "
        "NVIDIA L4, NVIDIA L40S"
    )


def test_an_offer_says_everything_that_is_known():
    entry = gpu("L40S", 0.86) | {"memory": 48.0, "availability": None}
    assert costs.find_offers({"SECURE": [A40, entry]}, ["L40S"], 1, 5) == [
        costs.Offer("NVIDIA L40S", "SECURE", 0.86, "NONE", 48, "")
    ]


def test_among_gpus_that_may_be_too_small_all_are_offered_and_only_where_none_is_large_enough():
    small = costs.find_offers(SECURE, ["L4", "L40S"], 1, 5, 60)
    assert [(offer.gpu, bool(offer.warning)) for offer in small] == [("NVIDIA L4", True), ("NVIDIA L40S", True)]
    assert [offer.gpu for offer in costs.find_offers(SECURE, ["L4", "L40S"], 1, 5, 48)] == ["NVIDIA L40S"]


def test_why_nothing_will_do_without_a_cap_and_without_an_offer():
    with pytest.raises(UserError) as caught:
        costs.find_offers({"SECURE": [gpu("B200")], "COMMUNITY": [gpu("B200")]}, ["B200"], 1, float("inf"))
    assert str(caught.value) == "no GPU of pod_gpus will do: none is offered in SECURE or COMMUNITY."


def test_a_gpu_that_one_cloud_does_not_know_is_offered_by_the_other():
    assert order(costs.find_offers({"SECURE": [L4], "COMMUNITY": [L40S, L4]}, ["L40S"], 1, 5)) == [("L40S", "C", 0.79)]


def test_each_reason_is_told_with_its_cloud():
    with pytest.raises(UserError) as caught:
        costs.find_offers(BOTH, ["L40S", "L4"], 5, 2.0, floor_gib=25)
    assert str(caught.value) == (
        "no GPU of pod_gpus will do within pod_max_usd_per_hour 2.00: NVIDIA L40S (SECURE): 4.30 USD/h; NVIDIA L40S "
        "(COMMUNITY): at most 4 in a pod; NVIDIA L4: 24 GB, but the weights alone take 25 GiB. The cheapest of them is "
        "NVIDIA L4 at 2.15 USD/h."
    )


def test_hours_of_a_known_run_to_the_second():
    assert costs.training_hours(run(), "nvidia l40s") == costs.training_hours(run(), "NVIDIA L40S") == 1.957
    assert costs.training_hours({**run(), "gpus": 2}, "NVIDIA L40S") == 1.103
    unsaid = run()
    del unsaid["recipe"]["gradient_checkpointing"]
    assert pure(costs.training_hours(unsaid, "NVIDIA L40S")) == pytest.approx(1.707 * 4 / 6, abs=2e-3)


def test_a_leash_counts_the_dollars_at_a_price_that_may_be_a_little_higher():
    assert costs.allowed_hours(None, 2.0, 24, 10.0, 5.8) == pytest.approx(2.0)
    assert costs.allowed_hours(1.5, 2.0, 3.9, 0, 0) == 3.9


def test_answers_to_cases_count_until_they_are_being_given():
    budget = budget_of(answering=600.0)
    assert budget.with_answers(60.0, ended=False) == 660
    assert budget.with_answers(0.0, ended=True) == 0
    assert budget.with_answers(None, ended=False) is None
    assert costs.Budget.from_dict(budget.as_dict()) == budget


def test_what_is_renewed_leaves_slack_for_the_collection():
    budget = budget_of(max_usd=0, max_hours=24.0)
    assert costs.renewed_deadline(budget, 0, 1.5 * H) is None  # half an hour is left beside the training
    assert costs.renewed_deadline(budget, 0, 1.5 * H + 1) == 2 * (1.5 * H + 1) + H
    assert (
        costs.renewed_deadline(dataclasses.replace(budget, max_hours=2.0 + 1 / 60), 0, 1.9 * H) is None
    )  # a minute more is not worth it
    assert costs.renewed_deadline(dataclasses.replace(budget, max_hours=2.0 + 1.02 / 60), 0, 1.9 * H) == 7261


def test_a_run_without_a_lane_is_on_the_first_one():
    alone = costs.training_hours(run(), "NVIDIA L40S")
    first = {**run(), "lane": 0}
    for runs in ([run(), run()], [run(), first], [first, run()]):
        assert costs.pod_hours(runs, "NVIDIA L40S") == pytest.approx(2 * alone)
    assert costs.pod_hours([run(), {**run(), "lane": 1}], "NVIDIA L40S") == alone


@pytest.mark.parametrize(("now", "eta"), [(4 * H, None), (0.0, 4 * H), (2 * H, 2 * H)])
def test_a_second_beyond_the_hours_is_too_long(now, eta):
    budget = budget_of(max_usd=0)
    assert costs.budget_breach(budget, now, eta) == ""
    late = costs.budget_breach(budget, now + 1, None) if eta is None else costs.budget_breach(budget, now, eta + 1)
    assert late.endswith(" 4.00 h, and pod_max_hours is 4.00")


def test_what_nobody_said_it_cost_is_nothing():
    assert costs.usd_spent(budget_of()).usd == 0


def test_as_many_gpus_as_a_pod_may_have_are_offered():
    assert order(costs.find_offers({"COMMUNITY": [L40S]}, ["L40S"], 4, 9)) == [("L40S", "C", 3.16)]


def test_a_price_is_told_to_a_hundredth_of_a_cent():
    assert costs.find_offers({"SECURE": [gpu("A40", 0.123456)]}, ["A40"], 1, 5)[0].usd_per_hour == 0.1235


def test_the_stock_is_that_of_the_fullest_data_center():
    places = [
        {"id": "a", "availability": "LOW"},
        {"id": "b", "availability": "MEDIUM"},
        {"id": "c", "availability": "HIGH"},
    ]
    assert costs.stock_level({"dataCenters": places}, ["a", "b"]) == "MEDIUM"
    assert costs.stock_level({"dataCenters": places}, ["a", "b", "c"]) == "HIGH"
    assert costs.stock_level({"dataCenters": None}, ["a"]) == "NONE"


def test_where_more_was_spent_than_allowed_nothing_is_renewed():
    assert costs.renewed_deadline(budget_of(spent=9.0, deadline=600), 0, H) is None


def test_a_claim_is_the_first_attempt_unless_it_is_said_otherwise(tmp_path):
    assert Claims(tmp_path, "cafe01").open_claim("pod-1", [], 0).attempt == 1


def test_a_pod_that_was_forgotten_is_as_old_as_it_is():
    born = {"name": "x", "id": "1", "status": "RUNNING", "createdAt": "1970-01-01T01:00:00Z", "cost": 1.0}
    [row] = claims_of.list_account_pods([born], [], "cafe01", 101 * H)
    assert (row["age_h"], row["usd"]) == (100.0, 100.0)


def test_a_pod_whose_folder_of_runs_is_gone_is_kept_until_its_leash_ends_it(tmp_path):
    """A checkout that was moved keeps its owner's id, and what its claims say of the output is the old path."""
    known = {"output": str(tmp_path / "moved/output"), "pod_id": "p", "deadline": 90000.0}
    claim = Claim("n", "o", "pod-1", ["b-1", "a-1"], asked_at=1.0, **known)
    assert claims_of.active_runs(claim, 80000.0) == ["a-1", "b-1"]
    assert claims_of.active_runs(claim, 90000.0) == []


def test_a_clock_that_was_set_back_does_not_make_a_pod_that_boots_unwanted(rig):
    rig.go()
    rig.manager.clock.now = lambda: rig.clock.now() - 7200
    progress = rig.manager.advance(rig.wanted, 0)
    assert claims_of.active_runs(progress.claim, rig.clock.now() - 7200) == ["witness-1"]
