"""All runs at a glance: what a table says of placements, adapters and trainers."""

from __future__ import annotations

import json
import time

import pytest
import rundir
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.planning.run_record import update_record
from ansible.module_utils.lora_forge.pods import claims
from ansible.module_utils.lora_forge.results import report, status, wandb_query
from ansible.module_utils.lora_forge.trainer import gpu, run_state
from delivered import answers, cases, evaluate
from lab import ROOT
from wire import load

RUN = "witness-0123456789ab"
CARD = {"index": 0, "uuid": "GPU-1", "name": "A100", "memory_mib": 81920, "used_mib": 41984, "use": 97}


def seen(state="running", run_id=RUN, **more):
    done = {
        **run_state.Progress().as_dict(),
        "step": 412,
        "planned": 1216,
        "loss": 0.8123,
        "eval_loss": 0.894,
        "measured": 9,
    }
    return {
        "run_id": run_id,
        "agent": run_id.partition("-")[0],
        "state": state,
        "detail": "",
        "alive": state in run_state.LIVING,
        "progress": {**done, "tokens_per_second": 9812.0, "last_event_at": 50.0},
        "status": {"exit_code": None, "first_started_at": 10.0},
        "silent_for": 1.0,
        "facts": {"run_id": run_id, "agent": "witness", "fingerprint": None, "rehearsal": False},
        "checkpoint": {"step": 290, "files": []},
        "eta_seconds": 3720.0,
        "gpu": CARD,
        "gpu_busy": 97,
        **more,
    }


def deliver(output, run_id=RUN, latest=False, **manifest):
    folder = output / "adapters" / run_id.partition("-")[0] / run_id
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"12345")
    files = [{"path": "a.bin", "bytes": 5, "sha256": store.sha256_file(folder / "a.bin")}]
    known = {
        "run_id": run_id, "agent": run_id.partition("-")[0], "verdict": "verified", "rehearsal": False, "files": files,
        "steps": {"reached": 12, "planned": 12}, "loss": {"last": 0.5, "eval_last": 0.6}, "started_at": 1.0,
        "cost": {"usd": 1.5}, "host": {"name": "gpu-9"},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(known | manifest))
    if latest:
        (folder.parent / "latest").symlink_to(run_id)
    return folder


def place(output, run_id=RUN, **what):
    (output / "runs").mkdir(parents=True, exist_ok=True)
    rundir.write_json(output / "runs" / f"{run_id}.json", {"run_id": run_id, "final": False, **what})


def gathered(output, snapshots=None, **known):
    return status.collect_status(output, snapshots or {}, known.get("wandb", {}), known.get("costs"))


def test_what_failed_before_it_was_launched_is_no_run(tmp_path):
    update_record(tmp_path, RUN, lambda record, now: record.failed_on("gpu-1", "no GPU", now))
    assert gathered(tmp_path, {"gpu-1": {"runs": []}}) == []


def test_a_running_run(tmp_path):
    (row,) = gathered(tmp_path, {"gpu-1": {"runs": [seen()]}})
    assert (row["verdict"], row["trainer"], row["step"], row["planned"]) == ("running", "gpu-1", 412, 1216)
    assert status.table_rows([row], {}) == [
        ["witness", RUN, "gpu-1", "running", "412/1216", "0.812", "0.894", "–", "9.8 k", "97% 41 GB", "1:02:00", "–"]
    ]
    assert status.status_lines([row], {}, []) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"nodes": "c[1-2]"}, "running on c1 and c2"),
        ({"nodes": "c1", "state": "stalled", "detail": "no step for 1900 s"}, "stalled on c1: no step for 1900 s"),
        ({"nodes": "", "state": "queued", "detail": "Priority (job 7)"}, "Priority (job 7)"),
    ],
)
def test_where_a_run_of_a_cluster_is(tmp_path, more, words):
    """The table stays as wide as it is: names of nodes may be long."""
    (row,) = gathered(tmp_path, {"login": {"runs": [seen(gpu=None, gpu_busy=None, **more)]}})
    assert row["nodes"] == more["nodes"]
    assert status.table_rows([row], {})[0][3] == row["verdict"] == more.get("state", "running")
    assert status.status_lines([row], {}, [])[0] == f"    {RUN}: {words}"


