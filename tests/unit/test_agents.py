"""Who is trained: files of configs/agents/, what they say of themselves, and groups."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest
from ansible.module_utils.lora_forge.agents import agent_of, name_problem
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import agents, found_runs, plan, plan_table
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from planned import said
from wire import load

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = ["crew", "deacon", "gastown", "mayor", "polecat", "refinery", "witness"]
RUN_LIKE = "witness-0123456789ab"


@pytest.fixture
def checkout(tmp_path):
    """Copy the shipped configurations, to which a test adds files of its own."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / "requirements").mkdir()
    for path in (ROOT / "requirements").glob("*.txt"):
        shutil.copy(path, root / "requirements")
    return root


@pytest.fixture
def agent(checkout):
    """Write an agent's file."""

    def writer(name: str, text: str = "{}\n") -> pathlib.Path:
        path = checkout / f"configs/agents/{name}.yml"
        path.write_text(text)
        return path

    return writer


@pytest.fixture
def groups(checkout):
    """Write configs/groups.yml, and read the agents."""

    def writer(text: str) -> Agents:
        (checkout / "configs/groups.yml").write_text(text)
        return Agents(checkout)

    return writer


@pytest.fixture
def data(tmp_path):
    """Write <agent>_<use>.jsonl."""

    def writer(*names: str, use: str = "train") -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        for name in names:
            turns = [[("human", f"{name} {use} {n}"), ("gpt", "a" * 14_000)] for n in range(40)]
            rows = [{"conversations": [{"from": who, "value": text} for who, text in pair]} for pair in turns]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / "data" / f"{name}_{use}.jsonl").write_text(text)

    return writer


@pytest.fixture
def make(checkout, tmp_path):
    """plan.make over the copied configurations, with one trainer «here»."""

    def maker(wanted: Any = None, **options: Any) -> plan.Plan:
        trainers = [Trainer("here", datasets_dir=str(tmp_path / "data"))]
        return plan.make(checkout, tmp_path / "output", wanted, trainers, {}, **options)

    return maker


@pytest.fixture
def find(checkout, tmp_path):
    """Find runs to stop or to look at, with trainers of these names."""

    def finder(wanted: str, *names: str, **options: Any) -> plan.Plan:
        trainers = [Trainer(name, datasets_dir=str(tmp_path / "data")) for name in names or ("here",)]
        return found_runs.find(checkout, tmp_path / "output", wanted, trainers, {}, Agents(checkout), **options)

    return finder


def only(made: plan.Plan) -> PlannedRun:
    [run] = made.runs
    return run


# --- names


@pytest.mark.parametrize("name", ["boot", "7", "a-b", "night-watch-2", "x-0123456789a", "x" * 63, "x-0123456789abc"])
def test_a_name_that_will_do(name):
    assert name_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Boot", "a name is of a-z, 0-9 and -"), ("-boot", "a name is of"), ("a_b", "a name is of"),
        ("a.b", "a name is of"), ("", "a name is of"), ("../x", "a name is of"), ("bööt", "a name is of"),
        ("boot\n", "a name is of"), ("x" * 64, "a name has 63 letters at most"), ("all", "«all» means every agent"),
        (RUN_LIKE, "it ends like the name of a run"), (f"{RUN_LIKE}-2", "it ends like the name of a run"),
        (f"{RUN_LIKE}-17", "it ends like the name of a run"),
    ],
)  # fmt: skip
def test_a_name_that_will_not_do(name, problem):
    assert name_problem(name).startswith(problem)


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        (RUN_LIKE, "witness"), (f"{RUN_LIKE}-2", "witness"), ("night-watch-0123456789ab", "night-watch"),
        ("a-b-0123456789ab-12", "a-b"), ("0123456789ab-0123456789ab", "0123456789ab"), ("witness-x", "witness"),
    ],
)  # fmt: skip
def test_whose_run_it_is(run_id, name):
    assert agent_of(run_id) == name


