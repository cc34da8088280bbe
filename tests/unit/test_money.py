"""What may be ordered, for how long, when a training has become too dear, and what pods have cost."""

from __future__ import annotations

from typing import Any

import pytest
import rundir
from ansible.module_utils.lora_forge import claims as claims_of
from ansible.module_utils.lora_forge import money
from ansible.module_utils.lora_forge.claims import Claims
from ansible.module_utils.lora_forge.errors import ForgeError
from wire import Rig, gpu

L40S, A40, A100, L4 = (
    gpu("L40S", 0.86, 0.79), gpu("A40", 0.44), gpu("A100", 1.64, 1.19, memory=80), gpu("L4", 0.43, memory=24),
)  # fmt: skip
ALL = [L40S, A40, A100, L4]
BOTH = {"SECURE": ALL, "COMMUNITY": ALL}
SECURE = {"SECURE": ALL}


def order(found: list[money.Offer]) -> list[tuple[str, str, float]]:
    return [(offer.gpu.removeprefix("NVIDIA "), offer.cloud[0], offer.usd_per_hour) for offer in found]


# --- offers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NVIDIA L40S", "nvidia l40s", "L40S", "l40s"])
def test_a_gpu_is_known_by_its_id_and_by_its_name(name):
    assert money.known(name, ALL) == "NVIDIA L40S"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("L40SS", "; did you mean «NVIDIA L40S»? There are:"),
        ("NVIDIA A10", "; did you mean «NVIDIA A10"),
        ("xyz", ". There are: NVIDIA A100, NVIDIA A40, NVIDIA L4, NVIDIA L40S"),
    ],
)
def test_an_unknown_gpu_is_an_error_that_names_the_nearest(name, words):
    with pytest.raises(ForgeError) as caught:
        money.offers(SECURE, [name], 1, 9)
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
    found = money.offers(catalogues, gpus, given["count"], given["cap"], given["memory"], floor_gib=floor)
    assert order(found) == expected


def test_what_is_out_of_stock_comes_last_and_is_asked_for_all_the_same():
    none, unsaid = L40S | {"availability": "NONE"}, {k: v for k, v in A40.items() if k != "availability"}
    found = money.offers({"SECURE": [none, unsaid, A100]}, ["L40S", "A40", "A100"], 1, 5)
    assert [(offer.gpu, offer.stock) for offer in found] == [
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
    ],
)
def test_the_stock_is_that_of_the_data_centers_which_will_do(levels, centers, stock):
    places = {"dataCenters": [{"id": one, "availability": level} for one, level in levels.items()]} if levels else {}
    entry = {k: v for k, v in L40S.items() if k != "dataCenters"} | {"availability": "MEDIUM"} | places
    assert money.offers({"SECURE": [entry]}, ["L40S"], 1, 5, 0, centers)[0].stock == stock


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
    with pytest.raises(ForgeError) as caught:
        money.offers(catalogue, gpus, given["count"], given["cap"], floor_gib=given["floor"])
    assert str(caught.value) == f"no GPU of pod_gpus will do within pod_max_usd_per_hour {why}"


def test_a_cap_is_met_to_the_cent():
    assert order(money.offers({"SECURE": [gpu("A40", 1.1)]}, ["A40"], 3, 3.3)) == [("A40", "S", 3.3)]


def test_too_little_memory_is_said_once():
    with pytest.raises(ForgeError) as caught:
        money.offers(BOTH, ["L40S"], 1, 5, floor_gib=60)
    assert str(caught.value).count("L40S: 48 GB") == 1


def test_a_gpu_that_may_be_too_small_is_named_with_its_doubt():
    (offer,) = money.offers(SECURE, ["L4"], 1, 5, 30)
    assert offer.doubt == "24 GB may be too little: 30 GiB is the estimate"
    assert [offer.doubt for offer in money.offers(SECURE, ["L4", "A100"], 1, 5, 30)] == [""]


# --- estimates -----------------------------------------------------------------------------------------------------