def test_what_is_delivered_and_what_is_only_placed(tmp_path):
    deliver(tmp_path, latest=True)
    place(tmp_path, trainer="gpu-9", state="finished", final=True)
    place(tmp_path, "mayor-0123456789ab", trainer="gpu-2", state="launched")
    rows = gathered(tmp_path, {"gpu-1": {"runs": []}, "gpu-2": {"silent": "timed out"}})
    assert [(row["agent"], row["verdict"], row["promoted"]) for row in rows] == [
        ("mayor", "unknown", False),
        ("witness", "verified", True),
    ]
    table = status.table_rows(rows, {"gpu-2": "timed out"})
    assert table[1] == [
        "witness",
        f"{RUN} *",
        "gpu-9",
        "verified",
        "12/12",
        "0.500",
        "0.600",
        "–",
        "–",
        "–",
        "–",
        "$1.50",
    ]
    assert status.status_lines(rows, {"gpu-2": "timed out"}, ["W&B is down"]) == [
        "    mayor-0123456789ab: gpu-2 does not answer: timed out; the last that is known: launched",
        "    * promoted: output/adapters/<agent>/latest",
        "    W&B is down",
    ]


def test_a_run_that_answers_its_cases_says_how_far_it_is(tmp_path):
    run = seen(eta_seconds=0.0)
    run["progress"] |= {"step": 1216, "ended": True, "answered": 12, "asked": 40}
    (row,) = gathered(tmp_path, {"gpu-1": {"runs": [run]}})
    assert (row["verdict"], row["answered"], row["asked"], row["eta_seconds"]) == ("running", 12, 40, None)
    assert status.status_lines([row], {}, []) == [f"    {RUN}: answering: 12 of 40 questions"]
    run["state"] = "finished"
    (row,) = gathered(tmp_path, {"gpu-1": {"runs": [run]}})
    assert (row["detail"], row["answered"], row["asked"]) == ("", None, None)


def test_the_score_stands_beside_the_loss(tmp_path):
    folder = deliver(tmp_path, latest=True)
    asked = cases(9)
    evaluate(folder, asked, answers(asked, "yyyyyyyn-"), answers(asked, "n"))
    (row,) = gathered(tmp_path)
    (cells,) = status.table_rows([row], {})
    assert dict(zip(status.COLUMNS, cells))["score"] == "7/8"
    assert (row["score"]["right"], row["score"]["cases"], row["score"]["unanswered"]) == (7, 8, 1)
    assert row["score"]["low"] < row["score"]["share"] == 0.875 < row["score"]["high"]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["merit"]["weights_sha256"] = "f" * 64  # of others than those that lie there
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert gathered(tmp_path)[0]["score"] is None


def test_runs_that_share_a_pod_share_its_cost(tmp_path):
    """The module, from claims on disk to the column of the table and the sum in the report."""
    pods, names = claims.Claims(tmp_path / "pods"), [f"witness-00000000000{letter}" for letter in "abc"]
    pods.open_claim("pod-1", names, 0, pod_id="p1", asked_at=0, usd_per_hour=3.0, released_at=3600.0)
    deliver(tmp_path, names[0], latest=True, cost={"usd": 1.0, "pods": ["p1"]})
    snapshots = {"pod-1": {"runs": [seen("finished", names[0]), seen("running", names[1]), seen("queued", names[2])]}}
    given = {
        "output": tmp_path,
        "snapshots": snapshots,
        "wandb": True,
        "agents": None,
        "checkout": ROOT,
        "busy": [],
        "outside": [],
        "pods": tmp_path / "pods",
    }
    told = load("library/training_status").answer({**given, "display": "table"}, False)
    assert [row[-1] for row in told["show"]["rows"]] == ["$1.00", "$1.00", "$1.00"]
    assert told["costs"] == {names[1]: 1.0, names[2]: 1.0}
    total = report.read(tmp_path, [], ["witness"])["costs"]["total"]
    assert (total["usd"], total["others_usd"]) == (1.0, 2.0)