def test_the_shipped_agents():
    shipped = Agents(ROOT)
    assert list(shipped.names) == SHIPPED
    assert (shipped.groups, shipped.problems) == ({}, [])
    assert [name for name in SHIPPED if shipped.data_of(name)] == ["gastown"]
    assert shipped.data_of("gastown") == [name for name in SHIPPED if name != "gastown"]


def test_a_file_is_an_agent_and_what_an_editor_leaves_is_none(checkout, agent):
    agent("boot")
    for leftover in (".boot.yml.swp", "boot.yml~", ".gitkeep"):
        (checkout / "configs/agents" / leftover).touch()
    found = Agents(checkout)
    assert list(found.names) == ["boot", *SHIPPED]
    assert found.problems == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Boot.yml", "a name is of a-z, 0-9 and -, and begins with a letter or a digit"),
        ("boot.yaml", "here lie files <agent>.yml alone"),
        ("README.md", "here lie files <agent>.yml alone"),
        ("all.yml", "«all» means every agent"),
        (f"{RUN_LIKE}.yml", "it ends like the name of a run (-<12 hex>), so that nobody could tell whose run is whose"),
    ],
)
def test_a_file_with_another_name_is_named(checkout, name, problem):
    (checkout / "configs/agents" / name).touch()
    found = Agents(checkout)
    assert found.problems == [f"configs/agents/{name}: {problem}. Rename it, or put it elsewhere"]
    assert list(found.names) == SHIPPED  # nobody is kept from stopping a run by it


def test_a_checkout_without_agents(checkout, make):
    shutil.rmtree(checkout / "configs/agents")
    assert said(make).startswith("configs/agents holds no agent. A file configs/agents/<agent>.yml makes one")


# --- who is meant


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, []), ("witness, mayor,witness", ["witness", "mayor"]), (["crew", "mayor"], ["crew", "mayor"]),
        ("all", SHIPPED), (["all"], SHIPPED), ("patrol", ["witness", "deacon"]),
        ("mayor,patrol,deacon", ["mayor", "witness", "deacon"]), ("patrol,one", ["witness", "deacon", "crew"]),
        ("gone,crew", ["gone", "crew"]),
    ],
)  # fmt: skip
def test_who_is_meant(groups, wanted, names):
    assert groups("patrol: [witness, deacon, witness]\none: [crew]\n").select(wanted, {"gone"}) == names


@pytest.mark.parametrize("wanted", ["", " , ", [], [""]])
def test_a_name_that_is_given_and_empty_means_nobody(wanted):
    assert said(Agents(ROOT).select, wanted).startswith("role is given, and empty. Name agents or groups")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("witnes", "there is no agent «witnes»; did you mean «witness»? Agents: crew, deacon,"),
        ("crew,Polecat", "there is no agent «Polecat»; did you mean «polecat»? Agents:"),
        ("../../etc", "there is no agent «../../etc». Agents: crew, deacon,"),
        ("all,crew", "there is no agent «all». Agents: crew,"),
        ("patrl", "there is no agent «patrl»; did you mean «patrol»? Agents: crew,"),
    ],
)
def test_nobody_of_that_name(groups, wanted, words):
    message = said(groups("patrol: [witness]\n").select, wanted)
    assert message.startswith(words)
    assert message.endswith("refinery, witness. Groups: patrol")