def run(**changes: Any) -> dict[str, Any]:
    recipe = {"base_model": "Qwen/Qwen2.5-7B-Instruct", "micro_batch_size": 2, "gradient_accumulation_steps": 4,
              "sequence_len": 4096, "gradient_checkpointing": True, **changes}  # fmt: skip
    batch = recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"]
    return {"rehearsal": False, "recipe": recipe, "estimate": {"work": 400 * batch * recipe["sequence_len"]}}


def pure(found: float | None) -> float:
    assert found is not None
    return found - money.OVERHEAD


def test_hours_follow_from_steps_tokens_and_weights():
    # 7.62 B weights, of which the embedding (0.545 B) is looked up and not multiplied
    flops = 400 * 8 * 4096 * 6 * (7.6156e9 - 152064 * 3584)
    assert pure(money.hours(run(), "NVIDIA L40S")) == pytest.approx(flops / (362e12 * 0.25) / 3600, rel=2e-3)


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"gradient_checkpointing": False}, 4 / 6), ({"sequence_len": 2048}, 0.5), ({"micro_batch_size": 4}, 2),
        ({"base_model": "/models/qwen2.5-7b"}, 1), ({"base_model": "Qwen/Qwen2.5-7B-Instruct/"}, 1),
    ],
)  # fmt: skip
def test_hours_go_by_the_recipe(changes, times):
    assert pure(money.hours(run(**changes), "NVIDIA A40")) == pytest.approx(
        times * pure(money.hours(run(), "NVIDIA A40")), rel=1e-3
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
    assert pure(money.hours(run(), gpu_id)) == pytest.approx(
        pure(money.hours(run(), "NVIDIA L40S")) * 362 / tflops, rel=2e-2
    )


def test_gpus_share_a_run_and_lanes_a_pod():
    alone = money.hours(run(), "NVIDIA L40S")
    assert pure(money.hours({**run(), "gpus": 4}, "NVIDIA L40S")) == pytest.approx(pure(alone) / 4, rel=1e-2)
    three = [{**run(), "lane": lane} for lane in (0, 0, 1)]
    assert money.pod_hours(three, "NVIDIA L40S") == pytest.approx(2 * alone)
    assert money.pod_hours([*three, run(base_model="Acme/Other-7B")], "NVIDIA L40S") is None
    assert money.pod_hours([], "NVIDIA L40S") is None


def test_a_gpu_is_not_taken_for_one_whose_name_begins_alike():
    assert money.hours(run(), "NVIDIA RTX A4000") != money.hours(run(), "NVIDIA A40")


def test_what_is_not_known_is_not_estimated_and_a_rehearsal_is_short():
    assert money.hours(run(base_model="Acme/Other-7B"), "NVIDIA L40S") is None
    assert money.hours(run(), "AMD Instinct MI300X OAM") is None
    assert money.hours({"rehearsal": True}, "anything") == money.REHEARSAL


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
    found = money.allowance(estimate, 1.0, max_hours, max_usd, spent)  # the dollars hold for 1.05 times the price too
    assert found == pytest.approx(hours)


# --- while it trains -----------------------------------------------------------------------------------------------

BUDGET = {"usd_per_hour": 2.0, "spent": 1.0, "since": 0.0, "max_usd": 7.0, "max_hours": 4.0, "deadline": 7200,
          "pod": "a1", "pods": ["a0", "a1"]}  # fmt: skip
H = 3600.0


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
    ],
)  # fmt: skip
def test_a_training_that_would_cost_too_much_is_told_in_words_and_one_that_just_fits_goes_on(changes, now, eta, words):
    assert money.breach({**BUDGET, **changes}, now, eta) == words