def test_a_silent_trainer_without_a_run_is_a_row_too(tmp_path):
    assert status.table_rows([], {"gpu-3": "refused"})[0][:4] == ["–", "–", "gpu-3", "unknown"]
    assert status.status_lines([], {"gpu-3": "refused"}, []) == ["    gpu-3 does not answer: refused"]


def test_an_adapter_that_was_changed_is_disputed(tmp_path):
    (deliver(tmp_path) / "a.bin").write_bytes(b"1234")
    (row,) = gathered(tmp_path)
    assert (row["verdict"], row["state"]) == ("disputed", "finished")
    lines = status.status_lines([row], {}, [])
    assert "has 4 bytes instead of 5" in lines[0]
    assert lines[1] == "      → train.yml -e role=witness -e verify=true"


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"loss": "nan"}, "its loss is nan at step 412; it goes on, and would end as failed"),
        ({"eval_loss": "inf"}, "its eval loss is inf; it goes on, and latest moves to no adapter of such a loss"),
    ],
)
def test_a_loss_that_is_no_number_is_told_while_the_run_goes_on(tmp_path, losses, words):
    run = seen()
    run["progress"] |= losses
    (row,) = gathered(tmp_path, {"gpu-1": {"runs": [run]}})
    assert row["verdict"] == "running"
    assert status.status_lines([row], {}, []) == [f"    {RUN}: {words}"]
    run["state"] = "stopped"
    assert status.status_lines(gathered(tmp_path, {"gpu-1": {"runs": [run]}}), {}, [])[0].endswith(
        "resumes at step 290"
    )


def test_wandb_contradicts_in_words(tmp_path):
    snapshots = {"pod-2": {"runs": [seen("failed", silent_for=840.0, detail="killed: ended by SIGKILL")]}}
    (row,) = gathered(tmp_path, snapshots, wandb={RUN: {"asked": RUN, "state": "running", "url": "http://w/x"}})
    assert (row["verdict"], row["state"], row["wandb"]["url"]) == ("disputed", "failed", "http://w/x")
    assert status.status_lines([row], {}, []) == [
        f"    {RUN}: killed: ended by SIGKILL",
        f"    {RUN}: W&B says running, but the process ended 14:00 ago",
        "      → playbooks/logs.yml -e role=witness, then train.yml again: resumes at step 290; "
        "playbooks/logs.yml -e role=witness -e bundle=true makes a file for whoever helps",
    ]