def test_of_many_agents_the_first_ones_are_listed(checkout, agent):
    for number in range(20):
        agent(f"a{number:02}")
    assert said(Agents(checkout).select, "zz").endswith("a08, a09 and 17 more")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("one: [crew]\npatrol: [witness, decon]", "line 2: the group «patrol» has «decon», which is no agent; did"),
        ("one: [crew]\npatrol: [one]", "line 2: the group «patrol» has «one», which is a group; groups hold agents"),
        ("patrol: [patrol]", "the group «patrol» has «patrol», which is a group; groups hold agents alone, so"),
        ("crew: [witness]", "line 1: «crew» is a group, and an agent (configs/agents/crew.yml); give one of them"),
        ("all: [witness]", "line 1: a group cannot be called «all»: «all» means every agent"),
        ("Patrol: [witness]", "line 1: a group cannot be called «Patrol»: a name is of a-z"),
        ("no: [witness]", "a group cannot be called «False», which is how YAML reads its name"),
        ("7: [witness]", "a group cannot be called «7», which is how YAML reads its name"),
        ("patrol: witness", "line 1: the group «patrol» must be a list of agents, such as patrol: [witness, deacon]"),
        ("patrol: []", "line 1: the group «patrol» must be a list of agents"),
        ("patrol: [{a: b}]", "line 1: the group «patrol» must be a list of agents"),
        ("patrol: [witness]\npatrol: [crew]", "lines 1 and 2: «patrol» stands twice; keep one"),
        ("- witness", "holds a list; it must hold «key: value» lines"),
        ("patrol: [", "not YAML"),
    ],
)  # fmt: skip
def test_a_group_that_is_wrong_is_no_group(groups, text, problem):
    found = groups(text)
    [sentence] = found.problems
    assert sentence.startswith("configs/groups.yml")
    assert problem in sentence
    assert found.groups.keys() <= {"one"}
    assert said(found.select, "patrol").endswith(sentence)  # whoever asks for it is told why
    assert found.select("witness") == ["witness"]


def test_a_trainer_takes_a_group(groups, checkout, tmp_path, data):
    groups("patrol: [witness, deacon]\n")
    data("witness", "deacon", "mayor")
    boxes = [Trainer(name, datasets_dir=str(tmp_path / "data"), agents=taken)
             for name, taken in (("a", ("patrol",)), ("b", ("mayor",)))]  # fmt: skip
    made = plan.make(checkout, tmp_path / "output", None, boxes, {})
    assert [(run.agent, run.trainer) for run in made.runs] == [("deacon", "a"), ("mayor", "b"), ("witness", "a")]


# --- what a file says


def test_an_agent_of_ones_own_is_planned(agent, data, make):
    agent("boot", "lora_r: 8\n")
    data("boot")
    run = only(make("boot"))
    assert (run.agent, run.run_id[:5], run.recipe["lora_r"], run.recipe["lora_alpha"]) == ("boot", "boot-", 8, 128)
    assert [run.agent for run in make().runs] == ["boot", "gastown"]


def test_an_agent_that_extends_another_one(agent, data, make):
    agent("boot", "extends: polecat\nlora_r: 8\neval_steps: 10\n")
    data("boot")
    made = make("boot")
    run = only(made)
    assert [run.recipe[key] for key in ("num_epochs", "warmup_steps", "eval_steps", "lora_r")] == [4, 30, 10, 8]
    assert not {"extends", "data_of"} & run.recipe.keys()
    origins = made.origins[run.run_id]
    assert origins["num_epochs"].startswith("configs/agents/polecat.yml, line ")
    assert origins["eval_steps"] == "configs/agents/boot.yml, line 3"
    assert origins["lora_alpha"].startswith("configs/base.yml, line ")