@pytest.mark.parametrize(
    ("changes", "now", "eta", "deadline"),
    [
        ({}, 0, None, None),
        ({}, 0, 0.5 * H, None),  # fits as it is, with half an hour to spare
        ({}, 0, 1.5 * H, None), ({}, 0, 1.5 * H + 1, 3 * H),  # 4 h and a bit are wanted, 3 h are left of the dollars
        ({"max_usd": 0}, 0, 1.6 * H, 4 * H),  # 4.2 h are wanted
        ({"max_usd": 0, "max_hours": 24}, 0, 1.6 * H, 4.2 * H),
        ({"max_usd": 0, "max_hours": 24}, 1 * H, 0.6 * H, 3.2 * H),
        ({"spent": 3.0}, 0, 3 * H, None),  # 2 h, that is the deadline it has
        ({"spent": 3.0, "deadline": 2 * H - 60}, 0, 3 * H, None), ({"spent": 3.0, "deadline": 7139}, 0, 3 * H, 2 * H),
        ({"spent": 9.0}, 0, 3 * H, None),
    ],
)  # fmt: skip
def test_a_leash_is_renewed_where_the_pace_asks_for_it_and_only_within_the_caps(changes, now, eta, deadline):
    assert money.renewal({**BUDGET, **changes}, now, eta) == deadline


def test_what_a_run_cost_is_its_share_of_the_pods():
    assert money.spent({}) == {"usd": 0.0, "usd_per_hour": 0.0, "source": "own hardware"}
    cost = {"usd_per_hour": 2.0, "source": "RunPod's price × time", "pods": ["a0", "a1"]}
    assert money.spent(BUDGET, 0.50001) == {"usd": 0.5, **cost}


@pytest.mark.parametrize(("hours", "words"), [(0, "0:00 h"), (2.4, "2:24 h"), (0.999, "1:00 h"), (30.25, "30:15 h")])
def test_hours_as_people_read_them(hours, words):
    assert money.clock(hours) == words


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
    assert claims_of.cost(Claims(tmp_path).make("h", [], 0, **known), 5400) == usd


def test_what_runs_have_cost_is_the_sum_over_their_pods(tmp_path):
    claims = Claims(tmp_path)
    for runs, rate, known in ((["a"], 1, {"released_at": 3600}), (["a", "b"], 2, {}), (["c"], 4, {"billed_usd": 9})):
        last = claims.make("h", runs, rate, pod_id="x", asked_at=0, usd_per_hour=rate, **known)
    assert [claims.spent(runs, 7200) for runs in (["a"], ["b"], ["a", "b"], ["c"], ["d"], [])] == [5, 4, 5, 9, 0, 0]
    assert claims.spent(["c"], 7200, but=last["name"]) == 0


def test_of_what_shared_pods_have_cost_nothing_is_counted_twice(tmp_path):
    claims = Claims(tmp_path / "pods")
    for pod, runs, usd in (("p1", ["a-1", "b-1"], 1), ("p2", ["b-1", "c-1"], 2), ("p3", ["d-1", "e-1"], 4),
                           (None, ["f-1"], 9)):  # fmt: skip
        claims.make("h", runs, 0, pod_id=pod, asked_at=0, usd_per_hour=usd)

    def left():
        return {"+".join(sorted(runs)): usd for runs, usd in claims_of.unaccounted(claims.all(), tmp_path, H)}

    def deliver(run_id, **cost):
        folder = tmp_path / run_id[0] / run_id
        folder.mkdir(parents=True)
        rundir.write_json(folder / "manifest.json", {"run_id": run_id, "cost": cost})

    assert left() == {"a-1+b-1+c-1": 3.0, "d-1+e-1": 4.0, "f-1": 0.0}
    shares = {"a-1": 1.0, "b-1": 1.0, "c-1": 1.0, "d-1": 2.0, "e-1": 2.0, "f-1": 0.0}
    assert claims_of.shares(claims.all(), tmp_path, H) == shares
    deliver("b-1", usd=2.5, pods=["p1", "p2"])
    deliver("d-1", usd=5.0, pods=["p3"])  # as it was billed: more than by the clock
    deliver("g-1", usd="1", pods=["p1"])  # damaged
    assert left() == {"a-1+b-1+c-1": 0.5, "d-1+e-1": 0.0, "f-1": 0.0}
    assert claims_of.shares(claims.all(), tmp_path, H) == {"a-1": 0.25, "c-1": 0.25, "e-1": 0.0, "f-1": 0.0}