def test_wandb_is_asked_of_what_is_logged_there_and_not_delivered(tmp_path, monkeypatch):
    def logged(run_id, mode="online", project="p", url=None):
        found = seen(run_id=run_id)
        found["progress"]["wandb"] = {"mode": mode, "run": f"e/{project}/{run_id}", "url": url}
        return found

    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    asked = []

    def ask(names, entity, project, timeout):
        asked.append((names, entity, project))
        runs_ = [{"asked": name, "state": "running", "error": None} for name in names]
        return {"runs": runs_, "error": {"kind": "timeout", "msg": "W&B: late"} if project == "q" else None}

    monkeypatch.setattr(wandb_query, "ask_server", ask)
    deliver(tmp_path, "witness-00000000000d")
    names = [f"witness-00000000000{letter}" for letter in "abcd"]
    own = "https://wandb.ai/e/p/runs/x"
    snapshots = {
        "gpu-1": {"runs": [logged(names[0], url=own), logged(names[1], "offline"), logged(names[3])]},
        "gpu-2": {"runs": [logged(names[0]), logged(names[2], project="q"), seen(run_id="mayor-1")]},
        "gpu-3": {"silent": "away"},
    }
    away = "witness-00000000000f"
    before = [{"run_id": away, "trainer": "gpu-3", "logged": logged(away)["progress"]["wandb"]},
              {"run_id": "crew-1", "trainer": "gpu-3", "logged": {"mode": "online", "run": None}},
              {"run_id": "crew-2", "trainer": "gpu-4", "logged": logged("crew-2")["progress"]["wandb"]}]  # fmt: skip
    rundir.write_json(tmp_path / "status.json", {"runs": before})
    answers, notes = status.ask_wandb(tmp_path, snapshots)
    assert asked == [([names[0], away], "e", "p"), ([names[2]], "e", "q")]
    assert (answers[names[0]]["error"], answers[names[2]]["error"]["kind"]) == (None, "timeout")
    assert notes == ["W&B: late"]

    # A run's own server is asked with the key that is for it, and with no other one.
    snapshots = {
        "gpu-1": {"runs": [logged(names[0], url="http://w.example:8080/e/p/runs/x"), logged(names[1], url=own)]}
    }
    asked.clear()
    assert status.ask_wandb(tmp_path, snapshots)[1] == [
        f"W&B: {names[0]} is logged on w.example:8080, which is not asked: WANDB_BASE_URL and the key are for wandb.ai"
    ]
    monkeypatch.setenv("WANDB_BASE_URL", "http://w.example:8080/")
    assert names[1] in status.ask_wandb(tmp_path, snapshots)[1][0]
    assert asked == [([names[1]], "e", "p"), ([names[0]], "e", "p")]


def test_proven_runs_that_were_replaced_are_counted_only(tmp_path):
    for number, started in (("1", 1.0), ("2", 2.0), ("3", 3.0)):
        deliver(tmp_path, f"witness-00000000000{number}", started_at=started)
    (tmp_path / "adapters/witness/latest").symlink_to("witness-000000000001")
    rows = gathered(tmp_path)
    assert len(rows) == 3
    assert [row["run_id"] for row in status.current_rows(rows)] == ["witness-000000000001", "witness-000000000003"]
    assert "    and 1 earlier verified run" in status.status_lines(rows, {}, [])


def test_what_a_cluster_has_is_shown_in_its_own_words_and_many_that_wait_are_counted(tmp_path):
    waits = [seen("queued", f"witness-{number:012x}", detail=f"Priority (job {number})", gpu=None, eta_seconds=None,
                  progress=run_state.Progress().as_dict()) for number in range(200)]  # fmt: skip
    runs = [seen("running", "mayor-000000000000"), *waits]
    rows = gathered(tmp_path, {"cluster": {"runs": runs}, "gpu-1": {"runs": [seen("queued", "crew-000000000000")]}})
    table = status.table_rows(rows, {})
    assert len(rows) == 202
    assert [row[3] for row in table] == ["queued", "running", *["queued"] * 11]
    assert table[-1] == ["–", "and 190 more", "cluster", "queued", *["–"] * 7]
    lines = status.status_lines(rows, {}, [])
    assert lines == [f"    witness-{number:012x}: Priority (job {number})" for number in range(10)]


def test_where_slurm_does_not_answer_the_table_says_so_and_nothing_counts_as_over(tmp_path):
    why = "Slurm does not answer: Unable to contact slurm controller"
    several = [
        seen("unknown", RUN[:-2] + f"{age:02}", detail=f"{why}; its last word was {age} s ago") for age in range(12)
    ]
    snapshots = {"cluster": {"runs": several}, "gpu-1": {"runs": [seen("stopped", "crew-1")]}}
    rows = gathered(tmp_path, snapshots)
    assert [row[3] for row in status.table_rows(rows, {})] == ["stopped", *["unknown"] * 11]
    assert status.table_rows(rows, {})[-1][:4] == ["–", "and 2 more", "cluster", "unknown"]
    assert status.status_lines(rows, {}, [])[1:] == [
        f"    cluster: {why}",
        "      → the same command when Slurm answers on cluster again; what runs goes on",
    ]
    assert status.busy(rows, {}, []) == ["cluster"]