def test_own_keys_are_in_no_fingerprint(agent, data, make):
    data("boot")
    ids = []
    for text in ("{}", "data_of: [witness]", "num_epochs: 4\nwarmup_steps: 30\neval_steps: 25", "extends: polecat"):
        agent("boot", text)
        ids.append(only(make("boot")).run_id)
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_a_defect_is_told_where_it_stands(agent, data, make):
    agent("boot", "# boot\nextends: other\n")
    agent("other", "lora_rank: 8\n")
    data("boot")
    assert said(make, "boot").startswith("configs/agents/other.yml, line 1: Axolotl knows no key «lora_rank»")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: polcat", "line 1: «extends: \"polcat\"» must name another agent; did you mean «polecat»?"),
        ("lora_r: 8\nextends: boot", "line 2: «extends: \"boot\"» must name another agent."),
        ("extends: [crew]", "line 1: «extends: [\"crew\"]» must name another agent"),
        ("extends:", "line 1: «extends: null» must name another agent"),
        ("extends: ../base", "must name another agent"),
        ("extends: heir", "«extends: \"heir\"», and configs/agents/heir.yml, line 1: «extends: \"crew\"»: an agent"),
        ("data_of: [witness, maior]", "[\"witness\", \"maior\"]»: there is no agent «maior»; did you mean «mayor»"),
        ("data_of: [boot]", "line 1: «data_of: [\"boot\"]» must be a list of other agents, or all"),
        ("data_of: []", "«data_of: []» must be a list of other agents, or all"),
        ("data_of: {witness: 1}", "«data_of: {\"witness\": 1}»: role is given"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_say_of_itself(agent, data, make, text, words):
    agent("heir", "extends: crew\n")
    agent("boot", text + "\n")
    data("boot")
    message = said(make, "boot")
    assert message.startswith("configs/agents/boot.yml")
    assert words in message


def test_a_run_that_is_ready_comes_back_without_what_only_a_training_needs(
    agent, data, checkout, tmp_path, monkeypatch
):
    module = load("library/training_plan")
    agent("boot")
    data("boot", "witness")
    output = tmp_path / "output"
    given = {name: spec.get("default") for name, spec in module.ARGUMENTS.items()}
    given |= {"root": str(checkout), "output": str(output), "agents": "boot,witness", "hosts": ["here"], "recipe": {},
              "host_variables": {"here": {"datasets_dir": str(tmp_path / "data")}}, "host_options": {},
              "groups": {}}  # fmt: skip
    first = module.answer(given, False)["runs"]
    assert first == json.loads((output / "plan.json").read_text())["runs"]
    folder = output / "adapters/boot" / first[0]["run_id"]
    folder.mkdir(parents=True)
    manifest = {"run_id": folder.name, "agent": "boot", "verdict": "verified", "files": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    boot, witness = module.answer(given, False)["runs"]
    planned = json.loads((output / "plan.json").read_text())["runs"]
    assert (boot["state"], boot["recipe"], boot["datasets"]) == ("ready", {}, [])
    assert PlannedRun.from_dict(boot).run_id == folder.name
    assert (planned[0]["recipe"], planned[0]["datasets"]) == (first[0]["recipe"], first[0]["datasets"])
    assert planned[1] == witness
    (checkout / "eval").mkdir()
    case = {"messages": [{"role": "user", "content": "what now?"}], "expect": [{"contains": "x"}]}
    (checkout / "eval/boot.jsonl").write_text(json.dumps(case))
    monkeypatch.setattr(module.validation, "check", lambda *given, **more: [])
    warned = module.answer(given | {"agents": "boot", "validate": True}, False)["show"]["warnings"]
    assert [words for words in warned if words.endswith("playbooks/evaluate.yml -e role=boot does")], warned


# --- data of others


def test_an_agent_without_data_learns_from_those_that_it_names(agent, data, make, tmp_path):
    agent("boot", "data_of: [witness, mayor, crew]\n")
    data("mayor", "witness", "deacon")
    data("witness", use="val")
    made = make("boot")
    files = [(pathlib.Path(item.path).name, item.use) for item in only(made).datasets]
    assert files == [("witness_train.jsonl", "train"), ("mayor_train.jsonl", "train"), ("witness_val.jsonl", "val")]
    assert f"boot is trained without crew: no such file in {tmp_path}/data" in made.warnings
    assert [run.agent for run in make().runs] == ["boot", "deacon", "gastown", "mayor", "witness"]


def test_a_file_of_its_own_comes_first_and_that_is_said(agent, data, make, tmp_path):
    agent("boot", "data_of: [witness]\n")
    data("boot", "witness", "gastown")
    made = make("boot,gastown")
    assert [[pathlib.Path(item.path).name for item in run.datasets] for run in made.runs] == [
        ["boot_train.jsonl"], ["gastown_train.jsonl"],
    ]  # fmt: skip
    told = [warning for warning in made.warnings if "data_of" in warning]
    assert told == [f"boot learns from {tmp_path}/data/boot_train.jsonl alone: data_of is for where there is none"]


def test_nobody_has_data(agent, make, tmp_path):
    agent("boot", "data_of: [witness, mayor]\n")
    assert said(make, "boot") == (
        f"no dataset for boot: {tmp_path}/data/boot_train.jsonl does not exist, nor one of witness, mayor. "
        "-e datasets_dir=… says where to look"
    )


def test_files_of_agents_without_data_change_no_run(agent, data, make):
    data(*SHIPPED[:2], "mayor")
    before = [(run.run_id, run.trainer, run.lane) for run in make().runs]
    for number in range(10):
        agent(f"new-{number}", "extends: polecat\n" if number % 2 else "{}\n")
    made = make()
    assert [(run.run_id, run.trainer, run.lane) for run in made.runs] == before
    [left_out] = [warning for warning in made.warnings if warning.startswith("left out: ")]
    assert "new-0, new-1" in left_out
    assert "and 3 more" in left_out  # 13 are left out, and 10 are named


def test_new_data_is_learnt_by_who_learns_from_all(agent, data, make):
    data("witness")
    before = {run.agent: run.run_id for run in make().runs}
    agent("boot")
    data("boot")
    after = {run.agent: run.run_id for run in make().runs}
    assert after["witness"] == before["witness"]
    assert after["gastown"] != before["gastown"]


# --- an agent whose file is gone


@pytest.fixture
def gone(tmp_path):
    """Leave runs of an agent that has no file."""
    runs = tmp_path / "output/runs"
    runs.mkdir(parents=True)

    def record(run_id: str, **values: Any) -> None:
        (runs / f"{run_id}.json").write_text(json.dumps({"run_id": run_id, "lane": 0, **values}))

    record("boot-0123456789ab", trainer="here", state="finished", final=True)
    record("boot-0123456789ab-2", trainer="here", state="launched")
    record("boot-bbbbbbbbbbbb", trainer="here", state="stopped", final=True)
    record("boot-cccccccccccc", trainer="elsewhere", state="launched")
    record("boot-strap-0123456789ab", trainer="here", state="launched")
    return tmp_path / "output"


def test_what_is_kept(gone):
    for name in ("crew", "Odd", "x-0123456789ab"):
        (gone / "adapters" / name).mkdir(parents=True)
    assert agents.kept_agents(gone) == {"boot", "boot-strap", "crew"}
    assert agents.kept_agents(gone / "none") == frozenset()


def test_an_agent_without_a_file_is_not_trained(gone, make):
    assert said(make, "boot") == (
        "there is no configs/agents/boot.yml, so that nothing trains boot; what there is of it is kept. To train it, "
        "write that file again; {} in it will do"
    )


def test_the_runs_of_an_agent_without_a_file_can_be_stopped_and_pruned(gone, find, data):
    data("witness")
    made = find("boot,witness")
    assert [(run.run_id, run.state, run.trainer, run.hosts) for run in made.runs if run.agent == "boot"] == [
        ("boot-0123456789ab", "ready", "here", ("here",)),
        ("boot-0123456789ab-2", "to attach", "here", ("here",)),
        ("boot-bbbbbbbbbbbb", "to resume", "here", ("here",)),
    ]
    assert [run.agent for run in made.runs if run.agent != "boot"] == ["witness"]
    assert all(PlannedRun.from_dict(run.as_dict()) == run and plan_table.table_row(run) for run in made.runs)
    assert "boot-cccccccccccc is left alone: it is on elsewhere, which this inventory does not hold" in made.warnings


def test_an_agent_without_a_file_is_left_alone_outside_a_limit(gone, find):
    (run,) = find("boot", "here", "elsewhere", outside=["here"]).runs
    assert run.trainer == "elsewhere"
    made = find("boot", "here", "there", outside=["here"])
    assert not made.runs
    assert any("is left alone: it is on here, which --limit leaves out" in words for words in made.warnings)


def test_an_agent_without_a_file_and_without_a_run_here(tmp_path, find):
    (tmp_path / "output/adapters/boot").mkdir(parents=True)
    made = find("boot")
    assert made.runs == ()
    assert made.warnings[0].endswith("No run of it is on a host of this inventory")
