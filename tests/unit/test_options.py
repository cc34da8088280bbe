"""Options that inventories give, held against the roles' specs."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.planning import options

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPECS = options.read_specs(ROOT)
BACKENDS = "it takes auto, systemd, tmux, process, slurm"
EVENTS = "it takes finished, decision, failed, stalled, over_budget"
OVER_BUDGET = "run_notify_on holds «money», which is called over_budget now"
SECRET = "https://hooks.example.org/T0/verysecret"


def check(**hosts):
    return options.check_trainer_options(ROOT, hosts)


def test_the_prefixes_are_those_of_the_roles_with_options():
    roles = {path.parts[-3] for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
    prefixes = {name.partition("_")[0] for name in SPECS if options.is_checked(name)}
    assert {prefix.rstrip("_") for prefix in options.HOST_VARIABLE_PREFIXES} == prefixes
    assert prefixes <= roles


def test_all_entry_points_count():
    assert {"run_backend", "trainer_prune", "pod_gpus", "adapter_output", "run_id"} <= SPECS.keys()
    assert SPECS["run_backend"]["choices"] == ["auto", "systemd", "tmux", "process", "slurm"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"run_backend": "sysemd"}, f"run_backend is «sysemd»; {BACKENDS}; did you mean «systemd»?"),
        ({"run_backend": "nohup"}, f"run_backend is «nohup»; {BACKENDS}"),
        ({"run_stop_timeout": "soon"}, "run_stop_timeout is «soon»; it takes a whole number"),
        ({"run_stop_timeout": 1.5}, "run_stop_timeout is «1.5»; it takes a whole number"),
        ({"run_stop_timeout": None}, "run_stop_timeout is «null»; it takes a whole number"),
        ({"pod_max_usd": "1,5"}, "pod_max_usd is «1,5»; it takes a number"),
        *(({name: value}, f"{name} is «{shown}»; it takes a number from 0 to 1,000,000,000")
          for name in ("pod_max_usd_per_hour", "pod_max_usd", "pod_max_usd_per_day", "pod_max_usd_per_month",
                       "pod_max_hours", "run_status_every", "adapter_max_regression")
          for value, shown in (("nan", "nan"), ("inf", "inf"), (float("-inf"), "-Infinity"), (-0.5, "-0.5"),
                               ("1e300", "1e300"))),
        ({"run_stall_timeout": -1}, "run_stall_timeout is «-1»; it takes a whole number from 0 to 1,000,000,000"),
        ({"run_rendezvous_port": 70000}, "run_rendezvous_port is «70000»; it takes a whole number from 1 to 65,535"),
        ({"run_rendezvous_port": "inf"}, "run_rendezvous_port is «inf»; it takes a whole number from 1 to 65,535"),
        ({"run_gpus": float("inf")}, "run_gpus is «Infinity»; it takes a whole number from 0 to 1,000,000,000"),
        ({"run_gpus": "1e999999999"}, "run_gpus is «1e999999999»; it takes a whole number from 0 to 1,000,000,000"),
        ({"run_gpus": 10**400}, f"run_gpus is «1{'0' * 38}…»; it takes a whole number from 0 to 1,000,000,000"),
        ({"pod_keep": "maybe"}, "pod_keep is «maybe»; it takes true or false"),
        ({"pod_env": [{"name": "HF_TOKEN", "value": SECRET}]}, "pod_env is of another kind; it takes a mapping"),
        ({"pod_gpus": {"a": 1}}, "pod_gpus is «{\"a\": 1}»; it takes a list of texts"),
        ({"trainer_runs": ["x"]}, "trainer_runs is «[\"x\"]»; it takes a list of mappings"),
        ({"run_gpus": "a\x1b[2J" + "b" * 90}, f"run_gpus is «a [2J{'b' * 54}…»; it takes a whole number"),
        ({"run_notify_on": ["failed", "fail"]}, f"run_notify_on holds «fail»; {EVENTS}; did you mean «failed»?"),
        ({"run_notify_on": "failed,never"}, f"run_notify_on holds «never»; {EVENTS}"),
        ({"run_notify_on": ["failed", "money"]}, OVER_BUDGET),
        ({"run_notify_on": "money"}, OVER_BUDGET),
        ({"run_notify_on": {"x": 1}}, f"run_notify_on holds «{{\"x\": 1}}»; {EVENTS}"),
        ({"run_lane": "cpu"}, "run_lane is called run_lanes now; rename it"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_taken(given, sentence, seen):
    assert options.option_errors(given, SPECS) == [sentence]
    assert check(a=given) == ([f"a: {sentence}"], [])
    if given == {"pod_max_usd_per_hour": "nan"}:
        seen("pod_max_usd_per_hour=nan", "plan", "refused; the message names the option and what it takes")


@pytest.mark.parametrize(
    "given",
    [
        {"run_stop_timeout": "5"},
        {"run_stop_timeout": "{{ 5 * 60 }}", "run_backend": "{% if x %}tmux{% endif %}", "pod_env": {"A": "{{ b }}"}},
        {"trainer_lanes": 1},  # no option: another function's matter
        {"pod_gpus": "NVIDIA L40S", "pod_clouds": "SECURE,COMMUNITY", "pod_max_usd_per_hour": "2.5", "pod_keep": "yes"},
        {"run_lanes": ["GPU-1", "GPU-2"], "run_notify_on": [], "trainer_python_version": 3.12},
        {"agents": 7, "ansible_host": None},
    ],
)  # fmt: skip
def test_what_ansible_takes_is_taken(given):
    assert options.option_errors(given, SPECS) == []


def test_a_secret_is_never_shown():
    specs = {**SPECS, "run_notify_url": {**SPECS["run_notify_url"], "type": "int"}}
    assert SPECS["run_notify_url"]["no_log"] is True
    assert options.option_errors({"run_notify_url": SECRET}, specs) == [
        "run_notify_url is of another kind; it takes a whole number"
    ]
    specs["run_notify_url"]["choices"] = [1, 2]
    assert SECRET not in str(options.option_errors({"run_notify_url": SECRET}, specs))
    assert SECRET not in str(check(a={"run_notify_url": SECRET, "run_notify_ulr": SECRET, "run_secret": SECRET}))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pod_max_usd_per_houre", "pod_max_usd_per_hour"),
        ("pod_gpu", "pod_gpus"),
        ("run_backnd", "run_backend"),
        ("trainer_roots", "trainer_root"),
        ("adapter_outputs", "adapter_output"),
    ],
)
def test_a_slip_in_a_name_is_an_error(name, meant):
    errors, warnings = check(a={name: 1}, b={"run_backend": "auto"})
    assert errors == [
        f"a: there is no option {name}; did you mean «{meant}»? A variable of your own needs another name"
    ]
    assert warnings == []


@pytest.mark.parametrize(
    "name", ["run_as", "pod_network_cidr", "trainer_colour", "trainer_name", "adapter_", "run_name"]
)
def test_a_variable_of_the_users_own_is_a_warning(name):
    assert check(a={name: 1}) == ([], [f"a: there is no option {name}; it is ignored"])


def test_other_variables_are_nobodys_business():
    assert check(a={"runs": 1, "podium": 2, "ansible_user": "x", "datasets_dir": "y", "retrainer_lok": 1}) == ([], [])


@pytest.mark.parametrize("name", [1, None, True, 1.5, ""])
def test_a_name_that_is_no_text_is_no_option(name):
    """As a file of variables may have it: «1: x»."""
    assert not options.is_checked(name)
    assert check(a={name: 1}) == ([], [])


def test_what_the_plays_set_themselves_is_known():
    """A second playbook in one command finds what the first one has noted of a host."""
    noted = {"run_failure": {}, "run_plans": [], "pod_made": {}, "pod_budget": {}, "trainer_gpu": {},
             "converge_done": True, "pod_id": "x", "pod_status": "RUNNING", "run_plan": {}, "pod_attempt": 1,
             "run_sweep": [], "run_will_start": True}  # fmt: skip
    assert check(a=noted) == ([], [])


def test_what_the_inventory_plugin_tells_is_known():
    text = (ROOT / "inventory_plugins/runpod.py").read_text()
    told = set(re.findall(r'"(pod_\w+)":', text))
    assert told - SPECS.keys() == set(options.INVENTORY_FACTS)


def test_hosts_with_the_same_mistake_share_a_line():
    given = {f"gpu-{number}": {"run_backend": "at", "run_gpuz": 1, "pod_mine": 1} for number in range(5)}
    errors, warnings = check(**given)
    assert [line.partition(": ")[0] for line in errors + warnings] == ["gpu-0, gpu-1, gpu-2 and 2 more"] * 3
    del given["gpu-3"], given["gpu-4"]
    assert check(**given)[1] == ["gpu-0, gpu-1, gpu-2: there is no option pod_mine; it is ignored"]


def test_what_the_project_ships_is_right():
    """The inventories of the project and of its tests, and what is in their comments."""
    paths = [*ROOT.glob("inventory/*.yml"), *ROOT.glob("tests/**/trainers.yml"), ROOT / "tests/hosts/inventory.yml",
             ROOT / "tests/fakes/runpod/pods.yml"]  # fmt: skip
    given: dict[str, dict[str, object]] = {}

    def read(node, where):
        for key, value in node.items() if isinstance(node, dict) else ():
            if options.is_checked(key):
                given.setdefault(where, {})[key] = value
            read(value, where)

    for path in paths:
        read(yaml.safe_load(path.read_text()), path.name)
        for commented in re.findall(r"^ *# ((?:pod|trainer|run)_\w+: .*)$", path.read_text(), re.MULTILINE):
            read(yaml.safe_load(commented), path.name)
    assert {
        "local.yml",
        "runpod.example.yml",
        "slurm.example.yml",
        "ssh.example.yml",
        "this-gpu.example.yml",
    } <= given.keys()
    assert {"pod_max_usd", "pod_network_volume", "trainer_machine"} <= {name for own in given.values() for name in own}
    assert options.check_trainer_options(ROOT, given) == ([], [])


# --- what a command is given ----------------------------------------------------------------------------------------


def on_command(*inventories: pathlib.Path, **given: Any) -> tuple[list[str], list[str]]:
    return options.check_command_options(ROOT, given, map(str, inventories))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("rol", "role"), ("rolle", "role"), ("roles", "role"), ("agent", "role"), ("dataset_dir", "datasets_dir"),
        ("datset_dir", "datasets_dir"), ("receipe", "recipe"), ("detatch", "detach"), ("freshh", "fresh"),
        ("run_stal_timeout", "run_stall_timeout"),
    ],
)  # fmt: skip
def test_a_misspelt_option_of_the_command_is_an_error(tmp_path, name, meant):
    (tmp_path / "hosts.yml").write_text(f"# what {name} is\n")
    assert on_command(tmp_path / "hosts.yml", **{name: "x"}) == (
        [f"-e: there is no option {name}; did you mean «{meant}»? A variable of your own needs another name"],
        [],
    )


def test_a_recipes_key_given_as_an_option_is_told_how_to_write_it():
    advice = '-e: lora_r is a key of recipes, and no option; write -e \'{"recipe": {"lora_r": "32"}}\''
    assert on_command(lora_r="32") == ([advice], [])
    assert on_command(**{"recipe.lora_r": "32"}) == ([advice], [])


def test_the_kinds_of_options_are_held():
    assert on_command(fresh="maybe") == (["-e: fresh is «maybe»; it takes true or false"], [])
    assert on_command(lines=-5) == (["-e: lines is «-5»; it takes a whole number from 0 to 1,000,000,000"], [])
    assert on_command(run_gpus="two") == (["-e: run_gpus is «two»; it takes a whole number"], [])
    right = {"fresh": "true", "detach": False, "role": ["witness"], "recipe": {"lora_r": 1}, "lines": "20"}
    assert on_command(ansible_host="x", run_stall_timeout="60", run_sweep=[], **right) == ([], [])


@pytest.mark.parametrize("empty", ["", None, [], " , "])
def test_a_role_that_is_given_and_empty_is_an_error(empty):
    wrong, strange = on_command(role=empty)
    assert [sentence[:32] for sentence in wrong] == ["-e: role is given, and empty. Nam"[:32]]
    assert strange == []


@pytest.fixture
def inventory(tmp_path):
    """Write files of the user's beside an inventory, and return its path."""

    def writer(**files: str) -> pathlib.Path:
        (tmp_path / "hosts.yml").write_text("trainers: {hosts: {a: {datasets_dir: '{{ my_disk }}/data'}}}\n")
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path / "hosts.yml"

    return writer