def test_manifests_are_corrected_once_all_their_pods_are_billed(tmp_path):
    claims = Claims(tmp_path / "pods")
    for pod, billed in (("p1", 1.0), ("p2", 3.0), ("p3", None)):
        known = {"pod_id": pod, "asked_at": 0, "usd_per_hour": 2.0, "released_at": 3600, "billed_usd": billed}
        claims.make("h", ["r"], 0, output=str(tmp_path), **known)
    costs = {
        "a-1": {"usd": 2.0, "pods": ["p1"]}, "b-1": {"usd": 3.0, "pods": ["p1", "p2"]},
        "c-1": {"usd": 9.0, "pods": ["p2", "p3"]}, "d-1": {"usd": 0.0},
    }  # fmt: skip
    paths = {run_id: tmp_path / f"adapters/{run_id[0]}/{run_id}/manifest.json" for run_id in costs}
    for run_id, path in paths.items():
        path.parent.mkdir(parents=True)
        rundir.write_json(path, {"run_id": run_id, "cost": {**costs[run_id], "source": "RunPod's price × time"}})
    for _ in range(2):  # the second time changes nothing
        claims_of.correct(claims.all())
        found = {run_id: rundir.read_json(path)["cost"] for run_id, path in paths.items()}
        assert {one: cost["usd"] for one, cost in found.items()} == {"a-1": 1.0, "b-1": 3.0, "c-1": 9.0, "d-1": 0.0}
        assert [cost["source"] == "RunPod's bill" for cost in found.values()] == [True, True, False, False]


def test_every_pod_of_the_account_is_told_and_whose_it_is(tmp_path):
    rig = Rig(tmp_path)
    mine = rig.ready()["claim"]
    rig.clock.time = mine["asked_at"] + 3590
    orphan = rig.cloud.add(f"lora-forge-{rig.claims.owner}-pod-9-0c1d2e")
    others = [rig.cloud.add("lora-forge-deadbeef-pod-1-0c1d2e"), rig.cloud.add("my-pod", status="EXITED")]
    rows = claims_of.burning(rig.pods.api.pods(), rig.claims.all(), rig.claims.owner, rig.clock.now())
    table = [[row[key] for key in ("name", "host", "mine", "claimed", "usd_per_hour", "usd", "status")] for row in rows]
    assert table == [
        [mine["name"], "pod-1", True, ["witness-1"], 0.86, 0.8576, "RUNNING"],
        [orphan["name"], "pod-9", True, [], 0.86, 0.0, "PROVISIONING"],
        [others[0]["name"], "pod-1", False, [], 0.86, 0.0, "PROVISIONING"],
        ["my-pod", "", False, [], 0.0, 0.0, "EXITED"],
    ]
    assert (rows[0]["deadline"], rows[1]["deadline"]) == (mine["deadline"], None)
    assert "-e pod=pod-1" in rows[0]["keeps"]
    assert rows[1]["keeps"] == "It costs 0.86 USD/h."


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
    claim = Claims(tmp_path / "pods").make("h", ["a-1"], 1.0, asked_at=1.0, output=str(tmp_path))
    (tmp_path / "runs").mkdir()
    if placed:
        rundir.write_json(tmp_path / "runs/a-1.json", {"run_id": "a-1", "state": placed, "noted_at": noted_at})
    if delivered:
        (tmp_path / "adapters/a/a-1").mkdir(parents=True)
        rundir.write_json(tmp_path / "adapters/a/a-1/manifest.json", {})
    assert claims_of.live(claim, age) == (["a-1"] if live else [])
    assert claims_of.live({**claim, "released_at": 1.0}, age) == []