def test_gpu_hours_stand_where_a_pod_has_dollars(tmp_path):
    facts = {"run_id": RUN, "agent": "witness", "fingerprint": None, "rehearsal": False, "backend": "slurm"}
    hours = {"exit_code": None, "first_started_at": 10.0, "seconds": 2700}
    (row,) = gathered(tmp_path, {"cluster": {"runs": [seen(facts=facts | {"processes": 2}, status=hours)]}})
    assert status.table_rows([row], {})[0][-1] == "1.5 GPUh"
    (row,) = gathered(tmp_path, {"cluster": {"runs": [seen(facts=facts | {"rehearsal": True}, status=hours)]}})
    assert status.table_rows([row], {})[0][-1] == "–"
    deliver(tmp_path, cost={"usd": 0.0, "source": "own hardware", "gpu_hours": 4.25})
    (row,) = gathered(tmp_path)
    assert status.table_rows([row], {})[0][-1] == "4.2 GPUh"
    assert report.cost(row["cost"]) == "4.2 GPUh"


def test_what_ran_on_a_trainer_that_does_not_answer_is_taken_to_go_on(tmp_path):
    place(tmp_path, "mayor-0123456789ab", trainer="gpu-2", state="launched")
    place(tmp_path, "crew-0123456789ab", trainer="gpu-4", state="failed", final=True)
    snapshots = {
        "gpu-1": {"runs": [seen()]},
        "gpu-2": {"silent": "x"},
        "gpu-3": {"silent": "x"},
        "gpu-4": {"silent": "x"},
    }
    silent = {name: "x" for name in snapshots if "silent" in snapshots[name]}
    assert status.busy(gathered(tmp_path, snapshots), silent, []) == ["gpu-1", "gpu-2"]
    # What another controller launched on gpu-3 is known from the last status alone; gpu-5 has answered since.
    assert status.busy(gathered(tmp_path, snapshots), silent, ["gpu-3", "gpu-5"]) == ["gpu-1", "gpu-2", "gpu-3"]
    assert status.busy(gathered(tmp_path, {"gpu-1": {"runs": [seen("failed")]}}), {}, ["gpu-1"]) == []


@pytest.mark.parametrize(
    ("agents", "found"), [(None, 2), ("all", 2), ("mayor", 1), (["mayor", "witness"], 2), ("crew", 0)]
)
def test_only_the_agents_that_are_meant_are_shown_and_all_are_noted(tmp_path, agents, found):
    deliver(tmp_path)
    deliver(tmp_path, "mayor-0123456789ab")
    given = {
        "output": tmp_path,
        "snapshots": {},
        "wandb": False,
        "agents": agents,
        "checkout": ROOT,
        "busy": [],
        "outside": [],
        "pods": None,
    }
    module = load("library/training_status")
    told = module.answer({**given, "display": "table"}, False)
    assert (len(told["runs"]), len(told["show"]["rows"])) == (found, found)
    assert told["show"]["lines"] == ([] if found else ["  no run is known"])
    assert told["show"]["screen"] is False
    assert module.answer({**given, "display": "screen"}, False) == {**told, "show": {**told["show"], "screen": True}}
    assert module.answer({**given, "display": "none"}, False) == {key: told[key] for key in told if key != "show"}
    assert len(rundir.read_json(tmp_path / "status.json")["runs"]) == 2