def unread(*names: str) -> list[str]:
    return [f"-e: nothing reads {name}: it is no option, and nothing of your inventory" for name in names]


def test_what_nothing_reads_is_warned_of_unless_the_user_has_it(inventory, tmp_path):
    path = inventory(group_vars__all="region: eu", hooks__after_release="- debug: {msg: '{{ note }}'}", other="owner")
    given = {"my_disk": 1, "region": "us", "note": 2, "owner": "me", "whom": "x"}
    assert on_command(path, **given) == ([], unread("owner", "whom"))
    assert on_command(tmp_path, **given) == ([], unread("whom"))  # a folder of inventories: all in it
    assert on_command(**given) == ([], unread(*given))
    assert on_command(tmp_path / "none.yml", pathlib.Path("a,b"), whom="x") == ([], unread("whom"))
    assert on_command(awx_job_id=7, tower_user_name="me", whom="x") == ([], unread("whom"))  # a job of AWX's


def test_a_variable_that_another_one_of_the_command_names_is_read(inventory):
    assert on_command(trainer_root="{{ disk_of_mine }}/forge", disk_of_mine="/d") == ([], [])
    assert on_command(run_mine="1") == ([], ["-e: there is no option run_mine; it is ignored"])
    assert on_command(inventory(group_vars__a="x: '{{ run_mine }}'"), run_mine="1") == ([], [])


# --- the settings of Ansible


def test_settings_that_ansible_has_not_read_are_told_with_the_way_out(tmp_path):
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for folder in (checkout, elsewhere):
        folder.mkdir(mode=0o755)
        (folder / "ansible.cfg").touch()
    ours, other = str(checkout / "ansible.cfg"), str(elsewhere / "ansible.cfg")

    def told(read: str, named: str = "", here: pathlib.Path = checkout) -> str:
        return options.configuration_error(checkout, read, named, here)

    assert told(ours) == told(ours, ours, elsewhere) == ""
    assert told(other, other) == (
        f"Ansible has read {other} in place of {ours}, whose settings lora-forge needs; ANSIBLE_CONFIG says so: unset "
        "ANSIBLE_CONFIG"
    )
    assert told("", here=elsewhere) == (
        f"Ansible has read no ansible.cfg in place of {ours}, whose settings lora-forge needs; cd {checkout}, and run "
        "the command there"
    )
    assert told("").endswith(f"; make it a file that you may read: {ours}")
    checkout.chmod(0o777)
    assert told("").endswith(
        "; it is passed over where everybody may write into its folder: "
        f"chmod o-w {checkout}, or, where that changes nothing, export ANSIBLE_CONFIG={ours}"
    )