def test_an_agent_whose_file_is_gone_is_shown_and_said_to_be(tmp_path):
    deliver(tmp_path)
    place(tmp_path, "boot-0123456789ab", trainer="gpu-1", state="launched")
    (tmp_path / "adapters/boot").mkdir()
    for number in range(4):
        place(tmp_path, f"old-{number}-0123456789ab", trainer="gpu-1", state="launched")
    given = {
        "output": tmp_path,
        "snapshots": {},
        "wandb": False,
        "checkout": ROOT,
        "busy": [],
        "outside": [],
        "pods": None,
    }
    module = load("library/training_status")
    told = module.answer({**given, "agents": "boot", "display": "table"}, False)
    assert [run["run_id"] for run in told["runs"]] == ["boot-0123456789ab"]
    words = "    there is no configs/agents/{0}.yml, so that nothing trains {0}; what there is of it is kept"
    assert words.format("boot") in told["show"]["lines"]
    lines = module.answer({**given, "agents": None, "display": "table"}, False)["show"]["lines"]
    assert [line for line in lines if "configs/agents" in line] == [
        *(words.format(name) for name in ("boot", "old-0", "old-1")),
        "    and 2 more agents have no file in configs/agents",
    ]


def test_damaged_files_make_no_traceback(tmp_path):
    deliver(tmp_path)
    (tmp_path / "adapters/witness" / RUN / "manifest.json").write_text("{cut")
    place(tmp_path, "mayor-0123456789ab", trainer="gpu-1", state="launched")
    (tmp_path / "runs/mayor-0123456789ab.json").write_text("")
    assert [row["verdict"] for row in gathered(tmp_path, {"gpu-1": {"runs": []}})] == ["absent", "absent"]


@pytest.mark.parametrize(
    "broken",
    [{"files": [{}]}, {"files": ["x"]}, {"files": None}, {"host": "gpu"}, {"steps": [1]}, {"fingerprint": 3},
     {"cost": {"usd": "1"}}, {"loss": 3}, {"started_at": "today"}, {"verdict": None}, {"agent": 7}],
)  # fmt: skip
def test_a_damaged_manifest_makes_no_traceback(tmp_path, broken):
    deliver(tmp_path, latest=True, **broken)
    deliver(tmp_path, "witness-00000000000e")
    rows = gathered(tmp_path)
    assert len(rows) == 2
    assert status.table_rows(rows, {})
    assert status.status_lines(rows, {}, [])
    home = tmp_path / "adapters/witness"
    promotion.promote(home, "witness-00000000000e", promotion.Gate())
    assert promotion.overview(home)


@pytest.mark.parametrize(("word", "use"), [("a100", 0), ("busy", 97)])
def test_use_of_gpus(monkeypatch, word, use):
    monkeypatch.setenv("FAKE_GPU", word)
    (found,) = gpu.gpu_usage(str(ROOT / "tests/fakes/nvidia-smi"), timeout=600)
    assert (found["use"], found["memory_mib"]) == (use, 81920)


def test_a_host_without_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_GPU", "none")
    assert gpu.gpu_usage(str(ROOT / "tests/fakes/nvidia-smi"), timeout=600) == []
    assert gpu.gpu_usage(str(tmp_path / "nvidia-smi")) == []


def test_a_trainer_that_names_many_projects_of_wandb_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setattr(status, "WANDB_LIMIT", 0.2)

    def ask(names, entity, project, timeout):
        time.sleep(0.05)
        return {"runs": [], "error": None}

    monkeypatch.setattr(wandb_query, "ask_server", ask)
    runs_ = [seen(run_id=f"mayor-{number}") for number in range(1000)]
    for run in runs_:
        run["progress"]["wandb"] = {"mode": "online", "run": f"e/{run['run_id']}/x", "url": None}
    began = time.monotonic()
    (note,) = status.ask_wandb(tmp_path, {"gpu-1": {"runs": runs_}})[1]
    assert time.monotonic() - began < 10
    assert note.endswith(" of 1000 projects are not asked, as it takes too long")


def test_who_holds_the_lane_of_a_queued_run_is_told(tmp_path):
    words = "waits for lane GPU-1: deacon-0123456789ab has it since 2026-11-30 06:04 UTC"
    rows = status.collect_status(tmp_path, {"pod-1": {"runs": [seen("queued", detail=words)]}}, {})
    assert f"    {RUN}: {words}" in status.status_lines(rows, {}, [])
